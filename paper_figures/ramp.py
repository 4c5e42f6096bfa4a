"""The colour bar beside a density or a heat map.

A legend of the renderer's own is a gradient, whose name in an SVG counts the gradients drawn before it: the bytes of
a figure would depend on what else was drawn. This one is made of slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import altair as alt
import numpy as np

from .parts import TOP, data, layered, plain
from .plots import Chart
from .theme import INK

SLICES, WIDE, TALL = 60, 12, 150


def ramp(
    title: str, scale: alt.Scale, ends: tuple[float, float], values: Sequence[float], ticks: str
) -> alt.LayerChart:
    """Return a column of colours from the lower end to the upper one, labelled at `values`.

    scale: the colour scale of the figure; ends: its range; ticks: a Vega expression that words each label.
    """
    logarithmic = scale.to_dict().get("type") == "log"
    edges = np.geomspace(*ends, SLICES + 1) if logarithmic else np.linspace(*ends, SLICES + 1)
    rows = [
        {"from": plain(a), "to": plain(b), "value": plain((a * b) ** 0.5 if logarithmic else (a + b) / 2)}
        for a, b in pairwise(edges)
    ]
    y = alt.Y(
        "from:Q",
        scale=alt.Scale(type="log", domain=list(ends), nice=False)
        if logarithmic
        else alt.Scale(type="linear", domain=list(ends), nice=False, zero=False),
        axis=alt.Axis(title=None, orient="right", values=list(values), labelExpr=ticks, grid=False, labelPadding=5),
    )
    colours = {
        "color": alt.Color("value:Q", scale=scale, legend=None),
        "stroke": alt.Stroke("value:Q", scale=scale, legend=None),
    }
    slices = Chart(data(rows)).mark_rect(strokeWidth=0.5, aria=False).encode(y=y, y2=alt.Y2("to:Q"), **colours)
    words = Chart(data([{"title": title}])).mark_text(align="left", baseline="middle", color=INK)
    return layered([slices, words.encode(text=alt.Text("title:N"), x=alt.XValue(0), y=alt.YValue(-TOP))], WIDE, TALL)
