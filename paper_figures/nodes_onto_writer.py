"""LW 2 and P 2: what every component writes along the writer's output."""

from __future__ import annotations

from itertools import groupby
from math import ceil
from typing import Any

import altair as alt
import xarray as xr

from .parts import (
    STRIP,
    Row,
    data,
    drawn,
    key,
    layer_of,
    layered,
    quartile_rows,
    quartile_tip,
    references,
    role_colour,
    span,
    spread,
    whiskers,
    y_axis,
)
from .plots import Chart
from .text import number, text_width
from .theme import CLEAN, ERASER, INK, LABEL, OTHER, SOFT, counted, erasers, frame, quartile_words, undefined

OPTIONS = {"layers": "the layers whose components are drawn, as a list; all of them by default"}
TALL = 400
SUM, SUM_LABEL, SUM_ROOM = "erasers", "sum", 104.0
# From so many components on there is no room for each one's label: erasers are named below leaders of this height.
MANY, LEADER = 64, 20
# Pixels that the number of a layer needs.
NUMBER_ROOM = 18


class Places:
    """The horizontal scale: every component in model order, then, set apart, the sum over the erasers."""

    def __init__(self, nodes: list[str], writer: str, roles: list[str], *, total: bool) -> None:
        self.nodes, self.many = nodes, len(nodes) > MANY
        self.numbered = False
        self.step = (
            max(4.0, min(12.0, 1200 / len(nodes)))
            if self.many
            else max(20.0, min(46.0, 700 / len(nodes)), 420 / len(nodes))
        )
        blank = [" " * i for i in range(1, 1 + ceil(SUM_ROOM / self.step))] if total else []
        places = [*nodes, *blank, *([SUM_LABEL] if total else [])]
        self.width = round(self.step * len(places))
        self.scale = alt.Scale(domain=places, padding=0)
        self.marked = {
            label: (places.index(label) + 0.5) * self.step for label in (*roles, SUM_LABEL) if label in places
        }
        title = f"component, in model order (all but {writer})"
        if self.many:
            deep = LEADER + 12 + max((text_width(label, LABEL) for label in self.marked), default=0)
            self.axis = alt.Axis(title=title, labels=False, titlePadding=deep)
        else:
            self.axis = alt.Axis(title=title, labelAngle=-90, labelColor=role_colour([*roles, SUM_LABEL]))

    def x(self, field: str = "component", band: float | None = None) -> alt.X:
        """Return the encoding, the same for every layer; `band` 0 or 1 takes the near or the far end of a place."""
        more: dict[str, Any] = {} if band is None else {"bandPosition": band}
        return alt.X(field=field, type="ordinal", scale=self.scale, axis=self.axis, **more)

    def names(self) -> list[alt.Chart]:
        """Return the labels of erasers and sum where the axis has none: moved apart, each led to its bar."""
        if not self.many or not self.marked:
            return []
        placed = spread(list(self.marked.values()), LABEL + 2, 0, self.width)
        layers = []
        for (label, bar), at in zip(self.marked.items(), placed, strict=True):
            base = Chart(data([{"label": label}]))
            lead = base.mark_rule(color=ERASER, strokeWidth=1, opacity=0.7)
            name = base.mark_text(color=ERASER, angle=270, align="right", baseline="middle", fontSize=LABEL)
            ends = {"y": alt.YValue(TALL + 4), "y2": alt.Y2Value(TALL + LEADER)}
            layers.append(lead.encode(x=alt.XValue(bar), x2=alt.X2Value(at), **ends))
            layers.append(name.encode(text=alt.Text("label:N"), x=alt.XValue(at), y=alt.YValue(TALL + LEADER + 4)))
        return layers

    def layers(self) -> list[alt.Chart]:
        """Return every other layer shaded, each with its name above."""
        rows: list[Row] = []
        for layer, group in groupby(self.nodes, key=layer_of):
            members = list(group)
            middle, wide = (self.nodes.index(members[0]) + len(members) / 2) * self.step, len(members) * self.step
            words = f"layer {layer}" if wide > 60 else "" if layer % ceil(NUMBER_ROOM / wide) else f"{layer}"
            self.numbered = self.numbered or wide <= 60
            rows.append({"from": members[0], "to": members[-1], "words": words, "middle": middle, "odd": layer % 2})
        odd = Chart(data(row for row in rows if row["odd"])).mark_rect(color=SOFT, opacity=0.07)
        far = alt.X2(field="to", bandPosition=1)
        bands = odd.encode(x=self.x("from", 0), x2=far, y=alt.YValue(-STRIP), y2=alt.Y2Value(TALL))
        names = [
            Chart(data([row]))
            .mark_text(baseline="middle", color=SOFT)
            .encode(text=alt.Text("words:N"), x=alt.XValue(row["middle"]), y=alt.YValue(-STRIP / 2))
            for row in rows
        ]
        return [bands, *names]


def _chosen(ds: xr.Dataset, layers: list[int] | None) -> list[str]:
    nodes = [str(c) for c in ds["component"].values if str(c) != SUM]
    kept = [node for node in nodes if layers is None or layer_of(node) in layers]
    if not kept:
        raise ValueError(f"option 'layers' is {layers}: the summary holds no component of these layers")
    return kept


def _rows(here: xr.Dataset, roles: list[str]) -> list[Row]:
    rows = quartile_rows(here["pr"], here.get("nan_count"))
    for row in rows:
        label, total = row["component"], row["component"] == SUM
        row["colour"] = ERASER if total or label in roles else CLEAN if label.startswith("MLP") else OTHER
        row["component"] = SUM_LABEL if total else label
        row["printed"] = f"sum of erasers\n{number(row['median'], 3)}" if total and row["median"] is not None else ""
    return rows


def _bars(rows: list[Row], places: Places, domain: tuple[float, float], title: str, *, count: bool) -> list[alt.Chart]:
    """Draw bars with their quartiles; where there are many the quartiles are thin and lie behind."""
    middle, low = (y_axis(name, domain, title, lift=STRIP) for name in ("median", "lower"))
    base = Chart(data(rows)).encode(x=places.x(), tooltip=quartile_tip("component", count=count))
    single = base.transform_filter(alt.datum.printed == "")
    total = base.transform_filter(alt.datum.printed != "")
    colour = alt.Color("colour:N", scale=None)
    bars = single.mark_bar(width=alt.RelativeBandSize(0.7)).encode(y=middle, color=colour)
    sums = total.mark_bar(width=16).encode(y=middle, color=colour)
    words = total.mark_text(
        fontWeight="bold", color=ERASER, align="right", baseline="middle", dx=-14, lineBreak="\n", lineHeight=15
    ).encode(y=middle, text=alt.Text("printed:N"))
    if places.many:
        thin = single.mark_rule(color=INK, strokeWidth=0.8, opacity=0.45).encode(y=low, y2=alt.Y2("upper:Q"))
        return [*references([0]), thin, bars, sums, *whiskers(total, low), words]
    return [bars, sums, *references([0]), *whiskers(base, low), words]


def chart(ds: xr.Dataset) -> alt.ConcatChart:
    """Draw the projection ratio onto the writer of each component, in model order, and of the erasers' sum.

    ds:  summary of `nodes_onto_writer`: pr[quantile, component], nan_count[component].
    Tests: tests/figures/test_paper_figures.py.
    """
    writer, roles = str(ds.attrs["writer"]), erasers(ds)
    nodes = _chosen(ds, ds.attrs["options"].get("layers"))
    total = SUM in {str(c) for c in ds["component"].values}
    here = ds.sel(component=[*nodes, SUM] if total else nodes)
    rows, places = _rows(here, roles), Places(nodes, writer, roles, total=total)
    title = f"projection ratio PR(component, {writer})"
    bars = _bars(rows, places, span(drawn(rows), 0), title, count="nan_count" in ds)
    others = [("other heads", OTHER, SOFT), ("MLPs", CLEAN, CLEAN)]
    legend = key([("erasers", ERASER, ERASER), *others] if roles else others, places.width, STRIP)
    notes = [f"Bars: medians over {counted(ds)}; lines: {quartile_words(ds)}.", *undefined(here, "pr", "nan_count")]
    if total:
        notes.append(f"Sum of erasers ({', '.join(roles)}): added up at every position, then the median.")
    body = layered([*places.layers(), *bars, *places.names(), *legend], places.width, TALL)
    notes += ["Numbers above the plot: layers."] if places.numbered else []
    return frame(body, ds, places.width, notes)
