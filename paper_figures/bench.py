"""How fast the kernels are: time and memory of every provider, case by case, beside what the device itself allows."""

from __future__ import annotations

import altair as alt
import xarray as xr

from .parts import Row, data, plain
from .plots import Chart
from .text import number, text_width
from .theme import CLEAN, INK, LABEL, MUTED, OTHER, PATCHED, SOFT, WRITER, frame

WIDTH, BAR = 330, 26
COLOURS = {"einsum": OTHER, "torch.compile": MUTED[0], "matmul+topk": MUTED[1], "tiled": WRITER}
TRITON = PATCHED


def chart(ds: xr.Dataset) -> alt.ConcatChart:
    """Draw median time with its 20 and 80 % quantiles and the roofline, and peak memory: a pair of plots per case.

    ds:  dimension `row`, one per provider and case: strings case, provider; lower, median, upper, floor in
    milliseconds, faster (times the einsum reference), peak in bytes. attrs: title, subtitle, notes.
    Tests: tests/kernels/test_bench.py.
    """
    rows = [_row(ds.isel(row=i)) for i in range(ds.sizes["row"])]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    margin = max([text_width(row["provider"], LABEL) for row in rows], default=0) + 12
    body = alt.vconcat(
        *(_case(case, [row for row in rows if row["case"] == case], margin) for case in cases), spacing=14
    )
    notes = [
        "Bars: medians; thin lines: 20 to 80 % of the samples; upright line: the roofline, the longer of the case's "
        "FLOP at the matrix-product rate and its bytes at the copy rate, both measured in the same run. "
        "As fast: times the einsum reference.",
        *ds.attrs.get("notes", ()),
    ]
    return frame(body, ds, 2 * WIDTH + 160, notes)


def _row(one: xr.Dataset) -> Row:
    row: Row = {name: str(one[name].item()) for name in ("case", "provider")}
    row |= {name: plain(one[name].item()) for name in ("lower", "median", "upper", "floor", "faster", "peak")}
    row["colour"] = COLOURS.get(row["provider"], TRITON)
    row["megabytes"] = None if row["peak"] is None else row["peak"] / 1e6
    times = "" if row["faster"] is None or row["provider"] == "einsum" else f", {number(row['faster'], 2)}x as fast"
    row["time_words"] = "" if row["median"] is None else f"{_short(row['median'])} ms{times}"
    row["peak_words"] = "" if row["megabytes"] is None else f"{_short(row['megabytes'])} MB"
    row["time_end"] = max(row["median"] or 0.0, row["upper"] or 0.0)
    row["peak_end"] = row["megabytes"]
    return row


def _short(value: float) -> str:
    """Return a number in three digits, never with an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _case(case: str, rows: list[Row], margin: float) -> alt.HConcatChart:
    providers = [row["provider"] for row in rows]
    title = alt.Title(text=case, anchor="start", fontSize=12, fontWeight="bold", color=INK, offset=8)
    time = _bars(rows, providers, ("median", "time_end", "time_words"), "median time (ms)", margin)
    whiskers = (
        Chart(data(rows))
        .mark_rule(color=INK, strokeWidth=1.5)
        .encode(x=alt.X("lower:Q"), x2=alt.X2("upper:Q"), y=alt.Y("provider:N", sort=providers))
    )
    floor = Chart(data([row for row in rows if row["floor"] is not None])).mark_tick(color=CLEAN, thickness=2, size=BAR)
    floors = floor.encode(x=alt.X("floor:Q"), y=alt.Y("provider:N", sort=providers))
    height = BAR * len(rows)
    left = alt.layer(time[0], whiskers, floors, time[1]).properties(width=WIDTH, height=height)
    peak = _bars(rows, providers, ("megabytes", "peak_end", "peak_words"), "peak memory beyond inputs (MB)", None)
    return alt.hconcat(left, alt.layer(*peak).properties(width=WIDTH, height=height), spacing=30, title=title)


def _bars(
    rows: list[Row], providers: list[str], fields: tuple[str, str, str], title: str, margin: float | None
) -> tuple[alt.Chart, alt.Chart]:
    """Draw bars, and words right of where each ends; the scale leaves room for the longest.

    fields: the bar's length, where its words begin, the words. margin: pixels of the labels, None to leave them out.
    """
    length, end, words = fields
    top = max([row[end] or 0.0 for row in rows], default=0.0) or 1.0
    room = WIDTH / (WIDTH - max(text_width(row[words], LABEL) for row in rows) - 12)
    axis = alt.Axis(labels=False) if margin is None else alt.Axis(labelColor=SOFT, minExtent=margin)
    scale = alt.Scale(domain=[0, top * room], nice=False)
    base = Chart(data(rows)).encode(y=alt.Y("provider:N", sort=providers, axis=axis, title=None))
    bars = base.mark_bar(size=BAR * 0.55).encode(
        x=alt.X(f"{length}:Q", scale=scale, axis=alt.Axis(title=title, tickCount=5, grid=True)),
        color=alt.Color("colour:N", scale=None),
    )
    text = base.mark_text(align="left", dx=6, fontSize=LABEL, color=INK)
    return bars, text.encode(x=alt.X(f"{end}:Q", scale=scale), text=f"{words}:N")
