"""LW 3b and P 3: what heads of patched layers, and patched MLPs, write along the writer, clean and patched."""

from __future__ import annotations

import altair as alt
import xarray as xr

from .parts import (
    choice,
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
    whiskers,
    y_axis,
)
from .plots import Chart
from .theme import HEIGHT, RUNS, counted, erasers, frame, quartile_words, undefined

MOST = 64
OPTIONS = {"heads": '"all" that is patched (whole layers of heads, MLPs), or the "erasers" alone'}


def chart(ds: xr.Dataset) -> alt.ConcatChart:
    """Draw the projection ratio onto the writer of what is patched: clean and patched bars, with quartiles.

    ds:  summary of `v_patch`: head_pr[quantile, run, head], head_nan_count[run, head]; patched MLPs are among `head`.
    Tests: tests/figures/test_paper_figures.py.
    """
    shown = choice(ds, "heads", ("all", "erasers"))
    writer, roles = str(ds.attrs["writer"]), erasers(ds)
    every, runs = ([str(label) for label in ds[dim].values] for dim in ("head", "run"))
    heads, notes = [head for head in every if shown == "all" or head in roles], []
    if not heads:
        heads, notes = every, ["No eraser among what is patched: all of it is shown."]
    elif len(heads) > MOST:
        heads = [head for head in every if head in roles] or every[:MOST]
        notes = [f"Of {len(every):,} patched heads and MLPs {len(heads):,} are shown."]
    layer = layer_of(heads[0])
    single = all(label.startswith(f"L{layer}H") for label in heads)
    what, across_title = (f"L{layer}Hh", f"head of layer {layer}") if single else ("component", "component")
    here = ds.sel(head=heads)
    rows = [row | {"colour": RUNS[row["run"]][0]} for row in quartile_rows(here["head_pr"], here.get("head_nan_count"))]
    domain, width = span(drawn(rows), 0), max(480, (74 if len(heads) <= 16 else 52) * len(heads))
    middle, low = (y_axis(name, domain, f"projection ratio PR({what}, {writer})") for name in ("median", "lower"))
    across = alt.X(
        "head:O",
        # Few heads stand in the middle: their bars do not fill the plot.
        scale=alt.Scale(domain=heads, paddingInner=0.34, paddingOuter=1 if len(heads) < 4 else 0.2),
        axis=alt.Axis(title=across_title, labelAngle=0, labelColor=role_colour(roles)),
    )
    base = Chart(data(rows)).encode(
        x=across,
        xOffset=alt.XOffset("run:N", scale=alt.Scale(domain=runs, paddingInner=0.08)),
        tooltip=quartile_tip("head", "run", count="head_nan_count" in ds),
    )
    bars = base.mark_bar().encode(y=middle, color=alt.Color("colour:N", scale=None))
    notes += [f"Bars: medians over {counted(ds)}; lines: {quartile_words(ds)}."]
    notes += [f"Blue labels: the erasers ({', '.join(roles)})."] if set(roles) & set(heads) else []
    notes += undefined(here, "head_pr", "head_nan_count")
    legend = key([(run, *RUNS[run]) for run in runs], width)
    body = layered([bars, *references([0]), *whiskers(base, low), *legend], width, HEIGHT)
    return frame(body, ds, width, notes)
