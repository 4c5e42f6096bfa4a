"""LW 5 and P 4: the writer's direct logit attribution against that of its erasers."""

from __future__ import annotations

from math import atan2, degrees
from typing import Any

import altair as alt
import numpy as np
import xarray as xr

from .parts import TOP, Row, data, haloed, layered, span, table, y_axis
from .plots import Chart
from .ramp import ramp
from .text import MINUS, number
from .theme import ERASER, INK, WRITER, erasers, frame

SIDE = 330
# The line of the fit's numbers, between a panel and its title.
FIT = 18
PANELS = {"output": "their whole output", "v_composition": "their V-composition alone"}
SHADES = ["#D5E2EE", "#8DB2D3", "#3B7BB0", "#123A5E"]

Range = tuple[float, float]


class Panel:
    """The frame of one panel: ranges of both axes in logits, sides in pixels, and what is drawn over its points."""

    def __init__(self, ds: xr.Dataset, x: Range, y: Range, width: int, height: int) -> None:
        self.ds, self.x, self.y, self.width, self.height = ds, x, y, width, height

    def axes(self, against: str) -> tuple[alt.X, alt.Y]:
        """Return the axes: writer across, erasers up, titled with what is summed over the erasers."""
        across = alt.X(
            "x:Q",
            scale=alt.Scale(domain=list(self.x), nice=False, zero=False),
            axis=alt.Axis(title=f"DLA of {self.ds.attrs['writer']} (logits)", grid=True, tickCount=6),
        )
        taken = PANELS[against]
        if against == "v_composition" and any(label.startswith("MLP") for label in erasers(self.ds)):
            taken = "the paths from the writer alone"
        return across, y_axis("y", self.y, f"DLA of the erasers, {taken} (logits)", lift=FIT)

    def segment(self, slope: float, intercept: float) -> list[Row]:
        """Return the part of a straight line inside the panel, as its two ends; empty if it misses the panel."""
        if not np.isfinite([slope, intercept]).all():
            return []
        ends = list(self.x)
        if slope:
            crossings = sorted((limit - intercept) / slope for limit in self.y)
            ends = [max(ends[0], crossings[0]), min(ends[1], crossings[1])]
        return [{"x": end, "y": slope * end + intercept} for end in ends] if ends[0] < ends[1] else []

    def chart(self, marks: Any, against: str) -> alt.LayerChart:
        """Return the marks under the line of perfect erasure, the fit, and the fit's numbers."""
        here = self.ds.sel(against=against)
        r, slope, intercept = (float(here[name]) for name in ("pearson_r", "slope", "intercept"))
        layers = [marks]
        if perfect := self.segment(-1.0, 0.0):
            line = Chart(data(perfect)).mark_line(color=INK, strokeWidth=1.4, strokeDash=[5, 4])
            layers.append(line.encode(x=alt.X("x:Q"), y=alt.Y("y:Q")))
        if fit := self.segment(slope, intercept):
            layers.append(
                Chart(data(fit)).mark_line(color=WRITER, strokeWidth=2.4).encode(x=alt.X("x:Q"), y=alt.Y("y:Q"))
            )
        if perfect:
            layers += self._along(perfect, above=slope * perfect[1]["x"] + intercept < perfect[1]["y"])
        words = f"fit: r = {number(r, 3)}, slope = {number(slope, 3)}, n = {int(here['n_points']):,}"
        text = Chart(data([{"words": words}])).mark_text(align="left", baseline="middle", color=WRITER)
        layers.append(text.encode(text=alt.Text("words:N"), x=alt.XValue(0), y=alt.YValue(-TOP)))
        return layered(layers, self.width, self.height)

    def _along(self, line: list[Row], *, above: bool) -> list[alt.Chart]:
        """Return the name of the dashed line, written along it at its lower end, on the side where the fit is not."""
        fall = (self.height / (self.y[1] - self.y[0])) / (self.width / (self.x[1] - self.x[0]))
        base = Chart(data([line[1] | {"words": "perfect erasure"}])).encode(
            x=alt.X("x:Q"), y=alt.Y("y:Q"), text=alt.Text("words:N")
        )
        side: dict[str, Any] = {"baseline": "bottom", "dy": -3} if above else {"baseline": "top", "dy": 3}
        return haloed(base, align="right", dx=-8, angle=degrees(atan2(fall, 1)), color=INK, **side)


def _used(edges: np.ndarray, counts: np.ndarray) -> tuple[Range, int]:
    """Return the range from one bin before the first point to one after the last, and how many bins it holds."""
    filled = np.flatnonzero(counts)
    first, last = (max(filled[0] - 1, 0), min(filled[-1] + 1, counts.size - 1)) if filled.size else (0, counts.size - 1)
    return (float(edges[first]), float(edges[last + 1])), int(last - first + 1)


def _notes(ds: xr.Dataset, left_out: int, kind: str) -> list[str]:
    roles = ", ".join(erasers(ds)) or "none"
    notes = [
        f"{kind} {int(ds['n_points'].max()):,} positions; r and the fitted line (orange) are those of the raw points. "
        f"Erasers: {roles}. Dashed: slope {MINUS}1, where they would cancel {ds.attrs['writer']} exactly."
    ]
    if left_out:
        notes.append(f"{left_out:,} points are not drawn: undefined, or outside the binned range.")
    return notes


def chart(ds: xr.Dataset) -> alt.ConcatChart:
    """Draw the density of (DLA of writer, DLA of erasers' sum), top-2 pair: whole output left, V-composition right.

    ds:  summary of `dla_scatter`: density[against, y_bin, x_bin], pearson_r, slope, intercept, n_points[against]; the
         bins' edges are attributes.
    Tests: tests/figures/test_paper_figures.py.
    """
    x_edges, y_edges = (np.asarray(ds.attrs[name], float) for name in ("x_edges", "y_edges"))
    counts = ds["density"].transpose("against", "y_bin", "x_bin").values
    (x, columns), (y, lines) = _used(x_edges, counts.sum((0, 1))), _used(y_edges, counts.sum((0, 2)))
    # Whole pixels per bin and a hairline in the cell's own colour: no seams between cells at any zoom.
    panel = Panel(ds, x, y, columns * max(2, round(SIDE / columns)), lines * max(2, round(SIDE / lines)))
    most = max(2, int(counts.max(initial=0)))
    scale = alt.Scale(type="log", domain=[1, most], range=SHADES, interpolate="lab")
    marks = [*(10**k for k in range(len(str(most)))), *([most] if most < 10 else [])]
    colour, edge = (channel("points:Q", scale=scale, legend=None) for channel in (alt.Color, alt.Stroke))
    panels = []
    for against, grid in zip((str(a) for a in ds["against"].values), counts, strict=True):
        across, up = panel.axes(against)
        row, column = np.nonzero(grid)
        corners = {"x": x_edges[column], "x2": x_edges[column + 1], "y": y_edges[row], "y2": y_edges[row + 1]}
        filled = table(f"density_{against}", **corners, points=grid[row, column])
        cells = Chart(filled).mark_rect(aria=False, strokeWidth=0.5)
        tip = alt.Tooltip("points:Q", format=",")
        cells = cells.encode(
            x=across, x2=alt.X2("x2:Q"), y=up, y2=alt.Y2("y2:Q"), color=colour, stroke=edge, tooltip=tip
        )
        panels.append(panel.chart(cells, against))
    asked = max(int(ds["n_points"].sum()), ds["answer_dla"].size if "answer_dla" in ds else 0)
    left_out = asked - int(counts.sum())
    bar = ramp("points per bin", scale, (1, most), marks, "format(datum.value, ',')")
    body = alt.hconcat(alt.hconcat(*panels, spacing=44), bar, spacing=24)
    return frame(body, ds, 2 * panel.width + 60, _notes(ds, left_out, "Density of"))


def points(ds: xr.Dataset) -> alt.ConcatChart:
    """Return the same two panels with every raw point, meant for PNG: as SVG or HTML 30,720 points weigh megabytes.

    ds:  as for `chart`, with the raw writer_dla[prompt, position] and answer_dla[against, prompt, position].
    Tests: tests/figures/test_paper_figures.py.
    """
    writer = ds["writer_dla"].values.ravel()
    answers = ds["answer_dla"].transpose("against", "prompt", "position").values.reshape(ds.sizes["against"], -1)
    panel = Panel(ds, span(writer, margin=0.03), span(answers.ravel(), margin=0.03), SIDE, SIDE)
    panels, left_out = [], 0
    for against, answer in zip((str(a) for a in ds["against"].values), answers, strict=True):
        kept = np.isfinite(writer) & np.isfinite(answer)
        left_out += int((~kept).sum())
        inline = table(f"points_{against}", x=writer[kept], y=answer[kept])
        across, up = panel.axes(against)
        # Many points show by where they crowd, a few by themselves.
        fewer = max(1.0, (20_000 / max(1, kept.sum())) ** 0.5)
        size, opacity = min(14.0, 3 * fewer), min(0.7, 0.16 * fewer)
        dots = Chart(inline).mark_square(size=size, color=ERASER, opacity=opacity, aria=False)
        dots = dots.encode(x=across, y=up)
        panels.append(panel.chart(dots, against))
    return frame(alt.hconcat(*panels, spacing=44), ds, 2 * SIDE + 60, _notes(ds, left_out, "All"))
