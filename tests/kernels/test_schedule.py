"""The order of a run: what a kernel dies of takes its own row, verdicts are written at once, and the budget holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from repro.kernels.bench import cases, providers, rows, schedule
from repro.kernels.bench.child import Job
from repro.kernels.bench.report import Report
from repro.kernels.bench.schedule import Schedule
from repro.kernels.bench.timing import Budget
from repro.kernels.bench.workers import Child, WorkerLostError
from repro.kernels.registry import KERNELS
from tests.kernels import fake_gpu
from tests.kernels.stuck import stuck

FAILING = {"projection/paper bfloat16": "asserts", "projection/paper float16": "dies"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "SHAPES", fake_gpu.SHAPES)
    monkeypatch.setattr(rows, "device_name", lambda device: "fake")
    without = tuple(entry for entry in providers.PROVIDERS if not entry.compiles)
    monkeypatch.setattr(providers, "PROVIDERS", without)


def speeds(report: Report, case: str, dtype: str) -> list[dict[str, Any]]:
    """The rows of one case in one dtype."""
    return [r for r in report.records if (r["record"], r.get("case"), r.get("dtype")) == ("speed", case, dtype)]


def test_a_kernel_that_takes_the_device_down_takes_its_own_row(tmp_path: Path) -> None:
    started: list[Child] = []

    def start() -> Child:
        started.append(Child(partial(fake_gpu.work, FAILING)))
        return started[-1]

    out = tmp_path / "rows.jsonl"
    chosen = [case for case in cases.every() if case.kernel.name == "projection"]
    report = Report(out, say=lambda words: None)
    Schedule(Budget(600.0), report, "cuda", start).run(chosen, "paper4", everything=False)

    assert len(started) == 3, "two that were lost, each with a successor"
    assert report.broken == ["projection/paper bf16", "projection/paper fp16"]
    # An assert within a check fails the check.
    for dtype, status, reason in (("bf16", "check failed", "device-side assert"), ("fp16", "failed", "ended with -6")):
        lost = speeds(report, "projection/paper", dtype)
        assert {row["provider"] for row in lost} >= {"einsum", "triton"}
        assert not [row for row in lost if row["median_ms"] is not None]
        assert {row["status"] for row in lost if row["provider"] in ("einsum", "triton")} == {status}
        assert any(reason in row["note"] for row in lost)
    for case in chosen:
        for dtype in ("fp32", "bf16", "fp16"):
            if (case.name, dtype) not in (("projection/paper", "bf16"), ("projection/paper", "fp16")):
                timed = [row for row in speeds(report, case.name, dtype) if row["median_ms"] is not None]
                assert {"einsum", "triton"} <= {row["provider"] for row in timed}, (case.name, dtype)
    assert [json.loads(line) for line in out.read_text().splitlines()] == report.records
    assert {"rate", "check", "speed", "profile"} <= {r["record"] for r in report.records}


def test_a_step_that_breaks_leaves_the_next_its_own_answers() -> None:
    started: list[Child] = []

    def start() -> Child:
        started.append(Child(fake_gpu.work_without_profiler))
        return started[-1]

    paper = [case for case in cases.every() if case.kernel.paper_calls and case.shape.name == "paper4"]
    report = Report(say=lambda words: None)
    Schedule(Budget(600.0), report, "cuda", start).run(paper, "paper4", everything=True)
    assert len(started) == 1
    assert report.broken == ["profile"]
    (profile,) = (r for r in report.records if r["record"] == "profile")
    assert profile["status"] == "failed: RuntimeError: no profiler here"
    whole = [r for r in report.records if r["record"] == "end_to_end"]
    assert {(r["provider"], r["status"]) for r in whole} >= {("einsum", "ok"), ("triton", "ok")}


def test_a_kernel_that_never_returns_is_not_waited_for() -> None:
    child = Child(stuck)
    with pytest.raises(WorkerLostError, match="no answer within 0 s"):
        child.ask(Job("rates", 0.1), lambda record: None, grace=0.1)
    child.close()
    assert child.process.exitcode == -9


@dataclass
class Counted:
    """A worker that notes its jobs and lets the clock run on with each."""

    clock: Any
    jobs: list[Job] = field(default_factory=list)

    def ask(self, job: Job, say: Callable[[dict[str, Any]], None]) -> None:
        self.jobs.append(job)
        self.clock.now += job.seconds

    def close(self) -> None:
        """Nothing is held."""


class Clock:
    """A clock that stands unless it is turned."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_budget_holds_whatever_jobs_take_and_what_is_left_out_is_named() -> None:
    clock = Clock()
    worker = Counted(clock)
    report = Report(say=lambda words: None)
    Schedule(Budget(120.0, clock), report, "cuda", lambda: worker).run(cases.every(), "paper4", everything=True)
    assert clock.now <= 120.0
    measured = [(job.case, job.dtype) for job in worker.jobs if job.what == "case"]
    everything = [(case.name, dtype) for case in cases.every() for dtype in ("fp32", "bf16", "fp16")]
    assert 0 < len(measured) < len(everything)
    assert measured == everything[: len(measured)], "the most wanted first"
    (whole,) = (r for r in report.records if r["record"] == "end_to_end")
    parts = [f"{name}/paper4" for name in ("projection", "v_composition", "top2_logits")]
    reasons = ", ".join(f"{part} (the budget ended before it was measured)" for part in parts)
    assert whole["status"] == f"skipped: not every part was checked and timed: {reasons}"
    skipped = {(r["case"], r["dtype"]) for r in report.records if r["record"] == "speed"}
    assert skipped == set(everything[len(measured) :])
    assert all(r["note"] == "the budget ended before it was measured" for r in report.records if r["record"] == "speed")


@pytest.mark.parametrize("ms", [1.0, 1e5])
def test_a_kernel_that_was_slow_gets_fewer_positions_in_its_next_case(
    ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "FEWEST_POSITIONS", 1)
    report, worker = Report(say=lambda words: None), Counted(Clock())
    row = {"record": "speed", "case": "gram/paper", "dtype": "fp32", "kernel": "gram", "flop": 1e5}
    report.add({**row, "provider": "einsum", "status": "ok", "median_ms": ms})
    Schedule(Budget(600.0, worker.clock), report, "cpu", lambda: worker).run(cases.every(), "paper", everything=False)
    given = {name: positions for job in worker.jobs for name, positions in job.positions.items()}
    declared = {case.name: case.shape.positions for case in cases.every()}
    assert (given["gram/paper4"] < declared["gram/paper4"]) == (ms > 1.0)
    assert {name for name in given if given[name] != declared[name]} <= {"gram/paper", "gram/paper4"}


def test_where_a_check_of_ours_failed_what_compiles_gets_no_speed_either() -> None:
    report = Report(say=lambda words: None, failed=["projection/paper fp32"])
    worker = Counted(Clock())
    chosen = [case for case in cases.every() if case.kernel.name == "projection"]
    Schedule(Budget(600.0, worker.clock), report, "cuda", lambda: worker).run(chosen, "paper4", everything=False)
    asked = {(job.case, job.dtype) for job in worker.jobs if job.what == "case"}
    assert ("projection/paper", "bf16") in asked
    assert ("projection/paper", "fp32") not in asked
    assert {row["status"] for row in speeds(report, "projection/paper", "fp32")} == {"check failed"}


def test_shapes_are_measured_in_the_order_in_which_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    names = [shape.name for shape in cases.SHAPES]
    assert names == ["paper", "paper4", "runner", "smollm2", "writers", "gpt2xl", "pythia"]
    assert [case.shape.name for case in cases.every()] == sorted(
        (case.shape.name for case in cases.every()), key=names.index
    )
    assert {case.kernel.name for case in cases.every()} == set(KERNELS)
