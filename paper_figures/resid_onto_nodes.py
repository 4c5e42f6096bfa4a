"""Appendix: how much of every node's output every site holds."""

from __future__ import annotations

import altair as alt
import xarray as xr

from .parts import Row, data, layer_of, options, quartile_rows, quartile_tip, role_colour
from .text import number, text_width
from .theme import INK, LABEL, PAPER, SOFT, WRITER, counted, frame, undefined

OPTIONS: dict[str, str] = {}

# Equal distances from 0 are equally strong; 1, the whole output, is where orange is full.
LOW, HIGH = -1.0, 2.0
SCALE = alt.Scale(
    type="linear",
    domain=[LOW, 0, 1, HIGH],
    range=["#2C6FAE", "#FAFAF8", "#E8873A", "#5E2A0C"],
    clamp=True,
    interpolate="rgb",
)
ENDS = f"datum.value <= {LOW} ? '≤ −1' : datum.value >= {HIGH} ? '≥ 2' : datum.label"
UNDEFINED = "#C9CED6"


def _first_site(node: str, sites: list[str]) -> str | None:
    site = f"resid_{'post' if node.startswith('MLP') else 'mid'}{layer_of(node)}"
    return site if site in sites else None


def chart(ds: xr.Dataset) -> alt.VConcatChart:
    """Median projection ratio of every site (across) onto every node (down), a stroke where the node writes.

    ds:  summary of `sites_onto_nodes`: pr[quantile, node, site], nan_count[node, site]. Tests: tests/test_paper_figures.py.
    """
    options(ds, OPTIONS)
    nodes, sites = ([str(label) for label in ds[dim].values] for dim in ("node", "site"))
    writer = str(ds.attrs["writer"])
    wide = text_width("resid_post0", LABEL) + 8 if len(sites) <= 13 else 15.0
    tall = min(17.0, max(5.0, 1500 / len(nodes)))
    width, height = max(360, round(wide * len(sites))), round(tall * len(nodes))
    printed = wide > 40 and tall > 12
    rows = quartile_rows(ds["pr"], ds.get("nan_count"))
    for row in rows:
        median = row["median"]
        row["printed"] = "" if median is None else number(median)
        row["ink"] = PAPER if median is not None and (median > 1.25 or median < -0.75) else INK
    clipped = sum(row["median"] is not None and not LOW <= row["median"] <= HIGH for row in rows)
    firsts = [node for node in nodes if node == nodes[0] or layer_of(node) != layer_of(nodes[nodes.index(node) - 1])]
    x_parts = {
        "scale": alt.Scale(domain=sites, padding=0),
        "axis": alt.Axis(title=None, orient="top", labelAngle=0 if len(sites) <= 13 else -90),
    }
    x = alt.X("site:O", **x_parts)
    shown = nodes if tall >= 11 else firsts
    y_parts = {
        "scale": alt.Scale(domain=nodes, padding=0),
        "axis": alt.Axis(title=None, values=shown, labelOverlap=False, labelColor=role_colour([writer], WRITER)),
    }
    y = alt.Y("node:O", **y_parts)
    tips = quartile_tip("node", "site", count="nan_count" in ds)
    base = alt.Chart(data(rows)).encode(x=x, y=y, tooltip=tips)
    legend = alt.Legend(title="median PR", orient="right", gradientLength=160, values=[LOW, 0, 1, HIGH], labelExpr=ENDS)
    cells = base.transform_filter("isValid(datum.median)").mark_rect().encode(color=alt.Color("median:Q", scale=SCALE, legend=legend))
    holes = base.transform_filter("!isValid(datum.median)").mark_rect(color=UNDEFINED)
    figures = [
        base.transform_filter(alt.datum.ink == ink).mark_text(fontSize=9, color=ink).encode(text="printed:N")
        for ink in (INK, PAPER)
        if printed
    ]
    writes: list[Row] = [{"node": n, "site": s} for n in nodes if (s := _first_site(n, sites))]
    strokes = alt.Chart(data(writes)).mark_tick(orient="vertical", thickness=2, color=INK, size=tall).encode(
        x=alt.X("site:O", **x_parts, bandPosition=0), y=y
    )
    layers = alt.Chart(data({"node": n} for n in firsts[1:])).mark_rule(color=PAPER, strokeWidth=3 if tall > 8 else 1).encode(
        y=alt.Y("node:O", **y_parts, bandPosition=0)
    )
    outline = alt.Chart(data([{"node": writer}])).mark_rect(filled=False, stroke=WRITER, strokeWidth=2).encode(y=y)
    notes = [
        f"Medians over {counted(ds)}. Dark stroke: where the node writes. Outlined: {writer}, the writer.",
        f"Colours end at {number(LOW, 0)} and {number(HIGH, 0)}: {clipped:,} of {len(rows):,} medians lie beyond and take the end colour"
        + (", their value is printed." if printed else "; a pointer shows their value."),
        *undefined(ds, "nan_count"),
    ]
    body = alt.layer(cells, holes, *figures, layers, strokes, outline).properties(width=width, height=height)
    return frame(body, ds, width, notes)
