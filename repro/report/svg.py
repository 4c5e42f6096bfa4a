"""Drawings as they stand on the page where nothing is drawn: ids of their own, and no byte that nobody sees."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"-?\d+\.\d{3,}(?:e-?\d+)?|-?\d+(?:\.\d+)?e-\d+")
_LABELS = re.compile(r' (?:aria-label|aria-roledescription|aria-hidden|role)="[^"]*"')
_RGB = re.compile(r"rgb\((\d+), (\d+), (\d+)\)")
_SHAPE = re.compile(r'<path d="([^"]*)"((?: [\w-]+="[^"]*")*)/>')


def still(svg: str, name: str) -> str:
    """Return an SVG as part of a page of many: its ids end up unique, its numbers hundredths of a pixel.

    Marks lose the labels that a screen reader would read one by one, since the group around the drawing describes it;
    neighbours that are painted alike become one path, unless something is drawn over itself that way.
    svg: as the renderer writes it; name: the drawing's, put before each id. Agreement: tests/report/test_parts.py.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="([\w-]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([\w-]+)\)", rf"url(#{name}-\1)", svg)
    svg = "".join(part if part.startswith(">") else _tag(part) for part in re.split(r"(>[^<]+)", svg))
    return _together(svg)


def _tag(text: str) -> str:
    """Return tags, without their text, made shorter."""
    text = _NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), text)
    text = _RGB.sub(lambda found: "#" + "".join(f"{int(part):02x}" for part in found.groups()), text)
    return _LABELS.sub("", text)


def _together(svg: str) -> str:
    """Return an SVG whose neighbouring opaque paths of the same paint are one path."""
    out: list[str] = []
    at, paint = 0, None
    for found in _SHAPE.finditer(svg):
        same = found[2] == paint and found.start() == at and "opacity" not in found[2] and "transform" not in found[2]
        if same:
            out[-1] = out[-1] + found[1]
        else:
            if paint is not None:
                out.append(f'"{paint}/>')
            out += [svg[at : found.start()], '<path d="', found[1]]
        at, paint = found.end(), found[2]
    if paint is not None:
        out.append(f'"{paint}/>')
    return "".join(out) + svg[at:]
