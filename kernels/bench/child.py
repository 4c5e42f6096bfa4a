"""A process that measures what it is asked, job by job: whatever a GPU dies of, it takes this process and one row.

Reads one job a line from its standard input, writes records to its standard output, and `done` after each job.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from repro.kernels.bench import timing
from repro.kernels.bench.cases import every
from repro.kernels.bench.rates import measure_rates
from repro.kernels.bench.report import Report
from repro.kernels.bench.run import Bench, Group, check, time_group
from repro.kernels.bench.timing import Budget, Clock, Samples
from repro.kernels.bench.whole import end_to_end, profile

Record = dict[str, Any]
LOST = 3
"""Exit code of a process whose device can no longer be used."""


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
    compiles: bool = False
    """Whether the providers that compile for long are measured, or the others."""
    passed: dict[str, list[str]] = field(default_factory=dict)
    """Case -> providers that passed their check, for `whole`."""
    rates: dict[str, list[float]] = field(default_factory=dict)
    """Meter -> seconds a call, as measured before."""


def serve(job: Job, say: Callable[[Record], None], clock: Clock = timing.time.monotonic) -> bool:
    """Do one job, saying each record as soon as it is known; return whether the device can be used afterwards."""
    report = _Saying(say)
    bench = Bench(job.device, Budget(job.seconds, clock), report)
    bench.rates.update({name: Samples(seconds, seconds) for name, seconds in job.rates.items()})
    try:
        _JOBS[job.what](bench, job)
    except Exception as error:  # a job that fails leaves the next its turn, unless it took the device with it
        gone = timing.lost(error)
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        say({"record": "lost" if gone else "broken", "reason": reason})
        return not gone
    lost = next((reason for reason in report.reasons if timing.lost(RuntimeError(reason))), None)
    if lost is not None:
        say({"record": "lost", "reason": lost})
    return lost is None


class _Saying(Report):
    """A report whose records go to somebody else."""

    def __init__(self, to: Callable[[Record], None]) -> None:
        super().__init__(None, True, lambda words: None)
        self.to = to
        self.reasons: list[str] = []

    def add(self, record: Record, *lines: str) -> None:
        super().add(record)
        self.reasons.append(str(record.get("note", "")))
        self.to({**record, "lines": list(lines)})


def _rates(bench: Bench, job: Job) -> None:
    measure_rates(bench)


def _case(bench: Bench, job: Job) -> None:
    group = _group(bench, job.case, job.dtype)
    entries = [entry for entry in group.providers if entry.compiles == job.compiles]
    group.only = tuple(entry.name for entry in entries)
    check(bench, group, entries)
    time_group(bench, group, bench.budget.left)


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


def work(jobs: Iterable[str], out: TextIO) -> int:
    """Serve jobs, one JSON object a line, until there are no more or the device is lost; return the exit code."""

    def say(record: Record) -> None:
        out.write(json.dumps(record, allow_nan=False) + "\n")
        out.flush()

    for line in jobs:
        if not serve(Job(**json.loads(line)), say):
            return LOST
        say({"record": "done"})
    return 0


def main() -> int:
    """Serve jobs from standard input; whatever a compiler prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    out.write(json.dumps({"record": "ready"}) + "\n")
    out.flush()
    return work(sys.stdin, out)


def line_of(job: Job) -> str:
    """Return a job as a line."""
    return json.dumps(asdict(job), allow_nan=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
