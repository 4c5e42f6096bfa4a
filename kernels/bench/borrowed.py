"""A GPU for a few minutes: everything is measured in a child process, the most wanted first, and written at once.

The child is replaced when it ends or does not answer, so one device assert, or one kernel that never returns, costs
its own (kernel, shape, dtype) and nothing else; and the budget holds, whatever a kernel does.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Protocol

from repro.kernels.bench import child
from repro.kernels.bench.cases import Case
from repro.kernels.bench.child import Job, Record
from repro.kernels.bench.providers import dtypes, of_kernel
from repro.kernels.bench.report import FAILED, OK, SKIPPED, Report
from repro.kernels.bench.rows import row_of
from repro.kernels.bench.timing import Budget
from repro.kernels.bench.whole import CALLS

# Share of the budget that is kept for the profile and for the paper from end to end.
LAST_SHARE = 0.1
# A case may take so many times its even share of what is left, but no longer than this, in seconds.
SHARES, LONGEST = 3.0, 60.0
# A case gets at least this long: the first call of a kernel compiles it.
SHORTEST = 10.0
# The longest that a process may take to import torch.
START = 60.0


class WorkerLostError(Exception):
    """The process that measured has ended, or did not answer in time; the message says how."""


class Worker(Protocol):
    """Somebody who does jobs and can be replaced."""

    def ask(self, job: Job) -> Iterator[Record]:
        """Yield the records of a job as they come; raise WorkerLostError if there will be no more."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class Child:
    """A process of its own; `work` is what it runs, with its end of a pipe."""

    def __init__(self, work: Callable[[Connection], None] = child.work) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU
        self.jobs, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,))
        self.process.start()
        theirs.close()
        self.ready = False

    def ask(self, job: Job, grace: float = 5.0) -> Iterator[Record]:
        """Yield the records of a job; one that takes `grace` seconds longer than it may is not waited for.

        The time that a process needs to start is not the job's.
        """
        if not self.ready:
            self.ready = self._next(START, "did not start")["record"] == "ready"
        deadline = Budget(job.seconds + grace)
        try:
            self.jobs.send(job)
        except OSError:
            raise self._ended() from None
        while True:
            record = self._next(max(deadline.left, 0.01), f"no answer within {job.seconds:.0f} s")
            if record["record"] == "done":
                return
            if record["record"] == "lost":
                raise WorkerLostError(record["reason"])
            yield record

    def _next(self, seconds: float, otherwise: str) -> Record:
        """Return the next record, if one comes in time."""
        if not self.jobs.poll(seconds):
            raise WorkerLostError(otherwise)
        try:
            record: Record = self.jobs.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        return record

    def _ended(self) -> WorkerLostError:
        self.process.join()
        return WorkerLostError(f"the process that measured it ended with {self.process.exitcode}")

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.join()
        self.jobs.close()


@dataclass
class Borrowed:
    """A run on a GPU: a worker, what it has found so far, and what is left of the budget."""

    budget: Budget
    report: Report
    device: str = "cuda"
    start: Callable[[], Worker] = Child
    worker: Worker | None = None
    rates: dict[str, float] = field(default_factory=dict)

    def run(self, cases: list[Case], whole_shape: str, everything: bool) -> None:
        """Measure every case in every dtype, in their order; then profile the slowest and time the whole paper."""
        try:
            self._ask(Job("rates", max(SHORTEST, 0.1 * self.budget.seconds), self.device), "rates")
            todo = [(case, dtype, slow) for slow in (False, True) for case in cases for dtype in dtypes(self.device)]
            for at, (case, dtype, slow) in enumerate(todo):
                self._case(case, dtype, slow, len(todo) - at)
            self._profile()
            if everything:
                self._whole(cases, whole_shape)
        finally:
            self._close()

    def _case(self, case: Case, dtype: str, slow: bool, left: int) -> None:
        """Measure one case in one dtype; what became of the rows that were not measured is said, too."""
        names = [entry.name for entry in of_kernel(case.kernel.name, dtype, self.device) if entry.compiles == slow]
        if not names:
            return
        usable = self.budget.left - LAST_SHARE * self.budget.seconds
        if usable < SHORTEST:
            self._rows(case, dtype, names, SKIPPED, "the budget ended before it was measured")
            return
        seconds = min(max(SHARES * usable / left, SHORTEST), LONGEST, usable)
        job = Job("case", seconds, self.device, case.name, dtype, compiles=slow, rates=self.rates)
        lost = self._ask(job, f"{case.name} {dtype}")
        if lost:
            seen = {r["provider"] for r in self._speeds(case, dtype)}
            self._rows(case, dtype, [name for name in names if name not in seen], FAILED, lost)

    def _speeds(self, case: Case, dtype: str) -> list[Record]:
        where = ("speed", case.name, dtype)
        return [r for r in self.report.records if (r["record"], r.get("case"), r.get("dtype")) == where]

    def _ask(self, job: Job, name: str) -> str:
        """Have a job done and its records written; return why not all came, or nothing."""
        try:
            if self.worker is None:
                self.worker = self.start()
            for record in self.worker.ask(job):
                if record["record"] == "broken":
                    self.report.broken.append(name)
                    return str(record["reason"])
                self._take(record, name)
        except WorkerLostError as error:
            self._close()
            self.report.broken.append(name)
            return str(error)
        return ""

    def _take(self, record: Record, name: str) -> None:
        lines = record.pop("lines")
        self.report.add(record, *lines)
        if record["record"] == "rate":
            self.rates[record["meter"]] = record["per_second"]
        if record["record"] == "speed" and record["status"] == FAILED and self._is_ours(record):
            self.report.failed = sorted({*self.report.failed, name})

    def _is_ours(self, record: Record) -> bool:
        found = of_kernel(record["kernel"], record["dtype"], self.device)
        return any(entry.ours for entry in found if entry.name == record["provider"])

    def _rows(self, case: Case, dtype: str, names: list[str], status: str, reason: str) -> None:
        for entry in of_kernel(case.kernel.name, dtype, self.device):
            if entry.name in names:
                self.report.row(row_of(case, dtype, entry, self.device, None, status, reason))

    def _profile(self) -> None:
        """Have the call of ours profiled that loses most time against its roofline."""
        timed = (r for r in self.report.records if r["record"] == "speed" and r["median_ms"])
        ours = [record for record in timed if self._is_ours(record)]
        worst = max(ours, key=lambda r: r["median_ms"] - (r["floor_ms"] or 0.0), default=None)
        if worst is None or self.budget.left <= 0:
            reason = "nothing was timed" if worst is None else "skipped: the budget ended"
            self.report.add({"record": "profile", "status": reason}, f"profile: {reason}")
            return
        seconds = min(LONGEST, self.budget.left / 2)
        job = Job("profile", seconds, self.device, worst["case"], worst["dtype"], worst["provider"])
        self._step(job, "profile")

    def _whole(self, cases: list[Case], shape: str) -> None:
        """Have the kernels' part of the paper timed by every provider that passed all of it."""
        wanted = [case for case in cases if case.shape.name == shape and case.kernel.name in CALLS]
        passed = {
            case.name: [r["provider"] for r in self._speeds(case, "fp32") if r["status"] == OK]
            for case in wanted
            if f"{case.name} fp32" not in self.report.broken
        }
        if self.budget.left <= 0:
            self.report.add({"record": "end_to_end", "status": "skipped: the budget ended"}, "end to end: skipped")
            return
        self._step(Job("whole", self.budget.left, self.device, dtype="fp32", passed=passed), "end_to_end")

    def _step(self, job: Job, name: str) -> None:
        lost = self._ask(job, name)
        if lost:
            self.report.add({"record": name, "status": f"failed: {lost}"}, f"{name}: failed: {lost}")

    def _close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None
