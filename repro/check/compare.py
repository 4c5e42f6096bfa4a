"""Published numbers against ours, one verdict each: pure functions over stored summaries."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from repro.check.bootstrap import RESAMPLES, Bootstrap, Interval
from repro.check.published import Claim, Drawn, Number, Published, read_published
from repro.errors import Exit
from repro.labels import FLOAT32

Verdict = Literal["match", "within interval", "differs", "not determinable here"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_FITS = ("pearson_r", "slope", "intercept")


@dataclass(frozen=True)
class Row:
    """One line of the comparison. `ours` belongs to `subject`, which is the paper's own only if the verdict says so."""

    id: str
    quantity: str
    figure: str
    experiment: str
    variant: str
    published: float | str
    ours: float | None
    interval: Interval | None
    tolerance: str
    verdict: Verdict
    why: str
    subject: str
    source: str
    obtained: str
    group: str | None = None
    precision: str = FLOAT32
    """What ours was computed in."""


def check(
    results: Mapping[str, xr.Dataset],
    *,
    subject_is_papers: bool,
    same_prompts: bool,
    raw: Callable[[str], xr.Dataset] | None = None,
    published: Published | None = None,
    resamples: int = RESAMPLES,
    tables: bool = True,
) -> list[Row]:
    """Return one verdict for every published number and claim.

    A number is compared only with the result of the variant that drew it, on the paper's own subject, under its named
    roles and prompt length; everything else is `not determinable here`, with the reason. Then: `match` within the
    declared tolerance (where that supposes the same prompts, only on the same prompts); else `within interval` if the
    published value lies in the 95 % cluster-bootstrap interval of ours over prompts; else `differs`.
    results: summaries by experiment name; subject_is_papers: the model is the one published about;
    same_prompts: its prompts are the published ones, in their order; raw: raw values by experiment name, KeyError where
    there are none; published: the numbers (default: the bundled ones); resamples: bootstrap resamples; tables: whether
    the numbers of large tables get an interval where they do not match, too, which may take a minute.
    Returns rows, numbers before claims, in the published order. Agreement: tests/check/test_check.py.
    """
    published = published or read_published()
    reader = _Reader(results, published)
    numbers = [_judge_by_tolerance(reader, number, same_prompts) for number in published.numbers]
    claims = [_judge_claim(reader, claim) for claim in published.claims]
    if not subject_is_papers:
        here = f"published for {published.paper.subject}, not for"
        return [
            replace(row, verdict="not determinable here", why=f"{here} {row.subject or 'this subject'}")
            for row in numbers + claims
        ]
    waiting = [
        (number, row)
        for number, row in zip(published.numbers, numbers, strict=True)
        if row.verdict != "not determinable here" and (tables or number.group is None) and _wants_interval(number, row)
    ]
    intervals = _intervals(waiting, reader, Bootstrap(raw, resamples))
    rows = [
        _judge_by_interval(row, number, intervals[number.id]) if number.id in intervals else row
        for number, row in zip(published.numbers, numbers, strict=True)
    ]
    return rows + claims


def exit_code(rows: Iterable[Row]) -> Exit:
    """Return Exit.DIFFERS if any number differs, which only the paper's own subject can; else Exit.OK."""
    return Exit.DIFFERS if any(row.verdict == "differs" for row in rows) else Exit.OK


class _NoCounterpartError(Exception):
    """Why an entry has no counterpart here."""


class _Reader:
    """Looks values up in summaries by label, and says why a value must not be compared."""

    def __init__(self, results: Mapping[str, xr.Dataset], published: Published) -> None:
        self.results, self.published = results, published

    def result(self, entry: Number | Claim) -> xr.Dataset:
        """Return the result of the variant that drew this entry."""
        name = self.published.drawn_by(entry).experiment
        if name not in self.results:
            raise _NoCounterpartError(f"no result of {name!r}, the experiment that drew it ({entry.variant})")
        return self.results[name]

    def require(self, entry: Number | Claim) -> None:
        """Raise _NoCounterpartError unless the variant that drew this entry has a result here under the same roles."""
        drawn, attrs = self.published.drawn_by(entry), self.result(entry).attrs
        if obstacle := self._other_variant(entry, drawn, attrs) or self._other_roles(drawn, attrs):
            raise _NoCounterpartError(obstacle)

    def _other_variant(self, entry: Number | Claim, drawn: Drawn, attrs: Mapping[Any, Any]) -> str:
        same = [name for name, d in self.published.drawn[entry.experiment].items() if d.experiment == drawn.experiment]
        given = attrs.get("variant", entry.variant)
        if given not in same:
            return f"drawn by variant {entry.variant!r}; this result is variant {given!r}"
        expected: dict[str, Any] = {"n_positions": drawn.length, "positions": _plain(drawn.positions), **drawn.settings}
        if isinstance(entry, Number) and entry.select.get("quantile") in ("lower", "upper"):
            expected["quantiles"] = list(self.published.paper.quantiles)
        for key, value in expected.items():
            if key in attrs and _plain(attrs[key]) != value:
                return f"drawn with {key} = {value!r}; this result has {_plain(attrs[key])!r}"
        return ""

    def _other_roles(self, drawn: Drawn, attrs: Mapping[Any, Any]) -> str:
        # Named roles are the paper's own, whatever a scan says of them: `named, claimed`, `named, no scan yet`.
        roles = str(attrs.get("roles", "named"))
        if not roles.startswith("named") or (roles == "named" and not attrs.get("found", True)):
            return "roles were found automatically here and named by the authors there"
        if "examples" in drawn.roles and attrs.get("examples", "named") != "named":
            return "examples were mined here and chosen by the authors there"
        for role in (role for role in drawn.roles if role != "examples"):
            expected, here = _plain(getattr(self.published.paper, role)), _plain(attrs.get(role))
            if isinstance(expected, list) and isinstance(here, str):
                here = here.split(", ")  # a stored summary has several heads in one text
            if role in attrs and here != expected:
                return f"{role} there: {_words(expected)}; here: {_words(here)}"
        return ""

    def value(self, entry: Number | Claim, variable: str, select: Mapping[str, str]) -> float:
        """Return a summary's value at the selected labels; _NoCounterpartError naming what is not there."""
        found = self.result(entry)
        if variable not in found:
            raise _NoCounterpartError(f"the result holds no {variable!r}")
        labels = self.labels(entry, select)
        index = []
        for dim in map(str, found[variable].dims):
            try:
                index.append(int(found.indexes[dim].get_loc(labels[dim])))
            except KeyError:
                raise _NoCounterpartError(f"the result has no {dim} {labels.get(dim, '')!r}") from None
        return float(found[variable].values[tuple(index)])

    def labels(self, entry: Number | Claim, select: Mapping[str, str]) -> dict[str, str]:
        """Return the selection in the result's own labels: a prompt is recognised by its text, whatever its label."""
        if "example" not in select:
            return dict(select)
        found = self.result(entry)
        text = self.published.examples[select["example"]]
        if "text" not in found.coords:
            raise _NoCounterpartError("the result does not say which prompts its examples are")
        for label, given in zip(found["example"].values, found["text"].values, strict=True):
            if str(given) == text:
                return {**select, "example": str(label)}
        raise _NoCounterpartError(f"the result has no prompt {text!r}")


def _plain(value: Any) -> Any:
    """Return an attribute as plain values: a store gives back lists, tuples or arrays."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _blank(reader: _Reader, entry: Number | Claim, published: float | str, tolerance: str) -> Row:
    name = reader.published.drawn_by(entry).experiment
    attrs = reader.results[name].attrs if name in reader.results else {}
    return Row(
        id=entry.id,
        quantity=entry.quantity,
        figure=str(entry.figure),
        experiment=name,
        variant=entry.variant,
        published=published,
        ours=None,
        interval=None,
        tolerance=tolerance,
        verdict="not determinable here",
        why="",
        subject=str(attrs.get("subject", "")),
        source=entry.source,
        obtained=entry.obtained,
        precision=str(attrs.get("precision", FLOAT32)),
    )


def _judge_by_tolerance(reader: _Reader, number: Number, same_prompts: bool) -> Row:
    row = replace(_blank(reader, number, number.value, str(number.tolerance)), group=number.group)
    try:
        reader.require(number)
        ours = reader.value(number, number.variable, number.select)
    except _NoCounterpartError as error:
        return replace(row, why=str(error))
    row = replace(row, ours=ours)
    if not math.isfinite(ours):
        return replace(row, verdict="differs", why="ours is not a number")
    prompts = reader.published.drawn_by(number).prompts
    same = same_prompts and int(reader.result(number).attrs.get("n_prompts", prompts)) == prompts
    if not number.tolerance.allows(number.value, ours):
        return replace(row, verdict="differs", why="outside the tolerance")
    if number.best != "match":
        return replace(row, verdict="differs", why="the published prompts are unknown: no tolerance applies")
    if number.same_prompts and not same:
        return replace(row, verdict="differs", why="not the published prompts: no tolerance applies")
    return replace(row, verdict="match", why="within the tolerance")


def _wants_interval(number: Number, row: Row) -> bool:
    """Return whether to show an interval: for single numbers always, in the large table only for what is no match."""
    possible = "quantile" in number.select or number.variable in _FITS
    settled = number.group is not None and row.verdict == "match"
    return possible and not settled and row.ours is not None and math.isfinite(row.ours)


def _intervals(
    waiting: Iterable[tuple[Number, Row]], reader: _Reader, bootstrap: Bootstrap
) -> dict[str, Interval | str]:
    lower, upper = reader.published.paper.quantiles
    levels = {"lower": lower, "median": 0.5, "upper": upper}
    intervals: dict[str, Interval | str] = {}
    together: dict[tuple[str, str], list[tuple[str, dict[str, str], float]]] = defaultdict(list)
    for number, row in waiting:
        if number.variable in _FITS:
            positions = reader.published.drawn_by(number).positions
            intervals[number.id] = bootstrap.fit(row.experiment, number.variable, number.select["against"], positions)
        else:
            labels = reader.labels(number, number.select)
            level = levels[labels.pop("quantile")]
            together[row.experiment, number.variable].append((number.id, labels, level))
    for (experiment, variable), wanted in together.items():
        found = bootstrap.quantiles(experiment, variable, [(labels, level) for _, labels, level in wanted])
        intervals |= {name: interval for (name, _, _), interval in zip(wanted, found, strict=True)}
    return intervals


def _judge_by_interval(row: Row, number: Number, interval: Interval | str) -> Row:
    if isinstance(interval, str):
        if row.verdict == "match":
            return row
        return replace(row, verdict="not determinable here", why=f"{row.why}; {interval}")
    row = replace(row, interval=interval)
    if row.verdict == "match":
        return row
    low, high = interval
    if low <= number.value <= high:
        return replace(row, verdict="within interval", why=f"{row.why}; in the 95 % interval over prompts")
    return replace(row, why=f"{row.why}; outside the 95 % interval over prompts")


def _judge_claim(reader: _Reader, claim: Claim) -> Row:
    row = _blank(reader, claim, claim.rule, "our rule for words")
    try:
        reader.require(claim)
        measured = [_statistic(reader, claim, i) for i in range(len(claim.elements))]
    except _NoCounterpartError as error:
        return replace(row, why=str(error))
    low = -math.inf if claim.above is None else claim.above
    high = math.inf if claim.below is None else claim.below
    margins = [min(x - low, high - x) if math.isfinite(x) else -math.inf for x in measured]
    worst = int(np.argmin(margins))
    where = ", ".join(v for k, v in claim.elements[worst].items() if k not in ("quantile", "run"))
    row = replace(row, ours=measured[worst])
    if margins[worst] > 0:
        return replace(row, verdict="match", why=f"the rule holds, most narrowly for {where}")
    return replace(row, verdict="differs", why=f"the rule fails for {where}")


def _statistic(reader: _Reader, claim: Claim, i: int) -> float:
    value = reader.value(claim, claim.variable, claim.elements[i])
    if claim.statistic == "value":
        return value
    if claim.statistic == "absolute":
        return abs(value)
    other = reader.value(claim, claim.against.variable or claim.variable, claim.against_elements[i])
    if claim.statistic == "difference":
        return value - other
    return abs(value - other) / abs(other) if other else math.nan
