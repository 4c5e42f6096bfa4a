"""The unit loop: claims unit after unit of several results, has it computed, and commits it while the next computes.

Knows nothing of models: what a unit holds is the business of whoever computes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from repro.failures import Failures
from repro.store import Result

POLL_S = 0.5
"""Seconds between two looks at units that another runner holds."""
MAX_WAITING = 2
"""Units computed but not yet written, so that memory stays flat on a slow disk."""


@dataclass(frozen=True)
class Filled:
    """One experiment's arrays for one unit, and what its record must say about how they came to be."""

    arrays: Mapping[str, np.ndarray]
    notes: Mapping[str, Any] = field(default_factory=dict)


Compute = Callable[[int, Sequence[str]], Mapping[str, Filled]]
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
    results: Mapping[str, Result], compute: Compute, failures: Failures, advance: Callable[[], None] = lambda: None
) -> None:
    """Has every missing unit of the results computed and written; each unit is computed once for all that lack it.

    results: open results with the same unit, by experiment; compute: makes a unit; failures: what has failed and fails;
    advance: called after each unit. What another living runner holds is waited for, not done twice; a unit that was
    tried once is not tried again, so the loop ends. Agreement: tests/test_faults.py.
    """
    tried: set[tuple[str, int]] = set()
    while units := units_of(lacking := missing(results, failures, tried)):
        before = len(tried)
        _over(units, lacking, results, compute, failures, tried, advance)
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
            mine = [name for name in names if results[name].claim(unit)]
            tried.update((name, unit) for name in mine)
            if not mine:
                continue
            filled = compute(unit, mine)
            while len(waiting) >= MAX_WAITING:
                waiting.pop(0).result()
            waiting.append(writer.submit(write, unit, filled, results, failures))
            advance()
        for future in waiting:
            future.result()


def write(unit: int, filled: Mapping[str, Filled], results: Mapping[str, Result], failures: Failures) -> None:
    """Commits one unit of every experiment."""
    for name, one in filled.items():
        failures.guard(name, lambda n=name, f=one: _write(results[n], unit, f))  # type: ignore[misc]


def _write(result: Result, unit: int, filled: Filled) -> None:
    result.write_unit(unit, filled.arrays, filled.notes)
