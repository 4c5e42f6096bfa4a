"""The order of a run: the most wanted first, everything written at once, and an end when the budget ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from repro.kernels.bench.cases import Case
from repro.kernels.bench.child import Job, Record
from repro.kernels.bench.providers import dtypes, of_kernel
from repro.kernels.bench.report import BROKEN, FAILED, OK, SKIPPED, Report
from repro.kernels.bench.rows import row_of
from repro.kernels.bench.timing import Budget
from repro.kernels.bench.whole import CALLS
from repro.kernels.bench.workers import Worker, WorkerLostError

# Share of the budget that is kept for what comes after the cases: the paper from end to end, a GPU's profile, and the
# compile table, which is made where there is no GPU.
LAST_SHARE = {"cpu": 0.2, "cuda": 0.1}
# A case may take so many times its even share of what is left; on a GPU, where it may hang, no more seconds than this.
SHARES, LONGEST = 3.0, {"cpu": math.inf, "cuda": 60.0}
# Who is measured together: all at once on a CPU; on a GPU, which is not held for long, those that compile come last.
PASSES = {"cpu": (None,), "cuda": (False, True)}
# A case gets at least this long: on a GPU the first call of a kernel compiles it; torch.compile takes longer.
SHORTEST, SHORTEST_COMPILED = {"cpu": 2.0, "cuda": 10.0}, 30.0
# Calls per provider that checking and timing need at least; until a kernel was timed, one is taken for SLACK floors.
CALLS_EACH, SLACK = 8, 2
FEWEST_POSITIONS = 64


@dataclass
class Schedule:
    """A run: a worker, what it has found so far, and what is left of the budget."""

    budget: Budget
    report: Report
    device: str
    start: Callable[[], Worker]
    """Starts a worker, and another for each one lost."""
    worker: Worker | None = None
    rates: dict[str, float] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    """Case -> positions at which it was measured."""

    def run(self, cases: list[Case], whole_shape: str, everything: bool) -> None:
        """Measure every case in every dtype, in their order; then profile the slowest and time the whole paper."""
        try:
            self._step(Job("rates", max(SHORTEST[self.device], 0.1 * self.budget.seconds), self.device), "rates")
            kinds = PASSES[self.device]
            todo = [(case, dtype, kind) for kind in kinds for case in cases for dtype in dtypes(self.device)]
            for at, (case, dtype, compiles) in enumerate(todo):
                self._case(case, dtype, compiles, len(todo) - at)
            if self.device == "cuda":
                self._profile()
            if everything:
                self._whole(whole_shape)
        finally:
            self._close()

    def _case(self, case: Case, dtype: str, compiles: bool | None, left: int) -> None:
        """Measure one case in one dtype; what became of the rows that were not measured is said, too."""
        found = of_kernel(case.kernel.name, dtype, self.device)
        names = [entry.name for entry in found if compiles in (None, entry.compiles)]
        if not names:
            return
        if f"{case.name} {dtype}" in self.report.failed:
            self._rows(case, dtype, names, FAILED, "no speed is printed: a check of ours failed")
            return
        usable = self.budget.left - LAST_SHARE[self.device] * self.budget.seconds
        shortest = SHORTEST_COMPILED if compiles else SHORTEST[self.device]
        if usable < shortest:
            self._rows(case, dtype, names, SKIPPED, "the budget ended before it was measured")
            return
        seconds = min(max(SHARES * usable / left, shortest), LONGEST[self.device], usable)
        self.positions[case.name] = self._positions(case, seconds, len(names))
        job = Job(
            "case", seconds, self.device, case.name, dtype,
            compiles=compiles, rates=self.rates, positions={case.name: self.positions[case.name]},
        )  # fmt: skip
        lost = self._ask(job, f"{case.name} {dtype}")
        if lost:
            seen = {r["provider"] for r in self._speeds(case.name, dtype)}
            self._rows(case, dtype, [name for name in names if name not in seen], BROKEN, lost)

    def _positions(self, case: Case, seconds: float, providers: int) -> int:
        """Return how many positions of a case fit some seconds: on a CPU halved until they do."""
        shape = case.shape
        if self.device == "cpu":
            floor = SLACK * providers / self.rates.get("matmul ieee", math.inf)
            each = CALLS_EACH * max(floor, self._seconds_per_flop(case.kernel.name))
            while case.kernel.flop(shape) * each > seconds and shape.positions > FEWEST_POSITIONS:
                shape = replace(shape, positions=shape.positions // 2)
        return shape.positions

    def _seconds_per_flop(self, kernel: str) -> float:
        """Return how long one call by every provider took in the slowest earlier case of a kernel, per FLOP."""
        taken: dict[str, float] = {}
        for row in self.report.records:
            if row["record"] == "speed" and row["kernel"] == kernel and row["median_ms"]:
                taken[row["case"]] = taken.get(row["case"], 0.0) + row["median_ms"] / 1e3 / row["flop"]
        return max(taken.values(), default=0.0)

    def _speeds(self, case: str, dtype: str) -> list[Record]:
        where = ("speed", case, dtype)
        return [r for r in self.report.records if (r["record"], r.get("case"), r.get("dtype")) == where]

    def _ask(self, job: Job, name: str) -> str:
        """Have a job done and its records written; return why not all came, or nothing."""
        reasons: list[str] = []

        def say(record: Record) -> None:
            if record["record"] == "broken":
                reasons.append(str(record["reason"]))
            elif record["record"] == "lost":
                raise WorkerLostError(record["reason"])
            else:
                self._take(record, name)

        try:
            if self.worker is None:
                self.worker = self.start()
            self.worker.ask(job, say)
        except WorkerLostError as error:
            self._close()
            reasons.append(str(error))
        if reasons and name not in self.report.broken:
            self.report.broken.append(name)
        return "; ".join(reasons)

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
        seconds = min(LONGEST[self.device], self.budget.left / 2)
        job = Job("profile", seconds, self.device, worst["case"], worst["dtype"], worst["provider"])
        self._step(job, "profile")

    def _whole(self, shape: str) -> None:
        """Have the kernels' part of the paper timed by every provider that passed all of it."""
        parts = [f"{kernel}/{shape}" for kernel in CALLS]
        missing = [f"{part} ({why})" for part in parts if (why := self._why_missing(part, "fp32"))]
        reason = "not every part was checked and timed: " + ", ".join(missing) if missing else ""
        if self.budget.left <= 0:
            reason = "the budget ended"
        if reason:
            self.report.add({"record": "end_to_end", "status": f"skipped: {reason}"}, f"end to end: skipped, {reason}")
            return
        passed = {part: [r["provider"] for r in self._speeds(part, "fp32") if r["status"] == OK] for part in parts}
        # One batch of tokens passes through all parts: as many positions as every one of them was measured at.
        fewest = dict.fromkeys(parts, min(self.positions[part] for part in parts))
        job = Job("whole", self.budget.left, self.device, dtype="fp32", passed=passed, positions=fewest)
        self._step(job, "end_to_end")

    def _why_missing(self, case: str, dtype: str) -> str:
        """Return why a case cannot be part of the whole, or nothing if it was checked and timed."""
        rows, name = self._speeds(case, dtype), f"{case} {dtype}"
        if name not in {*self.report.failed, *self.report.broken} and any(r["status"] == OK for r in rows):
            return ""
        reasons = (r["note"] for status in (BROKEN, FAILED, SKIPPED) for r in rows if r["status"] == status)
        return next(reasons, "its measurement ended in an error" if name in self.report.broken else "no speed is known")

    def _step(self, job: Job, name: str) -> None:
        lost = self._ask(job, name)
        if lost:
            self.report.add({"record": name, "status": f"failed: {lost}"}, f"{name}: failed: {lost}")

    def _close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None
