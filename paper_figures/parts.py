"""Small pieces that several figures are made of: rows, scales, axes, bands, references, direct labels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import xarray as xr

from .plots import Chart, LayerChart
from .text import text_width
from .theme import ERASER, HEIGHT, INK, LABEL, PAPER, SOFT

Row = dict[str, Any]

# Above a plot: the line of its title and key, and the strip that names shaded layers.
TOP, STRIP = 18, 20


def data(rows: Iterable[Row]) -> dict[str, tuple[Row, ...]]:
    """Return rows as inline data: no row limit, no type guessed, and nothing global to set.

    A tuple, because Altair copies every list in a chart, row by row, wherever the chart becomes part of another.
    """
    return {"values": tuple(rows)}


def table(name: str, **columns: np.ndarray) -> alt.InlineData:
    """Return many rows of numbers as named text: Altair neither counts, checks nor copies them one by one."""
    lines = [",".join(columns), *(",".join(f"{v:.6g}" for v in row) for row in zip(*columns.values(), strict=True))]
    read = alt.CsvDataFormat(type="csv", parse=dict.fromkeys(columns, "number"))
    return alt.InlineData(name=name, values="\n".join(lines), format=read)


def plain(value: Any) -> float | None:
    """Return a number as JSON can hold it: six significant digits, None where it is not finite."""
    return float(f"{float(value):.6g}") if math.isfinite(value) else None


def quartile_rows(stored: xr.DataArray, left_out: xr.DataArray | None = None) -> list[Row]:
    """Return one row per combination of labels: each dimension's label, and `lower`, `median`, `upper`, `undefined`.

    stored:   DataArray[quantile=("lower", "median", "upper"), ...]; left_out: the same without `quantile`, counts.
    """
    values = {str(q): stored.sel(quantile=q) for q in stored["quantile"].values}
    some = values["median"]
    labels = [[str(label) for label in some[dim].values] for dim in some.dims]
    counts = None if left_out is None else left_out.transpose(*some.dims).values
    arrays = {name: array.transpose(*some.dims).values for name, array in values.items()}
    return [
        dict(zip(map(str, some.dims), (axis[i] for axis, i in zip(labels, at, strict=True)), strict=True))
        | {name: plain(array[at]) for name, array in arrays.items()}
        | ({} if counts is None else {"undefined": int(counts[at])})
        for at in np.ndindex(some.shape)
    ]


def layer_of(label: str) -> int:
    """Return the layer of a node's or a site's label: `L2H5`, `MLP2`, `resid_mid2`."""
    found = re.fullmatch(r"L(\d+)H\d+|MLP(\d+)|resid_(?:pre|mid|post)(\d+)", label)
    if found is None:
        raise ValueError(f"{label!r} is neither a head (L2H5), an MLP (MLP2) nor a site (resid_mid2)")
    return int(next(group for group in found.groups() if group is not None))


def listed(items: Sequence[Any]) -> str:
    """Return items in words: `1, 2 and 3`."""
    *before, last = map(str, items)
    return f"{', '.join(before)} and {last}" if before else last


def choice(ds: xr.Dataset, key: str, allowed: Sequence[str]) -> str:
    """Return an option, one of the allowed words and by default the first; ValueError naming them all otherwise."""
    value = ds.attrs["options"].get(key, allowed[0])
    if value not in allowed:
        raise ValueError(f"option {key!r} is {value!r}; allowed: {', '.join(allowed)}")
    return str(value)


def span(values: Iterable[float | None], *also: float, margin: float = 0.06) -> tuple[float, float]:
    """Return a range of every finite value and every reference, with a margin: nothing drawn is ever cut off."""
    kept = [float(v) for v in (*values, *also) if v is not None and math.isfinite(v)] or [0.0, 1.0]
    lo, hi = min(kept), max(kept)
    room = margin * (hi - lo or abs(hi) or 1.0)
    return lo - room, hi + room


def drawn(rows: Iterable[Row]) -> list[float | None]:
    """Return every quantile that a figure draws from these rows."""
    return [row.get(name) for row in rows for name in ("lower", "median", "upper")]


def spread(values: Sequence[float], gap: float, lo: float, hi: float) -> list[float]:
    """Return positions for labels: as near to `values` as they can be, `gap` apart, between lo and hi if they fit."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    placed = [values[i] for i in order]
    for _ in range(200):
        moved = False
        for a, b in zip(range(len(placed)), range(1, len(placed)), strict=False):
            short = gap - (placed[b] - placed[a])
            if short > 1e-9 * gap:
                placed[a] -= short / 2
                placed[b] += short / 2
                moved = True
        if not moved:
            break
    shift = (max(lo - placed[0], 0.0) or min(hi - placed[-1], 0.0)) if placed else 0.0
    result = [0.0] * len(values)
    for i, value in zip(order, placed, strict=True):
        result[i] = value + shift
    return result


def level(title: str | None, lift: float = 0) -> dict[str, Any]:
    """Return a vertical axis's title, written level above its plot, where it reads best; `lift` pixels further up."""
    return {"title": title, "titleAngle": 0, "titleAlign": "left", "titleBaseline": "middle"} | {
        "titleX": 0,
        "titleY": -TOP - lift,
    }


def y_axis(field: str, domain: tuple[float, float], title: str | None, lift: float = 0) -> alt.Y:
    """Return a vertical scale of exactly this domain, with its title level."""
    axis = alt.Axis(**level(title, lift))
    return alt.Y(
        field=field, type="quantitative", scale=alt.Scale(domain=list(domain), nice=False, zero=False), axis=axis
    )


class Sites:
    """The horizontal scale of residual-stream sites in order, wide enough for its labels."""

    def __init__(self, sites: Sequence[str], least: float = 640) -> None:
        self.names = list(sites)
        longest = max(text_width(name, LABEL) for name in self.names)
        self.turned = (longest + 14) * len(self.names) > 900
        outer = 14.0 if self.turned else longest / 2 + 4
        self.step = max(16.0 if self.turned else longest + 14, (least - 2 * outer) / max(1, len(self.names) - 1))
        self.outer = outer
        self.width = round(2 * outer + self.step * (len(self.names) - 1))

    def x(self, field: str = "site") -> alt.X:
        """Return the encoding, the same for every layer."""
        axis = alt.Axis(title="residual-stream site", labelAngle=-90 if self.turned else 0)
        scale = alt.Scale(type="point", domain=self.names, padding=self.outer / self.step)
        return alt.X(field=field, type="ordinal", scale=scale, axis=axis)

    @property
    def last(self) -> float:
        """Return where the last site lies, in pixels."""
        return self.width - self.outer

    def shade(self, layers: Mapping[int, tuple[str, str]], height: float = HEIGHT) -> list[alt.Chart]:
        """Return the span of each layer, from the site it reads to the site it leaves: {layer: (words, colour)}."""
        rows: list[Row] = []
        for layer, (words, colour) in sorted(layers.items()):
            if f"resid_mid{layer}" not in self.names or f"resid_post{layer}" not in self.names:
                continue
            first = max(0, self.names.index(f"resid_mid{layer}") - 1)
            end = self.names.index(f"resid_post{layer}")
            centre = self.outer + (first + end) / 2 * self.step
            room = text_width(words, LABEL) / 2 + 4
            at = min(max(centre, room), self.width - room)
            rows.append(
                {"from": self.names[first], "to": self.names[end], "words": words, "colour": colour, "at": at, "up": 0}
            )
            if len(rows) > 1 and at - rows[-2]["at"] < text_width(rows[-2]["words"], LABEL) / 2 + room + 8:
                rows[-1]["up"] = 1 - rows[-2]["up"]
        if not rows:
            return []
        band = Chart(data(rows)).mark_rect(opacity=0.09)
        bands = band.encode(
            x=self.x("from"),
            x2=alt.X2(field="to"),
            y=alt.YValue(-STRIP),
            y2=alt.Y2Value(height),
            color=alt.Color("colour:N", scale=None),
        )
        labels = [
            Chart(data([row]))
            .mark_text(baseline="middle", color=row["colour"])
            .encode(text=alt.Text("words:N"), x=alt.XValue(row["at"]), y=alt.YValue(-STRIP / 2 + STRIP * row["up"]))
            for row in rows
        ]
        return [bands, *labels]


def references(values: Sequence[float]) -> list[alt.Chart]:
    """Draw horizontal reference lines; zero is drawn full, others dashed."""
    return [
        Chart(data([{"reference": value}]))
        .mark_rule(color=SOFT, opacity=0.8, strokeDash=[1, 0] if value == 0 else [4, 4])
        .encode(y=alt.Y("reference:Q"))
        for value in values
    ]


def layered(layers: Sequence[Any], width: float, height: float) -> alt.LayerChart:
    """Layer charts in one plot of this size, the first at the back."""
    return LayerChart(layer=list(layers), width=width, height=height)


def end_labels(rows: Sequence[Row], sites: Sites, height: float, domain: tuple[float, float]) -> list[alt.Chart]:
    """Label lines right of their last points, moved apart where they would collide, with thin leaders.

    rows: of `site`, `median`, `label`, `colour`, `bold`; of a line whose last median is undefined nothing is said.
    """
    rows = [row for row in rows if row["site"] == sites.names[-1] and row["median"] is not None]
    if not rows:
        return []
    lo, hi = domain
    gap = min((LABEL + 3) / height, 1 / len(rows)) * (hi - lo)
    places = spread([row["median"] for row in rows], gap, lo, hi)
    placed = data(
        {name: row[name] for name in ("label", "colour", "bold")}
        | {"value": row["median"], "at": at, "weight": "bold" if row["bold"] else "normal"}
        for row, at in zip(rows, places, strict=True)
    )
    base = Chart(placed).encode(color=alt.Color("colour:N", scale=None))
    leaders = base.mark_rule(strokeWidth=1, opacity=0.7).encode(
        x=alt.XValue(sites.last + 7), x2=alt.X2Value(sites.width), y=alt.Y("value:Q"), y2=alt.Y2("at:Q")
    )
    words = [
        base.transform_filter(alt.datum.weight == weight)
        .mark_text(align="left", baseline="middle", fontWeight=weight, fontSize=LABEL)
        .encode(x=alt.XValue(sites.width + 5), y=alt.Y("at:Q"), text=alt.Text("label:N"))
        for weight in ("normal", "bold")
    ]
    return [leaders, *words]


def key(entries: Sequence[tuple[str, str, str]], width: float, lift: float = 0) -> list[alt.Chart]:
    """Return a legend on one line above the plot's right end: (words, colour of the square, colour of the words)."""
    layers = []
    at = width - sum(text_width(words, LABEL) + 34 for words, _, _ in entries) + 16
    for words, colour, ink in entries:
        base = Chart(data([{"words": words}]))
        layers.append(
            base.mark_square(size=90, color=colour, opacity=1).encode(x=alt.XValue(at), y=alt.YValue(-TOP - lift))
        )
        layers.append(
            base.mark_text(align="left", baseline="middle", color=ink, fontSize=LABEL).encode(
                x=alt.XValue(at + 10), y=alt.YValue(-TOP - lift), text=alt.Text("words:N")
            )
        )
        at += text_width(words, LABEL) + 34
    return layers


def haloed(base: alt.Chart, **mark: Any) -> list[alt.Chart]:
    """Return text in a pale outline, so that lines and points behind it leave it legible."""
    return [base.mark_text(stroke=PAPER, strokeWidth=3, **mark), base.mark_text(**mark)]


def whiskers(base: alt.Chart, y: alt.Y) -> list[alt.Chart]:
    """Return the span of the quartiles as a dark line in a pale one, so that it shows on a bar as well as beside it."""
    return [
        base.mark_rule(color=colour, strokeWidth=width, opacity=opacity).encode(y=y, y2=alt.Y2("upper:Q"))
        for colour, width, opacity in ((PAPER, 3.6, 0.8), (INK, 1.5, 1.0))
    ]


def role_colour(heads: Sequence[str], colour: str = ERASER) -> Any:
    """Return the axis labels' colour: a role's for these heads, and quiet for the others."""
    return alt.condition(alt.FieldOneOfPredicate(field="value", oneOf=list(heads)), alt.value(colour), alt.value(SOFT))


def quartile_tip(*labels: str, count: bool = False) -> list[alt.Tooltip]:
    """Return the tooltip: labels, median, both quartiles and, if stored, how many values were undefined."""
    tips = [alt.Tooltip(f"{label}:N") for label in labels]
    tips += [alt.Tooltip(f"{name}:Q", format=".4f") for name in ("median", "lower", "upper")]
    return [*tips, alt.Tooltip("undefined:Q", format=",")] if count else tips
