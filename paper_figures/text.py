"""Words on figures: widths, wrapping, and characters made visible."""

from __future__ import annotations

import math
import re
from functools import cache

# Written by name: in most faces they look like a hyphen or a letter.
MINUS, TIMES, DASH = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
SPACE = "\N{MIDDLE DOT}"
# What Liberation Sans has a shape for, as far as it stands by itself and reads from left to right: Latin, Greek and
# Cyrillic letters, punctuation, currencies, arrows, comparisons and lines. Other faces are not to be had everywhere.
_DRAWN = re.compile(
    "[\u0021-\u007e\u00a1-\u02ff\u0370-\u0513\u1e00-\u1e9b\u1ea0-\u1ef9\u1f00-\u1ffe\u2012-\u2022\u2026\u2030\u2032-\u2034"
    "\u2039\u203a\u20a0-\u20b5\u2122\u2190-\u2195\u2212\u2248\u2260\u2264\u2265\u2500\u2502\u250c\u2510\u2514\u2518\u251c\u2524"
    "\u252c\u2534\u253c\u2550-\u256c\u25a0\u25a1\u25cf]"
)

_NARROW = frozenset(" .,:;'|!()[]{}iljtfrI-`/\\")
_WIDE = frozenset("mwMW@%")


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Return the width in pixels of a line in an Arial-like face of `size` pixels, to within a few per cent."""
    return sum(map(_em, text)) * size * (1.07 if bold else 1.0)


@cache
def _em(letter: str) -> float:
    if ord(letter) > 0x2E80:
        return 1.0
    if letter in _NARROW:
        return 0.3
    if letter in _WIDE:
        return 0.85
    return 0.68 if letter.isupper() else 0.54


def wrap(text: str, width: float, size: float, *, bold: bool = False) -> list[str]:
    """Wrap `text` in lines of at most `width` pixels; a word longer than a line is broken, nothing is lost."""
    lines, line = [], ""
    for word in text.split():
        # A dot between two parts belongs to the first: no line begins with it.
        if word == SPACE and line:
            line += f" {SPACE}"
            continue
        while text_width(word, size, bold=bold) > width and len(word) > 1:
            cut = next(i for i in range(len(word), 0, -1) if i == 1 or text_width(word[:i], size, bold=bold) <= width)
            lines += [line] if line else []
            line = ""
            lines.append(word[:cut])
            word = word[cut:]
        if line and text_width(f"{line} {word}", size, bold=bold) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return [*lines, line] if line or not lines else lines


def ending(text: str, width: float, size: float, lines: int) -> list[str]:
    """Return the last words of `text` in at most `lines` lines, with an ellipsis in front of what was cut.

    A head is read at the last position of a prompt, so it is the beginning that a label can do without.
    """
    said = " ".join(text.split())
    starts = [0, *(i + 1 for i, c in enumerate(said) if c == " "), *range(1, len(said))]
    # No line of print holds more than this; a whole document need not be tried from each of its words.
    least = len(said) - lines * int(width)
    for start in (s for s in starts if s >= least):
        mark = "" if start == 0 else "… " if said[start - 1] == " " else "…"
        kept = wrap(mark + said[start:], width, size)
        if len(kept) <= lines:
            return kept
    return wrap(said[-1:], width, size)


def drawable(text: str) -> str:
    """Return `text` with what the figures' font cannot draw, such as emoji, CJK and tabs, as escapes."""
    return "".join(c if c == " " or (_DRAWN.match(c) and c.isprintable()) else _escape(c) for c in text)


def visible(text: str) -> str:
    """Return `text` as a prompt shows it: drawable, and spaces at either end or beside another as dots.

    Backslashes and dots of the text itself are escaped, so that no two texts look alike.
    """
    shown = drawable(text.replace("\\", _escape("\\")).replace(SPACE, _escape(SPACE)))
    return re.sub(r"^ +| {2,}| +$", lambda run: SPACE * len(run[0]), shown)


def token(text: str) -> str:
    """Return a token for print, with every space as a dot."""
    return visible(text).replace(" ", SPACE)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def number(value: float, digits: int = 2) -> str:
    """Return a value with a true minus sign and no minus zero; an en dash where it is undefined."""
    if not math.isfinite(value):
        return DASH
    text = f"{value:.{digits}f}"
    return text.replace("-", "" if float(text) == 0 else MINUS)
