"""A small picture of one writer: how much of what it wrote the residual stream holds, site by site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

WIDE, HIGH = 640, 190
LEFT, RIGHT, TOP, BOTTOM = 34, 12, 26, 34
NAME = 60
"""Room for an eraser's name beside its band."""


def presence_svg(sites: Sequence[str], bands: np.ndarray, written: int, erasers: Mapping[int, str], writer: str) -> str:
    """Return the presence of a writer along the stream as SVG, coloured by the page's style sheet.

    bands: lower quartile, median and upper quartile over prompts [3, site]; written: index of the first site that holds
    the writer; erasers: index of the site after each eraser (or the last of several) -> its label.
    """
    top = max(1.2, float(np.nanmax(bands[2])) * 1.08)
    low = min(0.0, float(np.nanmin(bands[0])))
    n = len(sites)

    def x(i: float) -> float:
        return LEFT + i * (WIDE - LEFT - RIGHT) / max(n - 1, 1)

    def y(value: float) -> float:
        return TOP + (top - value) * (HIGH - TOP - BOTTOM) / (top - low)

    def points(values: np.ndarray, order: Sequence[int]) -> str:
        return " ".join(f"{x(i):.1f},{y(float(values[i])):.1f}" for i in order if np.isfinite(values[i]))

    forward = range(n)
    parts = [f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-labelledby="presence-title" class="presence">']
    said = ", ".join(f"{site} {float(bands[1, i]):.2f}" for i, site in enumerate(sites))
    parts.append(f'<title id="presence-title">Presence of {escape(writer)} by site: {escape(said)}</title>')
    for value in [0, 1, *([2] if top > 2.2 else [])]:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value}</text>')
    parts += _spans(erasers, x)
    if np.isfinite(bands).all():
        parts.append(f'<polygon class="band" points="{points(bands[2], forward)} {points(bands[0], forward[::-1])}"/>')
    parts.append(f'<polyline class="line" points="{points(bands[1], forward)}"/>')
    parts += [f'<circle class="dot" cx="{x(i):.1f}" cy="{y(float(bands[1, i])):.1f}" r="3.2"/>' for i in forward]
    parts.append(
        f'<text class="mark writes" x="{x(written):.1f}" y="14" text-anchor="middle">{escape(writer)} writes</text>'
    )
    parts.append(f'<line class="at" x1="{x(written):.1f}" x2="{x(written):.1f}" y1="20" y2="{HIGH - BOTTOM}"/>')
    step = max(1, round(n / 9))
    step += step > 1 and step % 2  # sites of one kind, after every so many layers
    for i in range(0, n, step):
        anchor = "start" if i == 0 else "end" if i == n - 1 else "middle"
        parts.append(f'<text class="tick" x="{x(i):.1f}" y="{HIGH - 12}" text-anchor="{anchor}">{sites[i][6:]}</text>')
    return "".join([*parts, "</svg>"])


def _spans(erasers: Mapping[int, str], x: Callable[[float], float]) -> list[str]:
    """Return rectangles from the site that each eraser reads to the one after it, named where there is room."""
    parts, free = [], 0.0
    for step, label in sorted(erasers.items()):
        left, right = x(step - 1), x(step)
        parts.append(
            f'<rect class="erased" x="{left:.1f}" y="20" width="{right - left:.1f}" height="{HIGH - BOTTOM - 20}"/>'
        )
        if left >= free and right + NAME <= WIDE:
            name = f'<text class="mark takes" x="{right + 4:.1f}" y="{HIGH - BOTTOM - 6}">{escape(label)}</text>'
            parts.append(name)
            free = right + NAME
    return parts
