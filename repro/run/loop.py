"""The unit loop: claims unit after unit of several results, has it computed, and commits it while the next computes.

Knows nothing of models: what a unit holds is the business of whoever computes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from repro.run.failures import Failures
from repro.store.result import Result

POLL_S = 0.5
"""Seconds between two looks at units that another runner holds."""
MAX_WAITING = 2
"""Units computed but not yet written, so that memory stays flat on a slow disk."""


@dataclass(frozen=True)
class UnitArrays:
    """One experiment's arrays for one unit, and what its record must say about how they came to be."""

    arrays: Mapping[str, np.ndarray]
    notes: Mapping[str, Any] = field(default_factory=dict)


Compute = Callable[[int, Sequence[str]], Mapping[str, UnitArrays]]
"""Unit and names of experiments -> what each holds; an experiment that failed is left out."""
Missing = dict[str, set[int]]


def missing(results: Mapping[str, Result], failures: Failures, tried: set[tuple[str, int]]) -> Missing:
    """The units that each experiment lacks, failed experiments and units already tried left out."""
    return {
        name: {unit for unit in result.missing() if (name, unit) not in tried}
        for name, result in results.items()
        if name not in failures
    }


def units_of(lacking: Missing) -> list[int]:
    """All units that anyone lacks, in order."""
    return sorted(set().union(*lacking.values()))


def fill(
    results: Mapping[str, Result],
    compute: Compute,
    failures: Failures,
    advance: Callable[[], None] = lambda: None,
    waits: Callable[[], None] = lambda: None,
) -> None:
    """Has every missing unit of the results computed and written; each unit is computed once for all that lack it.

    results: open results with the same unit, by experiment; compute: makes a unit; failures: what has failed and fails;
    advance: called after each unit; waits: called where units are left to other living runners, which are waited for,
    not done twice. A unit that was tried once is not tried again, so the loop ends. What was left out or not written is
    given back at once, so that nobody waits for it. Raises what `compute` raises, with nothing claimed.
    Agreement: tests/store/test_claims.py, tests/run/test_faults.py.
    """
    assert len({result.unit for result in results.values()}) <= 1, "one unit serves all results"
    tried: set[tuple[str, int]] = set()
    while units := units_of(lacking := missing(results, failures, tried)):
        before = len(tried)
        _over(units, lacking, results, compute, failures, tried, advance)
        if len(tried) - before < sum(map(len, lacking.values())):
            waits()
        if len(tried) == before:
            time.sleep(POLL_S)


def _over(
    units: Sequence[int],
    lacking: Missing,
    results: Mapping[str, Result],
    compute: Compute,
    failures: Failures,
    tried: set[tuple[str, int]],
    advance: Callable[[], None],
) -> None:
    """Computes the units that nobody else holds, while a thread commits the ones before."""
    with ThreadPoolExecutor(1, "commit") as writer:
        waiting: list[Future[None]] = []
        for unit in units:
            names = [name for name in lacking if unit in lacking[name] and name not in failures]
            mine = claimed(unit, names, results, failures)
            tried.update((name, unit) for name in mine)
            if not mine:
                continue
            try:
                filled = compute(unit, mine)
                while len(waiting) >= MAX_WAITING:
                    waiting.pop(0).result()
            except BaseException:
                give_back(unit, mine, results)
                raise
            waiting.append(writer.submit(write, unit, mine, filled, results, failures))
            advance()
        for future in waiting:
            future.result()


def claimed(unit: int, names: Sequence[str], results: Mapping[str, Result], failures: Failures) -> list[str]:
    """The experiments that lack the unit and of which nobody else holds it; this runner now does."""
    mine: list[str] = []

    def claim(name: str) -> None:
        if results[name].claim(unit):
            mine.append(name)

    for name in names:
        failures.guard(name, partial(claim, name))
    return mine


def write(
    unit: int, mine: Sequence[str], filled: Mapping[str, UnitArrays], results: Mapping[str, Result], failures: Failures
) -> None:
    """Commits one unit of every experiment that it is filled for; the others' claims end, too."""
    try:
        for name, one in filled.items():
            failures.guard(name, partial(_write, results[name], unit, one))
    finally:
        give_back(unit, mine, results)


def _write(result: Result, unit: int, filled: UnitArrays) -> None:
    result.write_unit(unit, filled.arrays, filled.notes)


def give_back(unit: int, mine: Sequence[str], results: Mapping[str, Result]) -> None:
    """Ends whatever claim is left on a unit, so that other runners need not wait for this process to end."""
    for name in mine:
        results[name].release(unit)
