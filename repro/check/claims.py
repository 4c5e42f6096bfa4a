"""The publications' claims in words, asked of any subject: is what was said of gelu-4l true of these roles, too?

Each claim is one statistic of stored results with a rule of ours (the same as for the published numbers where that rule
is free of gelu-4l's own values), its 95 % interval over prompts (cluster bootstrap), and a verdict:
`holds` if the whole interval meets the rule, `does not hold` if none of it does, `undecided` between the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from repro.check.bootstrap import MIN_PROMPTS, RESAMPLES, Bootstrap, Interval, percentile_interval
from repro.labels import step_of

ClaimVerdict = Literal["holds", "does not hold", "undecided", "not determinable here"]
CLAIM_VERDICTS: tuple[ClaimVerdict, ...] = get_args(ClaimVerdict)
_WORST_FIRST: tuple[ClaimVerdict, ...] = ("not determinable here", "does not hold", "undecided", "holds")
SITES, NODES, PATCH, EXAMPLES, SCATTER = (
    "sites_onto_nodes",
    "nodes_onto_writer",
    "v_patch",
    "resampled_dla",
    "dla_scatter",
)


@dataclass(frozen=True)
class ClaimRow:
    """One claim, tested on a subject's own roles."""

    id: str
    claim: str
    rule: str
    value: float | None
    interval: Interval | None
    verdict: ClaimVerdict
    why: str


@dataclass(frozen=True)
class Rule:
    """low < value < high."""

    low: float = -math.inf
    high: float = math.inf

    def judge(self, value: float, interval: Interval | None) -> ClaimVerdict:
        """Return whether all of the interval meets the rule, or none of it; without an interval, whether the value."""
        low, high = interval or (value, value)
        if not (math.isfinite(low) and math.isfinite(high)):
            return "not determinable here"
        if self.low < low and high < self.high:
            return "holds"
        return "does not hold" if high <= self.low or low >= self.high else "undecided"

    def margin(self, value: float) -> float:
        """Return how far inside the rule a value lies; negative outside."""
        return min(value - self.low, self.high - value) if math.isfinite(value) else -math.inf

    def __str__(self) -> str:
        lower = "" if self.low == -math.inf else f"{self.low:g} < "
        upper = "" if self.high == math.inf else f" < {self.high:g}"
        return f"{lower}value{upper}"


class _LackingError(Exception):
    """Why a claim cannot be asked here."""


@dataclass(frozen=True)
class _Estimate:
    """A statistic's value, and its values in the resamples; none where raw values are not here or too few."""

    value: float
    samples: np.ndarray | None = None
    known: Interval | None = None
    """Its interval, where something else has resampled it."""

    @property
    def interval(self) -> Interval | None:
        return self.known if self.samples is None else percentile_interval(self.samples)


def _combined(function: Callable[..., Any], *parts: _Estimate) -> _Estimate:
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(function(*(np.float64(part.value) for part in parts)))
        if any(part.samples is None for part in parts):
            return _Estimate(value)
        return _Estimate(value, np.asarray(function(*(part.samples for part in parts))))


class _Claims:
    """Looks results up and resamples them; every claim is one method."""

    def __init__(
        self, results: Mapping[str, xr.Dataset], raw: Callable[[str], xr.Dataset] | None, resamples: int
    ) -> None:
        self.results, self.bootstrap = results, Bootstrap(raw, resamples)

    def result(self, name: str) -> xr.Dataset:
        if name not in self.results:
            raise _LackingError(f"no result of {name!r}")
        return self.results[name]

    def roles(self, name: str) -> tuple[str, list[str]]:
        """Return the writer and its erasers."""
        attrs = self.result(name).attrs
        given = attrs.get("erasers", [])
        erasers = [part for part in given.split(", ") if part] if isinstance(given, str) else [str(e) for e in given]
        if not erasers:
            raise _LackingError("no component has the role of an eraser here")
        return str(attrs["writer"]), erasers

    def median(self, name: str, variable: str, **labels: str) -> _Estimate:
        """Return the pooled median of a stored variable at some labels, with its resamples."""
        found = self.result(name)
        try:
            value = float(found[variable].sel({"quantile": "median", **labels}))
        except KeyError as error:
            raise _LackingError(f"the result of {name} holds no {variable} at {error}") from None
        samples = self.bootstrap.medians(name, variable, labels)
        return _Estimate(value, None if isinstance(samples, str) else samples)

    def path(self, name: str) -> tuple[list[str], int, int, int]:
        """Return the sites; indices of the first with the writer, the last before its erasers, the first after."""
        writer, erasers = self.roles(name)
        sites = [str(site) for site in self.result(name)["site"].values]
        steps = [step_of(label) for label in erasers]
        return sites, step_of(writer), min(steps) - 1, max(steps)


def ask_claims(
    results: Mapping[str, xr.Dataset], raw: Callable[[str], xr.Dataset] | None = None, resamples: int = RESAMPLES
) -> list[ClaimRow]:
    """Return every claim in words, tested on the roles of the subject whose results these are.

    results: summaries by experiment; raw: raw values by experiment, KeyError where there are none; resamples: of the
    prompts. Agreement: tests/check/test_claims.py.
    """
    asked = _Claims(results, raw, resamples)
    return [_row(asked, *entry) for entry in _ASKED]


def _row(asked: _Claims, name: str, words: str, rule: Rule, ask: Callable[[_Claims], Any]) -> ClaimRow:
    try:
        parts: Sequence[tuple[str, _Estimate]] = ask(asked)
    except _LackingError as error:
        return ClaimRow(name, words, str(rule), None, None, "not determinable here", str(error))
    lacking = [where for where, estimate in parts if not math.isfinite(estimate.value)]
    if lacking:
        return ClaimRow(name, words, str(rule), None, None, "not determinable here", f"undefined for {lacking[0]}")
    judged = [(rule.judge(estimate.value, estimate.interval), where, estimate) for where, estimate in parts]
    # A claim about several is as good as the worst of them: a wide interval may fail where a lower median does not.
    verdict = min((verdict for verdict, _, _ in judged), key=_WORST_FIRST.index)
    _, where, estimate = min(
        (part for part in judged if part[0] == verdict), key=lambda part: rule.margin(part[2].value)
    )
    why = where if len(parts) == 1 else f"{where}, the least favourable of {len(parts)}"
    if estimate.interval is None:
        why += f"; no interval, which needs raw values of {MIN_PROMPTS} prompts"
    return ClaimRow(name, words, str(rule), estimate.value, estimate.interval, verdict, why)


def _absent(asked: _Claims) -> list[tuple[str, _Estimate]]:
    sites, start, _, _ = asked.path(SITES)
    writer, _ = asked.roles(SITES)
    if start == 0:
        raise _LackingError(f"no site comes before {writer}")
    found = asked.median(SITES, "pr", node=writer, site=sites[start - 1])
    return [(f"{writer} at {sites[start - 1]}", found)]


def _present(asked: _Claims) -> list[tuple[str, _Estimate]]:
    sites, start, before, _ = asked.path(SITES)
    writer, _ = asked.roles(SITES)
    kept = sites[start : before + 1]
    return [(f"{writer} at {site}", asked.median(SITES, "pr", node=writer, site=site)) for site in kept]


def _falls(asked: _Claims) -> list[tuple[str, _Estimate]]:
    sites, _, before, after = asked.path(SITES)
    writer, _ = asked.roles(SITES)
    ends = [asked.median(SITES, "pr", node=writer, site=sites[i]) for i in (before, after)]
    return [(f"{writer} from {sites[before]} to {sites[after]}", _combined(lambda a, b: a - b, *ends))]


def _negative(asked: _Claims) -> list[tuple[str, _Estimate]]:
    _, erasers = asked.roles(NODES)
    return [(label, asked.median(NODES, "pr", component=label)) for label in erasers]


def _less_when_patched(asked: _Claims) -> list[tuple[str, _Estimate]]:
    sites, _, before, after = asked.path(PATCH)
    ends = [
        asked.median(PATCH, "site_pr", run=run, site=sites[i]) for run in ("clean", "patched") for i in (before, after)
    ]
    if not ends[0].value > ends[1].value:
        raise _LackingError(f"nothing falls from {sites[before]} to {sites[after]}")
    share = _combined(lambda a, b, c, d: 1 - (c - d) / (a - b), *ends)
    return [(f"from {sites[before]} to {sites[after]}", share)]


def _moved(asked: _Claims, own: bool) -> list[tuple[str, _Estimate]]:
    found = asked.result(EXAMPLES)
    writer = str(found.attrs["writer"])
    parts = []
    for example in map(str, found["example"].values):
        head = writer if own else str(found["head_shown"].sel(example=example).item())
        if not own and head == writer:
            continue
        clean = float(found["clean"].sel(example=example, head=head))
        median = asked.median(EXAMPLES, "resampled", example=example, head=head)
        change = _combined(lambda m, clean=clean: abs(m - clean) / abs(clean), median)
        parts.append((f"{head} on {example}", change))
    if not parts:
        raise _LackingError("no example shows another head than the writer")
    return parts


def _fit(asked: _Claims, statistic: str) -> list[tuple[str, _Estimate]]:
    found = asked.result(SCATTER)
    asked.roles(SCATTER)
    against = next(str(label) for label in found["against"].values if str(label) != "output")
    value = float(found[statistic].sel(against=against))
    window = found.attrs.get("positions")
    positions = None if window is None or isinstance(window, str) else (int(window[0]), int(window[1]))
    interval = asked.bootstrap.fit(SCATTER, statistic, against, positions)
    known = None if isinstance(interval, str) else interval
    return [(f"{int(found['n_points'].sel(against=against)):,} points", _Estimate(value, known=known))]


_ASKED: tuple[tuple[str, str, Rule, Callable[[_Claims], Any]], ...] = (
    ("absent_before", "the stream holds nothing of the writer before it writes", Rule(-0.1, 0.1), _absent),
    ("present_after_writing", "wholly present after writing, until its erasers", Rule(0.9, 1.1), _present),
    ("falls_across_erasers", "its presence falls across its erasers by 0.25 or more", Rule(0.25), _falls),
    ("erasers_negative", "every eraser writes against it", Rule(high=0.0), _negative),
    (
        "falls_less_patched",
        "more than half of the fall goes away when the erasers do not see the writer",
        Rule(0.5),
        _less_when_patched,
    ),
    (
        "writer_unmoved",
        "resampling its input leaves the writer's DLA where it was (relative change)",
        Rule(high=0.1),
        lambda asked: _moved(asked, own=True),
    ),
    (
        "others_moved",
        "resampling moves the other heads' DLA (relative change)",
        Rule(0.5),
        lambda asked: _moved(asked, own=False),
    ),
    (
        "r_negative",
        "the erasers' DLA through the writer opposes the writer's: Pearson r",
        Rule(high=0.0),
        lambda asked: _fit(asked, "pearson_r"),
    ),
    (
        "slope_negative",
        "the same as a slope (-1: perfect erasure)",
        Rule(high=0.0),
        lambda asked: _fit(asked, "slope"),
    ),
)
