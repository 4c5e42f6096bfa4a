"""The card: one row a writer, what DLA credits to it, what of that is taken back, and what ablation says it does."""

from __future__ import annotations

from typing import Any

import altair as alt
import xarray as xr

from .parts import Row, choice, data, key, layered, plain, span
from .plots import Chart
from .text import DASH, MINUS, number
from .theme import CLEAN, ERASER, INK, LABEL, PATCHED, PATCHED_TEXT, SOFT, frame

OPTIONS = {"ablation": "the total effect that is marked: zero, mean or resampled; zero by default"}
WIDTH, ROW, WORDS = 560, 30, 230
BARS = (("credited", CLEAN, -5.5), ("taken back", ERASER, 5.5))
"""Each writer's two bars: name, colour and place in the row, in pixels from its middle."""


def _rows(ds: xr.Dataset, ablation: str) -> list[Row]:
    """Return one row a writer, those with most credit first."""
    rows: list[Row] = []
    for writer in map(str, ds["writer"].values):
        here = ds.sel(writer=writer)
        row: Row = {"writer": writer, "verdict": str(here["verdict"].item())}
        for name, bounds in (
            ("credited", here["mean_abs"].sel(attribution="dla")),
            ("taken back", here["taken_abs"]),
            ("total", here["total_abs"].sel(ablation=ablation)),
        ):
            row |= {f"{name} {b}": plain(bounds.sel(bound=b)) for b in ("lower", "estimate", "upper")}
        erasers = [str(c) for c in ds["component"].values if int(here["erases"].sel(component=c))]
        share = here["taken_back"].sel(bound="estimate")
        row["erasers"] = ", ".join(erasers) or "none"
        row["words"] = row["verdict"] + (f" ({number(float(share), 2)})" if erasers else "")
        rows.append(row)
    return sorted(rows, key=lambda row: -(row["credited estimate"] or 0.0))


def chart(ds: xr.Dataset) -> alt.ConcatChart:
    """Draw for each writer mean |DLA| and the part that is taken back, with intervals, and the mean total effect.

    ds:  summary of `dla_card`: mean_abs, taken_abs, taken_back, total_abs by bound and writer, verdict, erases.
    Tests: tests/figures/test_paper_figures.py.
    """
    ablation = choice(ds, "ablation", [str(a) for a in ds["ablation"].values])
    rows = _rows(ds, ablation)
    order = [row["writer"] for row in rows]
    values = [
        row[f"{name} {b}"]
        for row in rows
        for name in ("credited", "taken back", "total")
        for b in ("lower", "estimate", "upper")
    ]
    domain, height = span(values, 0.0, margin=0.03), ROW * len(rows)
    axis = alt.Axis(title="logits, mean over prompts and targets", grid=True)
    scale = alt.Scale(domain=list(domain), nice=False, zero=False)
    y = alt.Y(
        field="writer", type="ordinal", sort=order, axis=alt.Axis(title=None), scale=alt.Scale(domain=order, padding=0)
    )

    def x(field: str) -> alt.X:
        return alt.X(field=field, type="quantitative", scale=scale, axis=axis)

    tips = [alt.Tooltip("writer:N"), alt.Tooltip("verdict:N"), alt.Tooltip("erasers:N")]
    tips += [
        alt.Tooltip(f"{name} estimate:Q", format=".3f", title=name) for name in ("credited", "taken back", "total")
    ]
    base = Chart(data(rows)).encode(y=y, tooltip=tips)
    layers: list[Any] = [
        base.mark_rule(color=SOFT, opacity=0.8).encode(x=alt.datum(0.0, type="quantitative", scale=scale))
    ]
    for name, colour, off in BARS:
        bar = base.mark_bar(color=colour, height=9, yOffset=off).encode(x=x(f"{name} estimate"), x2=alt.datum(0.0))
        rule = base.mark_rule(color=INK, strokeWidth=1.2, yOffset=off)
        layers += [bar, rule.encode(x=x(f"{name} lower"), x2=alt.X2(field=f"{name} upper"))]
    mark = base.mark_point(color=PATCHED, fill=PATCHED, shape="diamond", size=70, opacity=1)
    layers += [
        base.mark_rule(color=PATCHED, strokeWidth=1.4).encode(x=x("total lower"), x2=alt.X2(field="total upper")),
        mark.encode(x=x("total estimate")),
        base.mark_text(align="left", baseline="middle", fontSize=LABEL, color=INK).encode(
            x=alt.XValue(WIDTH + 10), text=alt.Text("words:N")
        ),
    ]
    entries = [
        ("credited: mean |DLA|", CLEAN, CLEAN),
        ("taken back", ERASER, ERASER),
        (f"total effect, {ablation} ablation", PATCHED, PATCHED_TEXT),
    ]
    return frame(layered([*layers, *key(entries, WIDTH)], WIDTH, height), ds, WIDTH + WORDS, _notes(ds))


def _notes(ds: xr.Dataset) -> list[str]:
    by = sorted({str(name) for name in ds["erasers_from"].values})
    who = {
        "shares": "shares alone (neither tested nor held against decoys)",
        "roles": "the subject's roles",
    }
    return [
        f"Lines: 95 % over {int(ds.attrs['n_prompts']):,} prompts. Taken back: mean |DLA| times {MINUS}slope of the "
        "DLA of the erasers' paths on DLA; the share in brackets. "
        f"Erasers are told by {' or '.join(who[name] for name in by)}.",
        f"Indirect: nothing is taken back, but the writer acts through others {DASH} net effect and DLA differ by more "
        "than a quarter of DLA (partly), or by more than all of it (mostly).",
    ]
