"""Words on figures: widths, wrapping, and characters made visible."""

from __future__ import annotations

import math

# Written by name: in most faces they look like a hyphen or a letter.
MINUS, TIMES, DASH = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"

_NARROW = frozenset(" .,:;'|!()[]{}iljtfrI-`/\\")
_WIDE = frozenset("mwMW@%")


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Return the width in pixels of a line in an Arial-like face of `size` pixels, to within a few per cent."""
    em = 0.0
    for c in text:
        if ord(c) > 0x2E80:
            em += 1.0
        elif c in _NARROW:
            em += 0.3
        elif c in _WIDE:
            em += 0.85
        else:
            em += 0.68 if c.isupper() else 0.54
    return em * size * (1.07 if bold else 1.0)


def wrap(text: str, width: float, size: float, *, bold: bool = False) -> list[str]:
    """Wrap `text` in lines of at most `width` pixels; a word longer than a line is broken, nothing is lost."""
    lines, line = [], ""
    for word in text.split():
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


def visible(text: str) -> str:
    """Return `text` with control characters, line ends and tabs as escapes, so that a prompt shows what it holds."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def token(text: str) -> str:
    """Return a token for print: its leading space dropped, or its escapes shown where nothing else is left."""
    return visible(text).strip() or repr(text)


def number(value: float, digits: int = 2) -> str:
    """Return a value with a true minus sign and no minus zero; an en dash where it is undefined."""
    if not math.isfinite(value):
        return DASH
    text = f"{value:.{digits}f}"
    return text.replace("-", "" if float(text) == 0 else MINUS)
