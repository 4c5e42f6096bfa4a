"""The figures of the page: each chart without its words, which the page sets itself, and what can be saved of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

import paper_figures
from paper_figures.theme import counted
from repro.figures.draw import Source, labels, prepared, subtitle
from repro.report.csv_text import csv_text
from repro.report.published import published_for, stated_for
from repro.report.svg import still
from repro.report.toml import Declarations
from repro.spec.types import Figure, Loaded

COMPACT = {"left": 8, "top": 8, "right": 8, "bottom": 8}
"""Padding around a chart, in pixels: the page has its own."""
HALF = 780
"""The widest chart that can be read in half the page, in pixels."""


@dataclass(frozen=True)
class Drawing:
    """One chart on the page."""

    id: str
    """Unique on the page; the name of what is saved."""
    whose: str
    """Whose numbers these are, in a few words."""
    says: str
    """The line below the chart: subject, prompts, and what the numbers are worth."""
    caveat: str
    notes: tuple[str, ...]
    described: str
    """What is read aloud in its place."""
    spec: dict[str, Any]
    """Vega-Lite, without title, notes and caveat."""
    still: str
    """The same as SVG, which stands where nothing is drawn."""
    csv: str
    """The numbers behind it."""
    sample: str
    """What each quantile is over, for the hover."""
    quantiles: tuple[str, str]

    @property
    def width(self) -> float:
        """Return its own width in pixels."""
        return float(self.still.split('width="', 1)[1].split('"', 1)[0])


@dataclass(frozen=True)
class Shown:
    """One figure of the spec, or several that show the same under different numbers."""

    name: str
    title: str
    sources: str
    """What the sources call it."""
    toml: str
    ours: Drawing
    published: Drawing | None = None
    stated: tuple[str, ...] = ()
    """Published numbers of this figure that no chart can show."""

    @property
    def beside(self) -> bool:
        """Return whether both charts can be read in half the width of the page."""
        return self.published is not None and max(self.published.width, self.ours.width) <= HALF


def same_view(loaded: Loaded, names: Sequence[str]) -> list[list[str]]:
    """Return the figures grouped by what they draw: the post and the paper number some of them twice."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        figure = loaded.spec.figure[name]
        groups.setdefault((figure.chart, figure.experiment, repr(sorted(figure.options.items()))), []).append(name)
    return list(groups.values())


def shown(
    loaded: Loaded,
    names: Sequence[str],
    summary: xr.Dataset,
    at: Source,
    declared: Declarations,
) -> Shown:
    """Return a figure for the page.

    names: figures that draw the same, the first of which gives the title; summary: of their experiment; at: where
    it lies. Raises ValueError for options that the chart does not have. Agreement: tests/report/test_parts.py.
    """
    figure, papers = loaded.spec.figure[names[0]], loaded.spec.run.paper_subject
    ready = prepared(figure, summary, at, papers)
    whose = f"Ours, on {ready.attrs['subject']}" + ("" if ready.attrs["own"] else " — not the paper's model")
    ours = _drawing(names[0], whose, _says(ready.attrs, at.stamp), figure, ready)
    theirs = _published(loaded, names[0])
    sources = " · ".join(filter(None, (labels(loaded.spec.figure[name]) for name in names)))
    toml = declared.of(figure.experiment, names)
    return Shown(names[0], str(ready.attrs["title"]), sources, toml, ours, theirs, tuple(stated_for(figure)))


_KEPT: dict[str, Drawing | None] = {}
"""The published drawings of this process: they are the same on every subject's page."""


def _published(loaded: Loaded, name: str) -> Drawing | None:
    """Return the published numbers of a figure, drawn by its chart; None where none are kept as data."""
    figure, papers = loaded.spec.figure[name], loaded.spec.run.paper_subject
    key = "\0".join([name, figure.model_dump_json(), loaded.spec.model_dump_json(include={"run", "subject"})])
    if key not in _KEPT:
        given = published_for(loaded, figure)
        _KEPT[key] = None
        if given is not None:
            ready, says = prepared(figure, given, Source(Path()), papers), str(given.attrs["obtained"])
            _KEPT[key] = _drawing(f"{name}_published", f"Published, on {papers}", says, figure, ready)
    return _KEPT[key]


def _says(attrs: Mapping[str, Any], stamp: str) -> str:
    """Return what the numbers are worth, without what the page says above: subject, and whose it is."""
    first, *worth = subtitle(attrs, stamp).split(" · ")
    size = first.rsplit("), ", 1)[-1]
    told = ("NOT the paper's model", "no erasure found; strongest candidate shown")
    return " · ".join([size, *(part for part in worth if part not in told)])


WORTH = {
    "roles named": "the spec names writer and erasers; then what a scan said of them, or that none has tested them yet",
    "MINED": "the examples are confident, right predictions in this subject's prompts that DLA credits to the writer",
    "COMMITTED": "read from the small copy that the repository keeps, computed earlier and not here",
    "PARTIAL": "prompts on which the model's activations were not finite are left out of every number",
    "computed in": "weights and products were rounded to that precision",
}
"""What the line below a figure may hold -> what it means."""


def explained(figures: Sequence[Shown]) -> dict[str, str]:
    """Return what the words below these figures mean: those that occur."""
    lines = [figure.ours.says for figure in figures]
    return {word: meaning for word, meaning in WORTH.items() if any(word in line for line in lines)}


def _drawing(name: str, whose: str, says: str, figure: Figure, ds: xr.Dataset) -> Drawing:
    import vl_convert

    whole = paper_figures.spec(figure.chart, ds)
    words = whole.pop("usermeta")
    spec = bare(whole, words["body"])
    drawn = still(vl_convert.vegalite_to_svg(spec), name)
    low, high = (f"{100 * float(q):g} % quantile" for q in ds.attrs.get("quantiles", (0.25, 0.75)))
    return Drawing(
        id=name,
        whose=whose,
        says=says,
        caveat=words["caveat"],
        notes=tuple(words["notes"]),
        described=str(whole.get("description", words["title"])),
        spec=spec,
        still=drawn,
        csv=csv_text(ds),
        sample=sample(ds),
        quantiles=(low, high),
    )


def bare(whole: Mapping[str, Any], body: int) -> dict[str, Any]:
    """Return the spec of a framed figure without the words that its frame adds. body: which part is the drawing."""
    spec = {key: value for key, value in whole.items() if key not in ("title", "usermeta", "description")}
    spec["concat"] = [whole["concat"][body]]
    spec["config"] = {**whole["config"], "background": None, "padding": COMPACT}
    return spec


def sample(ds: xr.Dataset) -> str:
    """Return what a quantile of this result is over: `30 prompts x 1,024 positions`."""
    prompts = int(ds.attrs["n_prompts"])
    if ds.attrs.get("measure") == "resampled_dla":
        return f"{prompts:,} unrelated texts"
    if ds.attrs.get("summarise") == "by_position":
        return f"{prompts:,} prompts"
    return counted(ds)
