"""The unit loop: unit after unit of several results is claimed, computed, and committed while the next computes.

Knows nothing of models: what a unit holds is the business of whoever computes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
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
Answer = tuple[int, Sequence[str], Sequence[str]]
"""A unit, the experiments that were asked of it, and those of them that need not be asked again."""


def missing(results: Mapping[str, Result], failures: Failures, tried: set[tuple[str, int]]) -> Missing:
    """Return the units that each experiment lacks, failed experiments and units already tried left out."""
    return {
        name: {unit for unit in result.missing() if (name, unit) not in tried}
        for name, result in results.items()
        if name not in failures
    }


def units_of(lacking: Missing) -> list[int]:
    """Return all units that anyone lacks, in order."""
    return sorted(set().union(*lacking.values()))


def rounds(
    results: Mapping[str, Result],
    answers: Callable[[Sequence[int], Missing], Iterator[Answer]],
    failures: Failures,
    advance: Callable[[], None],
    waits: Callable[[], None],
) -> None:
    """Have every missing unit of the results filled, here or elsewhere; each is computed once for all that lack it.

    answers: fills some units, and yields each with the experiments asked and those that need not be asked again;
    advance: called after each unit that is done; waits: called where units are left to other living runners, which are
    waited for, not repeated. A unit that was tried is not tried again, so the loop ends.
    """
    assert len({result.unit for result in results.values()}) <= 1, "one unit serves all results"
    tried: set[tuple[str, int]] = set()
    while units := units_of(lacking := missing(results, failures, tried)):
        before = len(tried)
        for unit, asked, done in answers(units, lacking):
            tried.update((name, unit) for name in done)
            if set(done) == set(asked):
                advance()
        if len(tried) - before < sum(map(len, lacking.values())):
            waits()
        if len(tried) == before:
            time.sleep(POLL_S)


def fill(
    results: Mapping[str, Result],
    compute: Compute,
    failures: Failures,
    advance: Callable[[], None] = lambda: None,
    waits: Callable[[], None] = lambda: None,
) -> None:
    """Run `rounds` in this process.

    results: open results with the same unit, by experiment; compute: makes a unit; failures: what has failed and fails.
    What was left out or not written is given back at once, so that nobody waits for it. Raises what `compute` raises,
    with nothing claimed. Agreement: tests/store/test_claims.py, tests/run/test_faults.py.
    """

    def answers(units: Sequence[int], lacking: Missing) -> Iterator[Answer]:
        """Compute the units that nobody else holds, while a thread commits the ones before."""
        with ThreadPoolExecutor(1, "commit") as writer:
            waiting: list[Future[None]] = []
            for unit in units:
                mine = claimed(unit, [name for name in lacking if unit in lacking[name]], results, failures)
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
                yield unit, mine, mine
            for future in waiting:
                future.result()

    rounds(results, answers, failures, advance, waits)


def claimed(unit: int, names: Sequence[str], results: Mapping[str, Result], failures: Failures) -> list[str]:
    """Claim a unit; return the experiments of which nobody else holds it."""
    mine: list[str] = []
    for name in names:
        if name not in failures:
            with failures.guard(name):
                if results[name].claim(unit):
                    mine.append(name)
    return mine


def write(
    unit: int, mine: Sequence[str], filled: Mapping[str, UnitArrays], results: Mapping[str, Result], failures: Failures
) -> None:
    """Commit one unit of every experiment that it is filled for; release the claims of all."""
    try:
        for name, one in filled.items():
            if name not in failures:
                with failures.guard(name):
                    results[name].write_unit(unit, one.arrays, one.notes)
    finally:
        give_back(unit, mine, results)


def give_back(unit: int, mine: Sequence[str], results: Mapping[str, Result]) -> None:
    """Release what is left of the claims on a unit, so that other runners need not wait for this process to end."""
    for name in mine:
        results[name].release(unit)
