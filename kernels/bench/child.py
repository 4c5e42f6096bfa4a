"""A process that measures what it is asked, job by job: whatever a GPU dies of, it takes this process and one row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

from repro.kernels.bench import timing
from repro.kernels.bench.cases import every
from repro.kernels.bench.providers import BASELINE
from repro.kernels.bench.rates import measure_rates
from repro.kernels.bench.report import Report
from repro.kernels.bench.run import Bench, Group, check, time_group
from repro.kernels.bench.timing import Budget, Clock
from repro.kernels.bench.whole import end_to_end, profile

Record = dict[str, Any]
# Calls per provider that checking and timing need at least, against the floor that one call cannot beat.
CALLS, SLACK = 8, 2
FEWEST_POSITIONS = 64


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
    rates: dict[str, float] = field(default_factory=dict)
    """Meter -> FLOP or bytes per second, as measured before."""


def serve(job: Job, say: Callable[[Record], None], clock: Clock = timing.time.monotonic) -> bool:
    """Do one job, saying each record as soon as it is known; return whether the device can be used afterwards."""
    report = _Saying(say)
    bench = Bench(job.device, Budget(job.seconds, clock), report, dict(job.rates))
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
    group = _group(bench, job.case, job.dtype)
    chosen = [entry.name for entry in group.providers if job.compiles in (None, entry.compiles)]
    # The baseline is measured with every other, its row there or not: ratios come from common rounds.
    entries = [entry for entry in group.providers if entry.name in (BASELINE, *chosen)]
    group.only = tuple(chosen)
    if bench.device == "cpu":
        _shorten(bench, group, len(entries))
    check(bench, group, entries)
    time_group(bench, group, bench.budget.left)


def _shorten(bench: Bench, group: Group, providers: int) -> None:
    """Halve the positions of a group until it fits the job, by the matrix-product rate and what is usual on a CPU."""
    case, flop = group.case, bench.rates["matmul ieee"] * bench.budget.left / (CALLS * SLACK * providers)
    while case.kernel.flop(case.shape) > flop and case.shape.positions > FEWEST_POSITIONS:
        case = replace(case, shape=replace(case.shape, positions=case.shape.positions // 2))
    if case != group.case:
        group.note = f"{case.shape.positions} of {group.case.shape.positions} positions: budget"
        group.case = case


def _profile(bench: Bench, job: Job) -> None:
    profile(bench, _group(bench, job.case, job.dtype, [job.provider]), job.provider)


def _whole(bench: Bench, job: Job) -> None:
    todo = [_group(bench, case, job.dtype, names) for case, names in job.passed.items()]
    end_to_end(bench, todo, todo[0].case.shape.name if todo else "", job.dtype)


def _group(bench: Bench, name: str, dtype: str, passed: Iterable[str] = ()) -> Group:
    """Return a case with the functions of the providers that passed their check elsewhere."""
    case = next(case for case in every() if case.name == name)
    group = Group(case, dtype, bench.device)
    names = set(passed)
    for entry in group.providers:
        if entry.name in names:
            group.functions[entry.name] = entry.function(case.kernel.name, bench.device)
    return group


_JOBS: dict[str, Callable[[Bench, Job], None]] = {
    "rates": _rates, "case": _case, "profile": _profile, "whole": _whole
}  # fmt: skip


def work(jobs: Connection) -> None:
    """Serve the jobs that come through a pipe until it is closed or the device is lost; `done` follows each of them."""
    # Whatever a compiler prints goes to standard error: the command's output is its own.
    os.dup2(2, 1)
    jobs.send({"record": "ready"})
    while True:
        try:
            job = jobs.recv()
        except EOFError:
            return
        if not serve(job, jobs.send):
            return
        jobs.send({"record": "done"})
