"""LW 4 and P 5: direct logit attribution of single heads, clean and with their input resampled."""

from __future__ import annotations

from typing import Any

import altair as alt
import xarray as xr

from .parts import (
    Row,
    choice,
    data,
    drawn,
    haloed,
    key,
    layered,
    plain,
    quartile_tip,
    references,
    span,
    whiskers,
    y_axis,
)
from .plots import Chart
from .text import SPACE, ending, number, token, visible
from .theme import CLEAN, INK, LABEL, PATCHED, PATCHED_TEXT, SOFT, frame, quartile_words

OPTIONS = {"show": '"writer", the "others" (one head per example), or "both"'}
HEIGHT = 240
INPUTS = [("clean", CLEAN, CLEAN), ("input resampled", PATCHED, PATCHED_TEXT)]


def _rows(ds: xr.Dataset, heads: dict[str, str]) -> list[Row]:
    """Return a clean and a resampled row per example, for the head that is shown there."""
    rows: list[Row] = []
    for example, head in heads.items():
        here = ds.sel(example=example, head=head)
        quartiles = {str(q): plain(here["resampled"].sel(quantile=q)) for q in ds["quantile"].values}
        shared = {"example": example, "head": head}
        rows.append(shared | {"input": INPUTS[0][0], "colour": CLEAN, "median": plain(here["clean"])})
        rows.append(shared | {"input": INPUTS[1][0], "colour": PATCHED} | quartiles)
    for row in rows:
        median = row["median"]
        ends = [value for value in (row.get("lower"), median, row.get("upper")) if value is not None]
        row["printed"] = "undefined" if median is None else number(median, 3)
        row["below"] = median is not None and median < 0
        row["end"] = 0.0 if median is None else min(ends) if row["below"] else max(ends)
    return rows


def _panel(ds: xr.Dataset, heads: dict[str, str], each: float, words: str, *, first: bool) -> alt.LayerChart:
    """Draw pairs of bars for the examples, values at their ends, and the head under each pair where it changes."""
    rows, width = _rows(ds, heads), each * len(heads)
    lo, hi = span(drawn(rows), 0, margin=0.1)
    # Bars that all rise stand on the ground, so that the captions follow at once; the same for bars that all fall.
    drawn_values = [value for value in drawn(rows) if value is not None]
    domain = (
        min(0.0, lo) if any(v < 0 for v in drawn_values) else 0.0,
        hi if any(v > 0 for v in drawn_values) else 0.0,
    )
    base = Chart(data(rows)).encode(
        x=alt.X("example:O", scale=alt.Scale(domain=list(heads), paddingInner=0.52, paddingOuter=0.26), axis=None),
        xOffset=alt.XOffset("input:N", scale=alt.Scale(domain=[name for name, *_ in INPUTS], paddingInner=0.1)),
        tooltip=quartile_tip("head", "example", "input"),
    )
    bars = base.mark_bar().encode(y=y_axis("median", domain, words), color=alt.Color("colour:N", scale=None))
    values = [
        layer
        for below in (False, True)
        for layer in haloed(
            base.transform_filter(alt.datum.below == below).encode(y=alt.Y("end:Q"), text=alt.Text("printed:N")),
            dy=9 if below else -9,
            color=SOFT,
        )
    ]
    names = [
        Chart(data([{"head": head}]))
        .mark_text(baseline="top", fontWeight="bold", fontSize=12)
        .encode(text=alt.Text("head:N"), x=alt.XValue((i + 0.5) * each), y=alt.YValue(HEIGHT + 10))
        for i, head in enumerate(heads.values())
        if head != ds.attrs["writer"]
    ]
    legend = key(INPUTS, width) if first else []
    errors = whiskers(base, y_axis("lower", domain, words))
    return layered([bars, *references([0]), *errors, *values, *names, *legend], width, HEIGHT)


def _captions(ds: xr.Dataset, each: float) -> alt.LayerChart:
    """Write under each pair of bars: the end of the prompt, the two answers, and their logit difference."""
    blocks: list[tuple[list[str], str, str]] = []
    for example in ds["example"].values:
        here = ds.sel(example=example)
        prompt = ending(visible(str(here["text"].item())), each - 22, LABEL, 3)
        pair = f"{token(str(here['answer'].item()))} / {token(str(here['other'].item()))}{'' if _named(here) else ' *'}"
        blocks.append((prompt, pair, f"logit difference {number(float(here['logit_diff']))}"))
    deep = max(len(prompt) for prompt, _, _ in blocks) * 15
    styles: list[dict[str, Any]] = [{"color": INK}, {"color": INK, "fontWeight": "bold"}, {"color": SOFT}]
    layers: list[Any] = []
    for i, (prompt, pair, difference) in enumerate(blocks):
        lines = ["\n".join(prompt), "\n".join(ending(pair, each - 22, LABEL, 1)), difference]
        for words, y, style in zip(lines, (0, deep + 6, deep + 22), styles, strict=True):
            mark = Chart(data([{"words": words}])).mark_text(baseline="top", lineBreak="\n", lineHeight=15, **style)
            layers.append(mark.encode(text=alt.Text("words:N"), x=alt.XValue((i + 0.5) * each), y=alt.YValue(y)))
    return layered(layers, each * len(blocks), deep + 38)


def _named(here: xr.Dataset) -> bool:
    return "top2_named" not in here or bool(here["top2_named"])


def _notes(ds: xr.Dataset) -> list[str]:
    notes = [
        f"Resampled: median (bar) and {quartile_words(ds)} (line) over {int(ds.attrs['n_prompts']):,} unrelated texts. "
        "DLA: logit of the first answer minus the second, at the last position."
    ]
    answers = (str(words) for name in ("answer", "other", "first", "second") for words in ds[name].values)
    if any(SPACE in token(words) for words in answers):
        notes.append(f"In the pairs of answers {SPACE} is a space.")
    if "nan_count" in ds and (most := int(ds["nan_count"].max())):
        notes.append(f"Up to {most:,} of these texts are left out of a median: an example's own prompt, or undefined.")
    for example in ds["example"].values:
        here = ds.sel(example=example)
        if not _named(here):
            first, second = (token(str(here[name].item())) for name in ("first", "second"))
            notes.append(
                f"* {visible(str(example))}: the model's first two predictions are {first} / {second} instead."
            )
    return notes


def chart(ds: xr.Dataset) -> alt.ConcatChart:
    """Draw direct logit attribution per example, a clean bar beside the resampled median with its quartiles.

    ds:  summary of `resampled_dla`: clean[example, head], resampled[quantile, example, head], logit_diff[example] and
         the examples' words as coordinates.
    Tests: tests/figures/test_paper_figures.py.
    """
    shown = choice(ds, "show", ("writer", "others", "both"))
    if str(ds.attrs.get("examples")) == "mined" and "MINED" not in str(ds.attrs.get("subtitle", "")):
        ds = ds.assign_attrs(subtitle=f"{ds.attrs.get('subtitle', '')} · MINED examples")
    examples = [str(e) for e in ds["example"].values]
    writer = str(ds.attrs["writer"])
    each = max(150.0, min(190.0, 760 / len(examples)), 420 / len(examples))
    panels = []
    if shown != "others":
        panels.append(
            _panel(ds, dict.fromkeys(examples, writer), each, f"DLA of {writer}, the writer (logits)", first=True)
        )
    if shown != "writer":
        others = dict(zip(examples, (str(h) for h in ds["head_shown"].values), strict=True))
        panels.append(_panel(ds, others, each, "DLA of another head (logits)", first=not panels))
    width = each * len(examples)
    return frame(alt.vconcat(*panels, _captions(ds, each), spacing=26), ds, width, _notes(ds))
