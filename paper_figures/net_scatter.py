"""Direct logit attribution against the net effect through all paths, point by point."""

from __future__ import annotations

import altair as alt
import numpy as np
import xarray as xr

from .parts import choice, data, haloed, key, layered, references, span, table, y_axis
from .plots import Chart
from .text import number
from .theme import CLEAN, INK, WRITER, frame

OPTIONS = {"against": "what DLA is held against: held, halves, gradient or total (zero ablation); held by default"}
SIDE = 400
MOST = 6000
"""Points that are drawn: as SVG more would weigh megabytes."""
KINDS = (("heads", WRITER), ("MLPs", CLEAN))
AGAINST = {
    "held": "net effect, patterns, scales and gates held",
    "halves": "net effect, products give each factor half",
    "gradient": "gradient times activation",
    "total": "total effect of zero ablation",
}


def chart(ds: xr.Dataset) -> alt.ConcatChart:
    """Draw every (writer, target, prompt): DLA across, the net effect up, and the line where they are equal.

    ds:  summary of `dla_card`: values[attribution, writer, target, prompt], total[ablation, writer, target, prompt].
    Tests: tests/figures/test_paper_figures.py.
    """
    against = choice(ds, "against", tuple(AGAINST))
    dla = ds["values"].sel(attribution="dla").transpose("writer", ...).values.reshape(ds.sizes["writer"], -1)
    other = ds["total"].sel(ablation="zero") if against == "total" else ds["values"].sel(attribution=against)
    effect = other.transpose("writer", ...).values.reshape(dla.shape)
    known = np.isfinite(dla) & np.isfinite(effect)
    step = -(-int(known.sum()) // MOST) or 1
    domain = span([*dla[known], *effect[known]], margin=0.03)
    across = alt.X(
        "x:Q",
        scale=alt.Scale(domain=list(domain), nice=False, zero=False),
        axis=alt.Axis(title="DLA (logits)", grid=True),
    )
    up = y_axis("y", domain, f"{AGAINST[against]} (logits)")
    layers: list[alt.Chart] = references([0])
    for kind, colour in reversed(KINDS):
        rows = [i for i, w in enumerate(ds["writer"].values) if str(w).startswith("L") == (kind == "heads")]
        kept = known[rows]
        inline = table(f"points_{kind}", x=dla[rows][kept][::step], y=effect[rows][kept][::step])
        dots = Chart(inline).mark_square(size=14, color=colour, opacity=0.35, aria=False)
        layers.append(dots.encode(x=across, y=up))
    ends = [{"x": end, "y": end} for end in domain]
    layers.append(
        Chart(data(ends))
        .mark_line(color=INK, strokeWidth=1.4, strokeDash=[5, 4])
        .encode(x=alt.X("x:Q"), y=alt.Y("y:Q"))
    )
    equal = Chart(data([ends[1] | {"words": "equal"}])).encode(x=alt.X("x:Q"), y=alt.Y("y:Q"), text=alt.Text("words:N"))
    layers += haloed(equal, align="right", baseline="top", dx=-12, dy=6, color=INK)
    entries = [(kind, colour, colour) for kind, colour in KINDS]
    notes = [
        f"One point for each of {ds.sizes['writer']} writers, {ds.sizes['target']} targets and "
        f"{ds.sizes['prompt']} prompts."
    ]
    if step > 1:
        notes.append(f"One in {step} of {int(known.sum()):,} points is drawn.")
    r = ds["pearson"].sel(bound="estimate", ablation="zero", kind="all")
    agrees = [
        f"{name} {number(float(r.sel(attribution=a)), 2)}"
        for a, name in (("dla", "DLA"), (against if against != "total" else "held", "net effect"))
    ]
    notes.append(f"Pearson's r with the total effect of zero ablation: {', '.join(agrees)}.")
    return frame(layered([*layers, *key(entries, SIDE)], SIDE, SIDE), ds, SIDE, notes)
