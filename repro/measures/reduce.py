"""The reduced result of an experiment: its measure's own reduction, and what every summary says of itself."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr

from repro.measures.base import VARIANT_FIELDS, Context, Decode, Measure, Prepared
from repro.measures.describe import described
from repro.store.excluded import NOTE, Raw, ValidPrompts


def summarise(
    experiment: Measure, context: Context, raw: Raw, prepared: Prepared, decode: Decode, without: Sequence[int] = ()
) -> xr.Dataset:
    """Return the reduced result of an experiment.

    raw: its complete arrays; prepared: what was computed before the pass; decode: token id -> text; without: prompts
    that are left out, as if they did not exist. Returns a Dataset whose attrs name quantiles, roles, sizes, and the
    prompts left out where there are any. Raises ReproError (exit 1) where none is left.
    Agreement: tests/measures/test_summaries.py, tests/store/test_excluded.py.
    """
    dataset = experiment.reduce(context, ValidPrompts(raw, without), prepared, decode)
    if without:
        dataset.attrs[NOTE] = list(without)
    dataset.attrs.update(
        measure=experiment.measure,  # type: ignore[attr-defined] # every subclass declares its own
        n_prompts=context.n_prompts,
        n_positions=context.n_positions,
        **_variant(experiment, context),
    )
    for key, value in context.roles.attrs().items():
        dataset.attrs.setdefault(key, value)
    return described(dataset, raw.layout)


def _variant(experiment: Measure, context: Context) -> dict[str, object]:
    """Return the fields in which texts and research code differ, so that `check` can tell which variant a result is."""
    given = experiment.model_dump(mode="json", include=VARIANT_FIELDS)
    if given.get("positions") is not None:
        first, last = given["positions"]
        given["positions"] = [first, last + context.n_positions if last < 0 else last]
    return {key: value for key, value in given.items() if value is not None}
