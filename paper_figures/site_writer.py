"""LW 1 bottom: the writer's output in the residual stream, with its quartiles."""

from __future__ import annotations

from typing import Any

import altair as alt
import xarray as xr

from .parts import (
    STRIP,
    Row,
    Sites,
    data,
    drawn,
    layer_of,
    layered,
    quartile_rows,
    quartile_tip,
    references,
    span,
    y_axis,
)
from .plots import Chart
from .text import number
from .theme import ERASER, HEIGHT, WRITER, counted, erasers, frame, quartile_words, undefined

# Where a printed median stands beside its point, and how far off.
_SIDES: dict[Any, int] = {"left": 5, "center": 0, "right": -5}


def _shades(writer: str, roles: list[str]) -> dict[int, tuple[str, str]]:
    """Return the layers to shade: where the writer writes, and where the erasers (if any) erase."""
    marked = {layer: (f"layer {layer}: erasers", ERASER) for layer in sorted({layer_of(label) for label in roles})}
    own = layer_of(writer)
    beside = " and is erased" if own in marked else ""
    return marked | {own: (f"layer {own}: {writer} writes{beside}", WRITER)}


def _print_medians(rows: list[Row], domain: tuple[float, float]) -> None:
    """Print the medians above a point or (negative ones) below, on the side where no steep line runs."""
    steep = 0.2 * (domain[1] - domain[0])
    medians = [row["median"] for row in rows]
    for row, before, here, after in zip(rows, [None, *medians], medians, [*medians[1:], None], strict=False):
        row["away"] = away = -1 if here is not None and here < 0 else 1
        row["printed"] = "" if here is None else number(here)
        left, right = (
            here is not None and other is not None and away * (other - here) > steep for other in (before, after)
        )
        row["side"] = "left" if left else "right" if right else "center"


def chart(ds: xr.Dataset) -> alt.ConcatChart:
    """Draw the projection ratio of every site onto the writer: median, quartile band, and shaded layers that matter.

    ds:  summary of `sites_onto_nodes`: pr[quantile, node, site], nan_count[node, site].
    Tests: tests/figures/test_paper_figures.py.
    """
    writer = str(ds.attrs["writer"])
    here, sites = ds.sel(node=[writer]), Sites([str(s) for s in ds["site"].values])
    rows = quartile_rows(here["pr"], here.get("nan_count"))
    domain = span(drawn(rows), 0, 1)
    _print_medians(rows, domain)
    middle, low = (
        y_axis(name, domain, f"projection ratio PR(site, {writer})", lift=STRIP) for name in ("median", "lower")
    )
    base = Chart(data(rows)).encode(x=sites.x())
    band = base.mark_area(color=WRITER, opacity=0.2).encode(y=low, y2=alt.Y2("upper:Q"))
    line = base.mark_line(color=WRITER, strokeWidth=3).encode(y=middle)
    tips = quartile_tip("site", count="nan_count" in ds)
    points = base.mark_point(color=WRITER, filled=True, size=70, opacity=1).encode(y=middle, tooltip=tips)
    printed = [
        base.transform_filter((alt.datum.side == side) & (alt.datum.away == away))
        .mark_text(dy=-15 * away, dx=dx, align=side, color=WRITER, fontWeight="bold")
        .encode(y=middle, text=alt.Text("printed:N"))
        for side, dx in _SIDES.items()
        for away in (1, -1)
        if not sites.turned
    ]
    notes = [f"Line: median over {counted(ds)}; band: {quartile_words(ds)}.", *undefined(here, "pr", "nan_count")]
    shade = sites.shade(_shades(writer, erasers(ds)))
    body = layered([*shade, *references([0, 1]), band, line, points, *printed], sites.width, HEIGHT)
    return frame(body, ds, sites.width, notes)
