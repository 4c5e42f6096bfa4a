"""What another precision does to the numbers: each experiment beside the variant that differs in nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from repro.check.compare import Row
from repro.check.variants import changed_fields, headlines, variant_pairs
from repro.labels import FLOAT32
from repro.spec.types import Common
from repro.store.excluded import NOTE


@dataclass(frozen=True)
class Pair:
    """An experiment, the variant that is the same at another precision, and both precisions."""

    base: str
    variant: str
    before: str
    after: str


@dataclass(frozen=True)
class Quantity:
    """One quantity at both precisions; `published` and verdicts are there on the paper's own subject alone."""

    experiment: str
    quantity: str
    before: float | None
    after: float | None
    id: str = ""
    figure: str = ""
    group: str | None = None
    published: float | str | None = None
    verdict_before: str = ""
    verdict_after: str = ""

    @property
    def difference(self) -> float | None:
        """Return what the precision adds; None where either is missing."""
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True)
class Spread:
    """How far the values of one stored variable move."""

    experiment: str
    variable: str
    values: int = 0
    """How many are defined at both precisions."""
    undefined: int = 0
    """How many are defined at one of them only."""
    median: float | None = None
    """Of the absolute differences, in the variable's unit."""
    largest: float | None = None
    where: str = ""
    """The labels of the largest; or why there is nothing to compare."""
    before: float | None = None
    """The value there."""
    after: float | None = None


@dataclass(frozen=True)
class Effect:
    """What one precision does to all experiments that the store holds at it and at the one before."""

    before: str
    after: str
    pairs: tuple[Pair, ...]
    headlines: tuple[Quantity, ...]
    published: tuple[Quantity, ...]
    variables: tuple[Spread, ...]
    uneven: tuple[str, ...]
    """Experiments of which the two precisions leave out different prompts."""


def _declared(experiments: Mapping[str, Common]) -> list[tuple[str, str]]:
    """Return each variant that differs from the experiment that it varies in precision alone, and that one."""
    return [
        (variant, base)
        for variant, base in variant_pairs(experiments)
        if changed_fields(experiments[base], experiments[variant]) == ["precision"]
    ]


def precision_pairs(experiments: Mapping[str, Common], results: Mapping[str, xr.Dataset]) -> list[Pair]:
    """Return the stored variants that differ from what they vary, stored as well, in precision alone.

    experiments: the declared ones; results: summaries by experiment name. In the spec's order.
    """
    pairs = []
    for variant, base in _declared(experiments):
        if {variant, base} <= set(results):
            before, after = (str(results[name].attrs.get("precision", FLOAT32)) for name in (base, variant))
            if before != after:
                pairs.append(Pair(base, variant, before, after))
    return pairs


def unpaired(experiments: Mapping[str, Common], found: Sequence[Effect]) -> list[str]:
    """Return the declared variants of precision that no effect shows."""
    shown = {pair.variant for effect in found for pair in effect.pairs}
    return [name for name, base in _declared(experiments) if name not in shown]


def effects(
    experiments: Mapping[str, Common],
    results: Mapping[str, xr.Dataset],
    rows: Sequence[Row],
    judge: Callable[[Mapping[str, str]], Sequence[Row]],
    subject_is_papers: bool,
) -> list[Effect]:
    """Return what each precision in the store does to published quantities, headlines and every stored variable.

    experiments: the declared ones; results: summaries by experiment name; rows: `check` on them; judge: `check` with
    the results of some experiments replaced, {experiment: whose result takes its place}; subject_is_papers: whether
    published numbers and verdicts belong to this subject. One Effect for each two precisions; none where nothing is
    stored at both. Agreement: tests/check/test_precision.py.
    """
    pairs = precision_pairs(experiments, results)
    found = []
    for before, after in dict.fromkeys((pair.before, pair.after) for pair in pairs):
        own = tuple(pair for pair in pairs if (pair.before, pair.after) == (before, after))
        others = judge({pair.base: pair.variant for pair in own})
        found.append(
            Effect(
                before,
                after,
                own,
                tuple(line for pair in own for line in _headlines(pair, results)),
                tuple(_published(rows, others, {pair.base for pair in own}, subject_is_papers)),
                tuple(line for pair in own for line in spreads(pair, results)),
                tuple(pair.base for pair in own if _uneven(pair, results)),
            )
        )
    return found


def _headlines(pair: Pair, results: Mapping[str, xr.Dataset]) -> list[Quantity]:
    before, after = headlines(results[pair.base]), headlines(results[pair.variant])
    return [Quantity(pair.base, name, before.get(name), value) for name, value in after.items()]


def _published(rows: Sequence[Row], others: Sequence[Row], experiments: set[str], own: bool) -> list[Quantity]:
    """Return the rows of `check` that concern some experiments and have a value, at both precisions."""
    found = []
    for row, other in zip(rows, others, strict=True):
        if row.experiment in experiments and (row.ours is not None or other.ours is not None):
            line = Quantity(row.experiment, row.quantity, row.ours, other.ours, row.id, row.figure, row.group)
            if own:
                line = replace(
                    line, published=row.published, verdict_before=_verdict(row), verdict_after=_verdict(other)
                )
            found.append(line)
    return found


def _verdict(row: Row) -> str:
    """Return a row's verdict; of a large table only whether it is a match, which takes no intervals."""
    return row.verdict if row.group is None or row.verdict == "match" else "no match"


def spreads(pair: Pair, results: Mapping[str, xr.Dataset]) -> list[Spread]:
    """Return how far each variable of a summary moves between the precisions of a pair."""
    before, after = results[pair.base], results[pair.variant]
    uneven = _uneven(pair, results)
    found = []
    for name in sorted({*map(str, before.data_vars), *map(str, after.data_vars)}):
        if name not in before or name not in after:
            why = f"stored at {pair.before if name in before else pair.after} only"
        elif "prompt" in before[name].dims and uneven:
            why = "other prompts are left out"
        elif not _same_labels(before[name], after[name]):
            why = "its bins are its own"
        else:
            found.append(_spread(pair.base, name, before[name], after[name]))
            continue
        found.append(Spread(pair.base, name, where=why))
    return found


def _uneven(pair: Pair, results: Mapping[str, xr.Dataset]) -> bool:
    before, after = (list(results[name].attrs.get(NOTE, ())) for name in (pair.base, pair.variant))
    return before != after


def _same_labels(one: xr.DataArray, other: xr.DataArray) -> bool:
    """Return whether values belong together; texts beside labels, such as predictions, are findings and may differ."""
    if one.sizes != other.sizes:
        return False
    kept = [name for name, coord in one.coords.items() if name in one.dims or coord.dtype.kind in "fiu"]
    return all(np.array_equal(one[name].values, other[name].values) for name in kept)


def _spread(experiment: str, name: str, one: xr.DataArray, other: xr.DataArray) -> Spread:
    a, b = (array.values.astype(np.float64) for array in (one, other))
    defined = np.isfinite(a) & np.isfinite(b)
    undefined = int((np.isfinite(a) != np.isfinite(b)).sum())
    if not defined.any():
        return Spread(experiment, name, undefined=undefined)
    moved = np.where(defined, np.abs(b - a), -1.0)
    at = np.unravel_index(int(np.argmax(moved)), moved.shape)
    where = ", ".join(
        f"{dim} {one[dim].values[index] if dim in one.coords else index}"
        for dim, index in zip(one.dims, at, strict=True)
    )
    count, middle, largest = int(defined.sum()), float(np.median(moved[defined])), float(moved[at])
    if largest == 0:
        return Spread(experiment, name, count, undefined, middle, largest)
    return Spread(experiment, name, count, undefined, middle, largest, where, float(a[at]), float(b[at]))
