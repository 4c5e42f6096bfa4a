"""Which charts draw an experiment: `paper_figures` declares the fields that each of them needs."""

from __future__ import annotations

import json
from collections.abc import Mapping

import paper_figures
from repro.errors import listing

Fields = Mapping[str, object]
"""An experiment's fields with their values, defaults included."""


def misfit(chart: str, name: str, experiment: Fields) -> str:
    """Return why a chart cannot draw an experiment, and which charts can; the empty string where it can.

    chart: one of `paper_figures.names()`; name: the experiment's. Agreement: tests/spec/test_charts.py.
    """
    needed = paper_figures.draws(chart)
    if _fits(chart, experiment):
        return ""
    # Fields of another measure mean nothing: the measure is what differs.
    keys = ["measure"] if experiment["measure"] != needed["measure"] else list(needed)
    has = {key: experiment[key] for key in keys if experiment[key] != needed[key]}
    return f"{chart} draws {_words(needed)}; [experiment.{name}] has {_words(has)}. {_charts_for(experiment)}"


def _fits(chart: str, experiment: Fields) -> bool:
    return all(experiment.get(key) == value for key, value in paper_figures.draws(chart).items())


def _charts_for(experiment: Fields) -> str:
    """Say which charts fit an experiment, or what those of its measure need where none does."""
    if fitting := [chart for chart in paper_figures.names() if _fits(chart, experiment)]:
        return f"Charts that fit it: {listing(fitting)}"
    of_measure = {"measure": experiment["measure"]}
    related: dict[str, list[str]] = {}
    for chart in paper_figures.names():
        needed = paper_figures.draws(chart)
        if needed["measure"] == experiment["measure"]:
            fields = _words({key: value for key, value in needed.items() if key != "measure"})
            related.setdefault(fields, []).append(chart)
    if not related:
        return f"No chart draws {_words(of_measure)}"
    groups = [f"{listing(charts)} with {fields}" for fields, charts in related.items()]
    return f"No chart fits it; of this measure there are {'; '.join(groups)}"


def _words(fields: Fields) -> str:
    return ", ".join(f"{key} = {json.dumps(value, default=str)}" for key, value in fields.items())
