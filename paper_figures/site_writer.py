"""LW 1 bottom: the writer's output in the residual stream, with its quartiles."""

from __future__ import annotations

import altair as alt
import xarray as xr

from .parts import STRIP, Row, Sites, data, drawn, layer_of, options, quartile_rows, quartile_tip, references, span, y_axis
from .text import number
from .theme import ERASER, HEIGHT, WRITER, counted, erasers, frame, quartile_words, undefined

OPTIONS: dict[str, str] = {}


def shades(ds: xr.Dataset) -> dict[int, tuple[str, str]]:
    """The two layers to shade: where the writer writes, and where the erasers (if any) erase."""
    writer = str(ds.attrs["writer"])
    layers = {layer_of(head) for head in erasers(ds)}
    marked = {layer: (f"layer {layer}: erasers", ERASER) for layer in sorted(layers)}
    return marked | {layer_of(writer): (f"layer {layer_of(writer)}: {writer} writes", WRITER)}


def _print_medians(rows: list[Row], domain: tuple[float, float]) -> None:
    """The medians as words, each on the side of its point where a steep line does not run."""
    steep = 0.2 * (domain[1] - domain[0])
    medians = [row["median"] for row in rows]
    for row, before, here, after in zip(rows, [None, *medians], medians, [*medians[1:], None], strict=False):
        row["printed"] = "" if here is None else number(here)
        falls = None not in (before, here) and before - here > steep
        rises = None not in (after, here) and after - here > steep
        row["side"] = "left" if falls else "right" if rises else "center"


def chart(ds: xr.Dataset) -> alt.VConcatChart:
    """Projection ratio of every site onto the writer: median line, quartile band, and the layers that matter shaded.

    ds:  summary of `sites_onto_nodes`: pr[quantile, node, site], nan_count[node, site]. Tests: tests/test_paper_figures.py.
    """
    options(ds, OPTIONS)
    writer = str(ds.attrs["writer"])
    here = ds.sel(node=[writer])
    sites = Sites([str(s) for s in ds["site"].values])
    rows = quartile_rows(here["pr"], here.get("nan_count"))
    domain = span(drawn(rows), 0, 1)
    _print_medians(rows, domain)
    title = f"projection ratio PR(site, {writer})"
    y = y_axis("median", domain, title, lift=STRIP)
    base = alt.Chart(data(rows)).encode(x=sites.x())
    band = base.mark_area(color=WRITER, opacity=0.2).encode(y=y_axis("lower", domain, title, lift=STRIP), y2="upper:Q")
    line = base.mark_line(color=WRITER, strokeWidth=3).encode(y=y)
    tips = quartile_tip("site", count="nan_count" in ds)
    points = base.mark_point(color=WRITER, filled=True, size=70, opacity=1).encode(y=y, tooltip=tips)
    printed = [
        base.transform_filter(alt.datum.side == side)
        .mark_text(dy=-15, dx=dx, align=side, color=WRITER, fontWeight="bold")
        .encode(y=y, text="printed:N")
        for side, dx in (("left", 5), ("center", 0), ("right", -5))
        if not sites.turned
    ]
    notes = [f"Line: median over {counted(ds)}; band: {quartile_words(ds)}.", *undefined(here, "nan_count")]
    layers = [*sites.shade(shades(ds)), references([0, 1]), band, line, points, *printed]
    return frame(alt.layer(*layers).properties(width=sites.width, height=HEIGHT), ds, sites.width, notes)
