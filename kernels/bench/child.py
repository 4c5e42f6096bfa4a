"""A process that measures what it is asked, job by job: whatever a GPU dies of, it takes this process and one row."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

from repro.kernels.bench import timing
from repro.kernels.bench.cases import every
from repro.kernels.bench.providers import BASELINE
from repro.kernels.bench.rates import measure_rates
from repro.kernels.bench.report import Report
from repro.kernels.bench.run import Bench, Group, Passed, check, time_group
from repro.kernels.bench.timing import Budget, Clock
from repro.kernels.bench.whole import end_to_end, profile

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One thing to measure, within a time of its own."""

    what: str
    """`rates`, `case`, `profile` or `whole`."""
    seconds: float
    device: str = "cuda"
    case: str = ""
    dtype: str = ""
    provider: str = ""
    compiles: bool | None = None
    """Whether the providers that compile for long are measured, or the others; None: all."""
    passed: dict[str, list[str]] = field(default_factory=dict)
    """Case -> providers that passed their check, for `whole`."""
    positions: dict[str, int] = field(default_factory=dict)
    """Case -> positions at which it is measured; absent: as declared."""
    rates: dict[str, float] = field(default_factory=dict)
    """Meter -> FLOP or bytes per second, as measured before."""


def serve(job: Job, say: Callable[[Record], None], passed: Passed, clock: Clock = time.monotonic) -> bool:
    """Do one job, saying each record as soon as it is known; return whether the device can be used afterwards.

    passed: what has passed its check in this process, which a job uses and adds to.
    """
    report = _Saying(say)
    bench = Bench(job.device, Budget(job.seconds, clock), report, dict(job.rates), passed)
    try:
        _JOBS[job.what](bench, job)
    except Exception as error:  # a job that fails leaves the next its turn, unless it took the device with it
        gone = timing.lost(str(error))
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        say({"record": "lost" if gone else "broken", "reason": reason})
        return not gone
    notes = (str(record.get("note", "")) for record in report.records)
    lost = next(filter(timing.lost, notes), None)
    if lost is not None:
        say({"record": "lost", "reason": lost})
    return lost is None


class _Saying(Report):
    """A report whose records go to somebody else."""

    def __init__(self, to: Callable[[Record], None]) -> None:
        super().__init__(say=lambda words: None)
        self.to = to

    def add(self, record: Record, *lines: str) -> None:
        super().add(record)
        self.to({**record, "lines": list(lines)})


def _rates(bench: Bench, job: Job) -> None:
    measure_rates(bench)


def _case(bench: Bench, job: Job) -> None:
    group = _group(job, job.case)
    chosen = [entry.name for entry in group.providers if job.compiles in (None, entry.compiles)]
    # The baseline is measured with every other, its row there or not: ratios come from common rounds.
    entries = [entry for entry in group.providers if entry.name in (BASELINE, *chosen)]
    group.only = tuple(chosen)
    check(bench, group, entries)
    time_group(bench, group, bench.budget.left)


def _profile(bench: Bench, job: Job) -> None:
    group = _group(job, job.case)
    _use(bench, group, [job.provider])
    profile(bench, group, job.provider)


def _whole(bench: Bench, job: Job) -> None:
    todo = [_group(job, case) for case in job.passed]
    for group in todo:
        _use(bench, group, job.passed[group.case.name])
    end_to_end(bench, todo, todo[0].case.shape.name if todo else "", job.dtype)


def _group(job: Job, name: str) -> Group:
    """Return a case in a job's dtype, with as many positions as the job says."""
    case = next(case for case in every() if case.name == name)
    declared = case.shape.positions
    positions = job.positions.get(name, declared)
    note = "" if positions == declared else f"{positions} of {declared} positions: budget"
    case = replace(case, shape=replace(case.shape, positions=positions))
    return Group(case, job.dtype, job.device, note=note)


def _use(bench: Bench, group: Group, names: Container[str]) -> None:
    """Give a group the functions of providers that passed their check before; here, if it was in this process."""
    for entry in group.providers:
        if entry.name in names:
            known = bench.passed.get((entry.name, group.case, group.dtype))
            group.functions[entry.name] = known or entry.function(group.case.kernel.name, bench.device)


_JOBS: dict[str, Callable[[Bench, Job], None]] = {
    "rates": _rates, "case": _case, "profile": _profile, "whole": _whole
}  # fmt: skip


def work(jobs: Connection) -> None:
    """Serve the jobs that come through a pipe until it is closed or the device is lost; `done` follows each of them."""
    # Whatever a compiler prints goes to standard error: the command's output is its own.
    os.dup2(2, 1)
    jobs.send({"record": "ready"})
    passed: Passed = {}
    while True:
        try:
            job = jobs.recv()
        except EOFError:
            return
        if not serve(job, jobs.send, passed):
            return
        jobs.send({"record": "done"})
