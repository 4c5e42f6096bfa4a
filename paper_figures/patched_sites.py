"""LW 3a and P 1: the writer's output in the residual stream, clean and with the writer taken from what erasers read."""

from __future__ import annotations

import altair as alt
import xarray as xr

from .parts import (
    STRIP,
    Sites,
    data,
    drawn,
    end_labels,
    layer_of,
    layered,
    listed,
    quartile_rows,
    quartile_tip,
    references,
    span,
    y_axis,
)
from .plots import Chart
from .theme import HEIGHT, RUNS, SOFT, counted, frame, quartile_words, undefined


def _inputs(patched: list[str]) -> str:
    """Return in words what is patched: the value input of heads, by whole layers, and the input of MLPs."""
    layers = sorted({layer_of(label) for label in patched if label.startswith("L")})
    mlps = [label for label in patched if label.startswith("MLP")]
    parts = [f"the value input of every head of layer{'s' * (len(layers) > 1)} {listed(layers)}"] if layers else []
    return " and ".join([*parts, f"the input of {listed(mlps)}"] if mlps else parts)


def chart(ds: xr.Dataset) -> alt.ConcatChart:
    """Draw the projection ratio of every site onto the writer in both runs: median lines with quartile bands.

    ds:  summary of `v_patch`: site_pr[quantile, run, site], site_nan_count[run, site].
    Tests: tests/figures/test_paper_figures.py.
    """
    writer, patched = str(ds.attrs["writer"]), [str(label) for label in ds["head"].values]
    sites = Sites([str(s) for s in ds["site"].values])
    rows = [row | {"colour": RUNS[row["run"]][0]} for row in quartile_rows(ds["site_pr"], ds.get("site_nan_count"))]
    domain = span(drawn(rows), 0, 1)
    middle, low = (
        y_axis(name, domain, f"projection ratio PR(site, {writer})", lift=STRIP) for name in ("median", "lower")
    )
    base = Chart(data(rows)).encode(x=sites.x(), color=alt.Color("colour:N", scale=None), detail=alt.Detail("run:N"))
    band = base.mark_area(opacity=0.2).encode(y=low, y2=alt.Y2("upper:Q"))
    traced = base.encode(y=middle, tooltip=quartile_tip("run", "site", count="site_nan_count" in ds))
    # The clean line is the wider one and lies below, so that both are seen where the patch changes nothing.
    lines = [
        mark
        for run, width, size in (("clean", 4.8, 100), ("patched", 2.2, 34))
        for mark in (
            traced.transform_filter(alt.datum.run == run).mark_line(strokeWidth=width),
            traced.transform_filter(alt.datum.run == run).mark_point(filled=True, size=size, opacity=1),
        )
    ]
    named = [row | {"label": row["run"], "colour": RUNS[row["run"]][1], "bold": True} for row in rows]
    notes = [
        f"Lines: medians over {counted(ds)}; bands: {quartile_words(ds)}. "
        f"Patched: {writer}'s output is taken out of {_inputs(patched)}.",
        *undefined(ds, "site_pr", "site_nan_count"),
    ]
    shade = sites.shade({layer: (f"layer {layer}: patched", SOFT) for layer in map(layer_of, patched)})
    labels = end_labels(named, sites, HEIGHT, domain)
    body = layered([*shade, *references([0, 1]), band, *lines, *labels], sites.width, HEIGHT)
    return frame(body, ds, sites.width, notes)
