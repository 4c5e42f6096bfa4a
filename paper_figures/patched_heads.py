"""LW 3b and P 3: what each head of the patched layer writes along the writer, clean and patched."""

from __future__ import annotations

import altair as alt
import xarray as xr

from .parts import choice, data, drawn, key, options, quartile_rows, quartile_tip, references, role_colour, span, whiskers, y_axis
from .patched_sites import RUNS
from .theme import ERASER, HEIGHT, SOFT, counted, erasers, frame, quartile_words, undefined

OPTIONS = {"heads": '"all" heads of the patched layer, or the "erasers" alone'}


def chart(ds: xr.Dataset) -> alt.VConcatChart:
    """Projection ratio of the patched layer's heads onto the writer: a clean and a patched bar each, with quartiles.

    ds:  summary of `v_patch`: head_pr[quantile, run, head], head_nan_count[run, head]. Tests: tests/test_paper_figures.py.
    """
    shown = choice(options(ds, OPTIONS), "heads", ("all", "erasers"))
    writer, layer, roles = str(ds.attrs["writer"]), int(ds.attrs["layer"]), erasers(ds)
    every = [str(h) for h in ds["head"].values]
    heads = [h for h in every if h in roles] if shown == "erasers" else every
    notes = []
    if not heads:
        heads, notes = every, [f"No eraser in layer {layer}: all of its heads are shown."]
    here = ds.sel(head=heads)
    runs = [str(r) for r in ds["run"].values]
    rows = [row | {"colour": RUNS[row["run"]][0]} for row in quartile_rows(here["head_pr"], here.get("head_nan_count"))]
    domain = span(drawn(rows), 0)
    width = max(480, 74 * len(heads))
    title = f"projection ratio PR(L{layer}Hh, {writer})"
    across = alt.X(
        "head:O",
        scale=alt.Scale(domain=heads, paddingInner=0.34, paddingOuter=0.2),
        axis=alt.Axis(title=f"head of layer {layer}", labelAngle=0, labelColor=role_colour(roles)),
    )
    base = alt.Chart(data(rows)).encode(
        x=across,
        xOffset=alt.XOffset("run:N", scale=alt.Scale(domain=runs, paddingInner=0.08)),
        tooltip=quartile_tip("head", "run", count="head_nan_count" in ds),
    )
    bars = base.mark_bar().encode(y=y_axis("median", domain, title), color=alt.Color("colour:N", scale=None))
    errors = whiskers(base, y_axis("lower", domain, title))
    notes += [f"Bars: medians over {counted(ds)}; lines: {quartile_words(ds)}.", *undefined(here, "head_nan_count")]
    legend = key([(run, *RUNS[run]) for run in runs], width)
    body = alt.layer(bars, references([0]), *errors, *legend).properties(width=width, height=HEIGHT)
    return frame(body, ds, width, notes)
