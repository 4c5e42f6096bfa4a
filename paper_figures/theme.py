"""What every figure shares: type, colours, sizes, and the frame of title, subtitle, caveat and notes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import xarray as xr

from .plots import Chart
from .text import TIMES, drawable, number, wrap

# Liberation Sans is drawn by the renderer wherever it runs, and has the widths of Arial, which browsers have.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"

# Roles differ in hue, conditions in lightness too: both pairs stay apart in every common colour blindness.
INK, SOFT, FAINT, PAPER = "#1F2933", "#5F6B78", "#E6E9ED", "#FFFFFF"
WRITER, ERASER, OTHER = "#D55E00", "#0072B2", "#A3ACB7"
CLEAN, PATCHED = "#3E4C5E", "#E69F00"
PATCHED_TEXT = "#9A6700"
RUNS = {"clean": (CLEAN, CLEAN), "patched": (PATCHED, PATCHED_TEXT)}
MUTED = ("#5B8DB8", "#B79F4B", "#7A6FB0", "#4F9D8C", "#B5739D", "#8C7B6B", "#6E8B3D", "#9AA3AE")
SHARES = ("#D9DDE3", "#3E4C5E", "#8FB8D6")

HEIGHT = 340
LABEL, TITLE = 11, 18

CONFIG: dict[str, Any] = {
    "font": FONT,
    "background": PAPER,
    "padding": {"left": 26, "top": 22, "right": 30, "bottom": 20},
    "view": {"stroke": None},
    "concat": {"spacing": 18},
    "title": {
        "anchor": "start",
        "align": "left",
        "frame": "group",
        "fontSize": TITLE,
        "fontWeight": "bold",
        "color": INK,
        "lineHeight": 23,
        "subtitleFontSize": 12.5,
        "subtitleColor": SOFT,
        "subtitleLineHeight": 17,
        "subtitlePadding": 7,
        "offset": 20,
    },
    "axis": {
        "domain": False,
        "ticks": False,
        "gridColor": FAINT,
        "gridWidth": 1,
        "labelColor": SOFT,
        "labelFontSize": LABEL,
        "labelPadding": 7,
        "titleColor": INK,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 12,
    },
    "axisX": {"grid": False, "labelOverlap": False},
    "axisYQuantitative": {"tickCount": 6},
    "text": {"fontSize": LABEL, "color": INK},
    "line": {"strokeWidth": 2.2, "strokeJoin": "round", "strokeCap": "round"},
    "rule": {"strokeWidth": 1.2},
}


def caveat(ds: xr.Dataset) -> str | None:
    """Return the sentence that a figure must carry where the scan does not claim its roles, else None."""
    if bool(ds.attrs.get("found", True)):
        return None
    writer, labels = ds.attrs["writer"], erasers(ds)
    if labels and str(ds.attrs.get("roles", "")).startswith("named"):
        return f"Caveat: the scan does not claim that {', '.join(labels)} erase{'s' * (len(labels) == 1)} {writer}."
    if not labels:
        return (
            f"Caveat: no erasure found; {writer} is only the strongest candidate, and nothing qualifies as its eraser."
        )
    candidates = f"{writer} (writer) and {', '.join(labels)} (eraser)"
    return f"Caveat: no erasure found; {candidates} are only the strongest candidates."


def erasers(ds: xr.Dataset) -> list[str]:
    """Return the labels of the erasers, heads and MLPs; empty where a model has none."""
    given = ds.attrs.get("erasers", [])
    return given.split(", ") if isinstance(given, str) else [str(label) for label in given]


def counted(ds: xr.Dataset) -> str:
    """Return the sample behind each median, in words: `300 prompts x 1024 positions`."""
    return f"{int(ds.attrs['n_prompts']):,} prompts {TIMES} {int(ds.attrs['n_positions']):,} positions"


def quartile_words(ds: xr.Dataset) -> str:
    """Return the stored quantiles in words, `25 to 75 % quantiles`, so that a variant's other interval names itself."""
    lower, upper = (100 * float(q) for q in ds.attrs.get("quantiles", (0.25, 0.75)))
    return f"{lower:g} to {upper:g} % quantiles"


def undefined(ds: xr.Dataset, stored: str, counts: str | None = None, *, shown: str = "a gap") -> list[str]:
    """Return notes on what a figure leaves out: undefined ratios, and medians of nothing; empty if none.

    stored: the quantiles' variable; counts: its counts of undefined values; shown: how a missing median looks.
    """
    notes = []
    if counts is not None and counts in ds and (left_out := int(ds[counts].sum())):
        of = int(ds[counts].size) * int(ds.attrs["n_prompts"]) * int(ds.attrs["n_positions"])
        share = number(100 * left_out / of, 2)
        notes.append(
            f"Undefined, since nothing was written there, and left out: {left_out:,} of {of:,} ratios ({share} %)."
        )
    medians = ds[stored].sel(quantile="median")
    if missing := int((~np.isfinite(medians)).sum()):
        notes.append(f"{missing:,} of {medians.size:,} medians are undefined ({shown}).")
    return notes


def _block(lines: Sequence[str], width: float, colour: str, size: float, weight: Any = "normal") -> alt.Chart:
    height = round(1.4 * size)
    mark = Chart({"values": [{"text": "\n".join(lines)}]}).mark_text(
        align="left", baseline="top", lineBreak="\n", lineHeight=height, fontSize=size, color=colour, fontWeight=weight
    )
    return mark.encode(text=alt.Text("text:N"), x=alt.XValue(0), y=alt.YValue(0)).properties(
        width=width, height=height * len(lines)
    )


def frame(body: Any, ds: xr.Dataset, width: float, notes: Sequence[str] = ()) -> alt.ConcatChart:
    """Frame a finished figure: title, subtitle, a caveat where roles are doubtful, the body, its notes.

    body:  a layered or concatenated chart, `width` pixels wide; notes: sentences for the foot, wrapped to the width.
    """
    title, subtitle = (drawable(str(ds.attrs.get(key, ""))) for key in ("title", "subtitle"))
    wide = max(width, 480)
    warning = caveat(ds)
    parts = [_block(wrap(warning, wide, 12, bold=True), width, WRITER, 12, "bold")] if warning else []
    parts.append(body)
    if notes:
        parts.append(_block([line for note in notes for line in wrap(note, wide, LABEL)], width, SOFT, LABEL))
    heading = alt.Title(text=wrap(title, wide, TITLE, bold=True), subtitle=wrap(subtitle, wide, 12.5))
    described = " ".join(filter(None, (title, subtitle, warning)))
    # A page that sets the words itself finds them here, and the drawing without them at `body`.
    words = {"title": title, "caveat": warning or "", "notes": list(notes), "body": int(warning is not None)}
    return alt.concat(*parts, columns=1, title=heading, description=described, config=CONFIG, usermeta=words)
