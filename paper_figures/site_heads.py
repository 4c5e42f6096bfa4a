"""LW 1 top: how much of each head of the writer's layer the residual stream holds, site by site."""

from __future__ import annotations

import altair as alt
import xarray as xr

from .parts import (
    Sites,
    data,
    end_labels,
    layer_of,
    layered,
    quartile_rows,
    quartile_tip,
    references,
    span,
    y_axis,
)
from .plots import Chart
from .theme import HEIGHT, MUTED, WRITER, counted, frame, undefined

# With more heads than colours the lines differ in their dashes too.
DASHES = ([1, 0], [7, 3], [2, 3], [9, 3, 2, 3], [4, 2])


def chart(ds: xr.Dataset) -> alt.ConcatChart:
    """Draw the median projection ratio of every site onto every head of the writer's layer, one line per head.

    A writer that is an MLP has a line beside its layer's heads.

    ds:  summary of `sites_onto_nodes`: pr[quantile, node, site], nan_count[node, site].
    Tests: tests/figures/test_paper_figures.py.
    """
    writer = str(ds.attrs["writer"])
    layer = layer_of(writer)
    heads = [str(n) for n in ds["node"].values if str(n).startswith(f"L{layer}H") or str(n) == writer]
    kind = "head" if writer.startswith("L") else "node"
    here, sites = ds.sel(node=heads), Sites([str(s) for s in ds["site"].values])
    height = max(HEIGHT, 15 * len(heads))
    others = [head for head in heads if head != writer]
    colours = {head: MUTED[i % len(MUTED)] for i, head in enumerate(others)} | {writer: WRITER}
    turns = {head: i // len(MUTED) % len(DASHES) for i, head in enumerate(others)} | {writer: len(DASHES)}
    stored = quartile_rows(here["pr"], here.get("nan_count"))
    rows = [row | {"colour": colours[row["node"]], "turn": turns[row["node"]]} for row in stored]
    domain = span((row["median"] for row in rows), 0, 1)
    base = Chart(data(rows)).encode(
        x=sites.x(),
        y=y_axis("median", domain, f"median projection ratio PR(site, {f'L{layer}Hh' if kind == 'head' else kind})"),
        color=alt.Color("colour:N", scale=None),
        detail=alt.Detail("node:N"),
        tooltip=quartile_tip("node", "site", count="nan_count" in ds),
    )
    thin = [
        base.transform_filter(alt.datum.turn == turn).mark_line(
            strokeWidth=1.5, strokeDash=dash, point=alt.OverlayMarkDef(size=18, strokeDash=[1, 0])
        )
        for turn, dash in enumerate(DASHES[: 1 + max((turns[head] for head in others), default=0)])
    ]
    thick = base.transform_filter(alt.datum.node == writer).mark_line(
        strokeWidth=3.4, point=alt.OverlayMarkDef(size=60)
    )
    named = [row | {"label": row["node"], "bold": row["node"] == writer} for row in rows]
    labels = end_labels(named, sites, height, domain)
    notes = [
        f"Medians over {counted(ds)}. 1: the {kind}'s output is wholly present; 0: none of it; above 1: others write "
        "along it.",
        *undefined(here, "pr", "nan_count"),
    ]
    return frame(layered([*references([0, 1]), *thin, thick, *labels], sites.width, height), ds, sites.width, notes)
