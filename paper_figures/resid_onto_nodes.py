"""Appendix: how much of every node's output every site holds."""

from __future__ import annotations

from math import ceil
from typing import Any

import altair as alt
import xarray as xr

from .parts import Row, data, layer_of, layered, quartile_rows, quartile_tip, role_colour
from .plots import Chart
from .ramp import ramp
from .text import MINUS, number, text_width
from .theme import INK, LABEL, PAPER, WRITER, counted, frame, undefined

# Equal distances from 0 are equally strong; 1, the whole output, is where orange is full.
LOW, HIGH = -1, 2
SCALE = alt.Scale(
    type="linear",
    domain=[LOW, 0, 1, HIGH],
    range=["#2C6FAE", "#FAFAF8", "#E8873A", "#5E2A0C"],
    clamp=True,
    interpolate="rgb",
)
ENDS = f"datum.value <= {LOW} ? '≤ {MINUS}1' : datum.value >= {HIGH} ? '≥ 2' : format(datum.value, 'd')"
UNDEFINED = "#B9C0C9"


class Grid:
    """Sites across, nodes down, in whole pixels; labels and printed values where there is room for them."""

    def __init__(self, nodes: list[str], sites: list[str], writer: str) -> None:
        self.nodes, self.sites = nodes, sites
        level = len(sites) <= 13
        self.wide = round(text_width("resid_post0", LABEL)) + 8 if level else 14
        self.tall = max(4, min(17, 1300 // len(nodes)))
        self.printed = level and self.tall > 12
        self.width, self.height = self.wide * len(sites), self.tall * len(nodes)
        self.firsts = [node for i, node in enumerate(nodes) if not i or layer_of(node) != layer_of(nodes[i - 1])]
        at = nodes.index(writer)
        every = ceil((LABEL + 1) * len(self.firsts) / self.height)
        clear = [node for node in self.firsts[::every] if abs(nodes.index(node) - at) * self.tall > LABEL]
        self._across: dict[str, Any] = {
            "scale": alt.Scale(domain=sites, padding=0),
            "axis": alt.Axis(title=None, orient="top", labelAngle=0 if level else -90),
        }
        shown = nodes if self.tall >= LABEL else [writer, *clear]
        colour = role_colour([writer], WRITER)
        self._down: dict[str, Any] = {
            "scale": alt.Scale(domain=nodes, padding=0),
            "axis": alt.Axis(title=None, values=shown, labelOverlap=False, labelColor=colour),
        }

    def x(self, **more: Any) -> alt.X:
        """Return the encoding of sites."""
        return alt.X("site:O", **self._across, **more)

    def y(self, **more: Any) -> alt.Y:
        """Return the encoding of nodes."""
        return alt.Y("node:O", **self._down, **more)

    def overlay(self, writer: str) -> list[alt.Chart]:
        """Draw gaps between layers, a stroke where each node first is in the stream, and a frame around the writer."""
        gaps = Chart(data({"node": n} for n in self.firsts[1:])).mark_rule(
            color=PAPER, opacity=1, strokeWidth=3 if self.printed else 1
        )
        writes: list[Row] = []
        for node in self.nodes:
            site = f"resid_{'post' if node.startswith('MLP') else 'mid'}{layer_of(node)}"
            if site in self.sites:
                writes.append({"node": node, "site": site})
        strokes = Chart(data(writes)).mark_tick(orient="vertical", thickness=2, color=INK, opacity=1, size=self.tall)
        row = Chart(data([{"node": writer}])).mark_rect(filled=False, stroke=WRITER, strokeWidth=2, opacity=1)
        return [
            gaps.encode(y=self.y(bandPosition=0)),
            strokes.encode(x=self.x(bandPosition=0), y=self.y()),
            row.encode(y=self.y()),
        ]


def _rows(ds: xr.Dataset) -> list[Row]:
    rows = quartile_rows(ds["pr"], ds.get("nan_count"))
    for row in rows:
        median = row["median"]
        row["printed"] = "" if median is None else number(median)
        row["ink"] = PAPER if median is not None and (median > 1.25 or median < -0.75) else INK
    return rows


def chart(ds: xr.Dataset) -> alt.ConcatChart:
    """Draw the median projection ratio of every site (across) onto every node (down), a stroke where the node writes.

    ds:  summary of `sites_onto_nodes`: pr[quantile, node, site], nan_count[node, site].
    Tests: tests/figures/test_paper_figures.py.
    """
    writer = str(ds.attrs["writer"])
    grid = Grid([str(n) for n in ds["node"].values], [str(s) for s in ds["site"].values], writer)
    rows = _rows(ds)
    tips = quartile_tip("node", "site", count="nan_count" in ds)
    known, holes = [row for row in rows if row["median"] is not None], [row for row in rows if row["median"] is None]
    base = Chart(data(known)).encode(x=grid.x(), y=grid.y(), tooltip=tips)
    cells = base.mark_rect(aria=False).encode(color=alt.Color("median:Q", scale=SCALE, legend=None))
    empty = Chart(data(holes)).mark_rect(color=UNDEFINED).encode(x=grid.x(), y=grid.y(), tooltip=tips)
    values = [
        base.transform_filter(alt.datum.ink == ink).mark_text(fontSize=9, color=ink).encode(text=alt.Text("printed:N"))
        for ink in (INK, PAPER)
        if grid.printed
    ]
    beyond = sum(not LOW <= row["median"] <= HIGH for row in known)
    where = "the figure prints them all" if grid.printed else "a pointer shows each value"
    notes = [
        f"Medians over {counted(ds)}. Dark stroke: where the node writes. Framed: {writer}, the writer.",
        f"Colours end at {number(LOW, 0)} and {HIGH}; "
        + (f"{beyond:,} of {len(rows):,} medians lie beyond ({where})." if beyond else "no median lies beyond."),
        *undefined(ds, "pr", "nan_count", shown="grey"),
    ]
    body = layered([cells, empty, *values, *grid.overlay(writer)], grid.width, grid.height)
    bar = ramp("median PR", SCALE, (LOW, HIGH), (LOW, 0, 1, HIGH), ENDS)
    return frame(alt.hconcat(body, bar, spacing=24), ds, grid.width, notes)
