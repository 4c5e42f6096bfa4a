"""LW 2 and P 2: what every component writes along the writer's output."""

from __future__ import annotations

from itertools import groupby

import altair as alt
import xarray as xr

from .parts import STRIP, Row, data, drawn, key, layer_of, options, quartile_rows, quartile_tip, references, role_colour, span, whiskers, y_axis
from .text import number
from .theme import CLEAN, ERASER, HEIGHT, INK, LABEL, OTHER, SOFT, counted, erasers, frame, quartile_words, undefined

OPTIONS = {"layers": "the layers whose components are drawn; all of them by default"}
SUM = "erasers"
TALL = 400
SUM_LABEL = "sum"
# Empty places that set the sum apart, and hold its words.
_GAP = [" " * i for i in range(1, 6)]


def _components(ds: xr.Dataset, layers: list[int] | None) -> list[str]:
    nodes = [str(c) for c in ds["component"].values if str(c) != SUM]
    kept = [node for node in nodes if layers is None or layer_of(node) in layers]
    if not kept:
        raise ValueError(f"option 'layers' is {layers}: the summary holds no component of these layers")
    return kept


def _layer_strip(nodes: list[str], step: float, scale: alt.Scale, axis: alt.Axis) -> alt.LayerChart:
    rows: list[Row] = []
    for layer, group in groupby(nodes, key=layer_of):
        members = list(group)
        middle = (nodes.index(members[0]) + len(members) / 2) * step
        words = f"layer {layer}" if len(members) * step > 60 else f"{layer}"
        rows.append({"from": members[0], "to": members[-1], "words": words, "middle": middle, "odd": layer % 2})
    base = alt.Chart(data(rows))
    shade = base.transform_filter(alt.datum.odd == 1).mark_rect(color=SOFT, opacity=0.06)
    bands = shade.encode(
        x=alt.X("from:O", scale=scale, axis=axis, bandPosition=0),
        x2=alt.X2(field="to", bandPosition=1),
        y=alt.value(-STRIP),
        y2=alt.value(TALL),
    )
    words = [
        alt.Chart(data([row])).mark_text(baseline="middle", color=SOFT).encode(
            text="words:N", x=alt.value(row["middle"]), y=alt.value(-STRIP / 2)
        )
        for row in rows
    ]
    return alt.layer(bands, *words)


def chart(ds: xr.Dataset) -> alt.VConcatChart:
    """Projection ratio of each component onto the writer, in model order, and of the erasers' sum: bars and quartiles.

    ds:  summary of `nodes_onto_writer`: pr[quantile, component], nan_count[component]. Tests: tests/test_paper_figures.py.
    """
    layers = options(ds, OPTIONS).get("layers")
    writer, roles = str(ds.attrs["writer"]), erasers(ds)
    nodes = _components(ds, layers)
    total = [SUM] if SUM in {str(c) for c in ds["component"].values} else []
    here = ds.sel(component=[*nodes, *total])
    rows = quartile_rows(here["pr"], here.get("nan_count"))
    for row in rows:
        label = row["component"]
        row["colour"] = ERASER if label in roles or label == SUM else CLEAN if label.startswith("MLP") else OTHER
        row["component"] = SUM_LABEL if label == SUM else label
        row["printed"] = f"sum of erasers\n{number(row['median'], 3)}" if label == SUM and row["median"] is not None else ""
    domain = span(drawn(rows), 0)
    places = [*nodes, *([*_GAP, SUM_LABEL] if total else [])]
    dense = len(nodes) > 64
    step = max(4.0, 1100 / len(places)) if dense else max(20.0, min(46.0, 640 / len(places)))
    width = round(step * len(places))
    heading = f"component, in model order (all but {writer})"
    axis = alt.Axis(title=heading, labelAngle=-90, labelColor=role_colour([*roles, SUM_LABEL]))
    if dense:
        axis = alt.Axis(title=heading, labelAngle=-90, values=[n for n in nodes if n in roles] + [SUM_LABEL])
    scale = alt.Scale(domain=places, padding=0)
    x = alt.X("component:O", scale=scale, axis=axis)
    title = f"projection ratio PR(component, {writer})"
    tips = quartile_tip("component", count="nan_count" in ds)
    base = alt.Chart(data(rows)).encode(x=x, tooltip=tips)
    bars = base.mark_bar(width=alt.RelativeBandSize(0.7)).encode(
        y=y_axis("median", domain, title, lift=STRIP), color=alt.Color("colour:N", scale=None)
    )
    errors = whiskers(base, y_axis("lower", domain, title, lift=STRIP))
    value = base.transform_filter(alt.datum.printed != "").mark_text(
        fontWeight="bold", color=ERASER, align="right", baseline="middle", dx=-step / 2 - 2, lineBreak="\n", lineHeight=15
    )
    value = value.encode(y=y_axis("median", domain, title, lift=STRIP), text="printed:N")
    legend = key(
        [("erasers", ERASER, ERASER)] * bool(roles) + [("other heads", OTHER, SOFT), ("MLPs", CLEAN, CLEAN)], width, STRIP
    )
    notes = [f"Bars: medians over {counted(ds)}; lines: {quartile_words(ds)}.", *undefined(here, "nan_count")]
    if total:
        notes.append(f"Sum of erasers ({', '.join(roles)}): added up at every position, then the median.")
    body = alt.layer(_layer_strip(nodes, step, scale, axis), bars, references([0]), *errors, value, *legend)
    return frame(body.properties(width=width, height=TALL), ds, width, notes)
