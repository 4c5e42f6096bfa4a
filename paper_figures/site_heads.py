"""LW 1 top: how much of each head of the writer's layer the residual stream holds, site by site."""

from __future__ import annotations

import altair as alt
import xarray as xr

from .parts import Sites, data, drawn, end_labels, layer_of, options, quartile_rows, quartile_tip, references, span, y_axis
from .theme import HEIGHT, MUTED, WRITER, counted, frame, undefined

OPTIONS: dict[str, str] = {}


def chart(ds: xr.Dataset) -> alt.VConcatChart:
    """Median projection ratio of every site onto every head of the writer's layer, one line per head.

    ds:  summary of `sites_onto_nodes`: pr[quantile, node, site], nan_count[node, site]. Tests: tests/test_paper_figures.py.
    """
    options(ds, OPTIONS)
    writer = str(ds.attrs["writer"])
    layer = layer_of(writer)
    heads = [str(n) for n in ds["node"].values if str(n).startswith(f"L{layer}H")]
    here = ds.sel(node=heads)
    sites = Sites([str(s) for s in ds["site"].values])
    height = max(HEIGHT, 15 * len(heads))
    others = [head for head in heads if head != writer]
    colours = {head: MUTED[i % len(MUTED)] for i, head in enumerate(others)} | {writer: WRITER}
    rows = [row | {"colour": colours[row["node"]]} for row in quartile_rows(here["pr"], here.get("nan_count"))]
    domain = span((row["median"] for row in rows), 0, 1)
    ends = [
        {"label": row["node"], "value": row["median"], "colour": row["colour"], "bold": row["node"] == writer}
        for row in rows
        if row["site"] == sites.names[-1] and row["median"] is not None
    ]
    marked = [row for row in rows if row["node"] == writer]
    muted = [row for row in rows if row["node"] != writer]
    encoding = {
        "x": sites.x(),
        "y": y_axis("median", domain, f"median projection ratio PR(site, L{layer}Hh)"),
        "color": alt.Color("colour:N", scale=None),
        "detail": alt.Detail("node:N"),
        "tooltip": quartile_tip("node", "site", count="nan_count" in ds),
    }
    thin = alt.Chart(data(muted)).mark_line(strokeWidth=1.5, point=alt.OverlayMarkDef(size=18)).encode(**encoding)
    thick = alt.Chart(data(marked)).mark_line(strokeWidth=3.4, point=alt.OverlayMarkDef(size=60)).encode(**encoding)
    labels = end_labels(ends, sites.last, height, domain)
    notes = [f"Medians over {counted(ds)}. 1: the head's output is wholly present; 0: none of it.", *undefined(here, "nan_count")]
    body = alt.layer(references([0, 1]), thin, thick, *labels).properties(width=sites.width, height=height)
    return frame(body, ds, sites.width, notes)
