"""Check first, then time: one case in one dtype by every provider."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from repro.kernels.bench import roofline, timing
from repro.kernels.bench.cases import Case
from repro.kernels.bench.gate import Check, Truth
from repro.kernels.bench.memory import peak_memory
from repro.kernels.bench.providers import BASELINE, DTYPES, Call, Function, Provider, bind, of_kernel
from repro.kernels.bench.report import BROKEN, FAILED, SKIPPED, UNAVAILABLE, Report, Row
from repro.kernels.bench.rows import row_of, with_floor, with_speed
from repro.kernels.bench.timing import Budget, Samples, lost
from repro.kernels.errors import KernelError
from repro.kernels.registry import KERNELS

# A compilation by torch.compile takes about this long.
COMPILE_SECONDS = 20.0
# (provider, case as measured, dtype) -> function that passed its check in this process: what it compiled is at hand.
Passed = dict[tuple[str, Case, str], Function]


@dataclass
class Group:
    """One case in one dtype, and what became of its providers."""

    case: Case
    dtype: str
    device: str
    functions: dict[str, Function] = field(default_factory=dict)
    """Provider -> function that passed its check."""
    checks: dict[str, Check] = field(default_factory=dict)
    notes: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Provider -> (status, reason) of those that will not be timed."""
    note: str = ""
    """What a reader must know of every row: positions left out."""
    only: tuple[str, ...] = ()
    """The providers that get a row; empty: all."""

    @property
    def providers(self) -> list[Provider]:
        """Return the providers that get a row, of those that have this kernel in this dtype."""
        found = of_kernel(self.case.kernel.name, self.dtype, self.device)
        return [entry for entry in found if not self.only or entry.name in self.only]

    @property
    def name(self) -> str:
        """Return `kernel/shape dtype`: what a failure silences, and nothing beside it."""
        return f"{self.case.name} {self.dtype}"

    @property
    def failed(self) -> str:
        """Return the providers of ours whose check failed; a failing baseline is its own affair."""
        ours = (entry.name for entry in self.providers if entry.ours)
        return ", ".join(name for name in ours if self.notes.get(name, ("", ""))[0] == FAILED)


@dataclass
class Bench:
    """A run of the benchmark on one device within one budget."""

    device: str
    budget: Budget
    report: Report
    rates: dict[str, float] = field(default_factory=dict)
    """Meter -> FLOP or bytes per second, measured in this run."""
    passed: Passed = field(default_factory=dict)

    def sync(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def meters(self, dtype: str) -> dict[str, roofline.Meter]:
        """Return the meters that bound a dtype's providers: the copy and one matrix product per precision."""
        entries = (entry for kernel in KERNELS for entry in of_kernel(kernel, dtype, self.device))
        names = dict.fromkeys(entry.precision(dtype) for entry in entries)
        if torch.version.hip:
            names.pop("tf32x3", None)
        found = [roofline.copy_meter(self.device), *(roofline.matmul_meter(self.device, name) for name in names)]
        return {meter.name: meter for meter in found}


def check(bench: Bench, group: Group, entries: list[Provider]) -> None:
    """Compare some providers of a group with float64; every verdict is reported as soon as it is known."""
    try:
        inputs = group.case.inputs(DTYPES[group.dtype], bench.device)
        truth = Truth(group.case.kernel.name, inputs)
    except torch.OutOfMemoryError:
        reason = (SKIPPED, "the float64 reference does not fit this device's memory")
        group.notes |= {entry.name: reason for entry in entries}
        return
    for entry in entries:
        if entry.compiles and bench.budget.left < COMPILE_SECONDS:
            group.notes[entry.name] = (SKIPPED, "compiling it does not fit the budget")
            continue
        _check_one(bench, group, entry, inputs, truth)
        _say_verdict(bench, group, entry)
        if lost(group.notes.get(entry.name, ("", ""))[1]):
            after = [other.name for other in entries if other.name not in {*group.notes, *group.checks}]
            group.notes |= dict.fromkeys(after, (SKIPPED, f"{entry.name} took the device down"))
            return


def _check_one(bench: Bench, group: Group, entry: Provider, inputs: dict[str, Any], truth: Truth) -> None:
    """Check one provider against float64: leave its function in the group if it passed, else a note."""
    try:
        function = entry.function(group.case.kernel.name, bench.device)
        verdict = truth.check(bind(function, inputs)(), entry.precision(group.dtype))
    except torch.OutOfMemoryError:
        group.notes[entry.name] = (SKIPPED, "out of memory")
        return
    except KernelError as error:
        group.notes[entry.name] = (UNAVAILABLE, str(error))
        return
    except Exception as error:  # whatever a kernel dies of, the others are still measured
        group.notes[entry.name] = (FAILED, f"{type(error).__name__}: {error}".splitlines()[0][:200])
        return
    group.checks[entry.name] = verdict
    if verdict.passed:
        group.functions[entry.name] = function
        bench.passed[entry.name, group.case, group.dtype] = function
        return
    said = f"{verdict.result} is off by {verdict.error:.1e}, allowed {verdict.allowed:.0e}"
    group.notes[entry.name] = (FAILED, said)


def _say_verdict(bench: Bench, group: Group, entry: Provider) -> None:
    """Report what became of one provider's check."""
    status, note = group.notes.get(entry.name, ("ok", ""))
    verdict = group.checks.get(entry.name)
    error = verdict.error if verdict is not None and math.isfinite(verdict.error) else None
    record = {"record": "check", "case": group.case.name, "dtype": group.dtype, "provider": entry.name,
              "precision": entry.precision(group.dtype), "status": status, "note": note, "error": error,
              "allowed": verdict.allowed if verdict else None}  # fmt: skip
    said = f"error {error:.1e}" if error is not None else ""
    bench.report.add(record, f"{group.case.name} {group.dtype} {entry.name}: {status} {note or said}".rstrip())


def time_group(bench: Bench, group: Group, allowance: float) -> None:
    """Time a group's providers within an allowance of seconds, unless a check of ours failed; report their rows.

    Raises the RuntimeError, if any, that ended the measurement.
    """
    if group.failed:
        _withhold(bench, group, FAILED, f"no speed is printed: a check of {group.failed} failed")
    elif not group.functions:
        _withhold(bench, group, SKIPPED, "no provider can be timed")
    else:
        try:
            _timed(bench, group, allowance)
        except torch.OutOfMemoryError:
            _withhold(bench, group, SKIPPED, "out of memory")
        except RuntimeError as error:
            _withhold(bench, group, BROKEN, f"while it was timed: {error}".splitlines()[0][:200])
            raise  # the job is broken, though no check failed


def _withhold(bench: Bench, group: Group, status: str, reason: str, besides: Container[str] = ()) -> None:
    """Report rows without speeds, of all providers but some: each with its own reason if it has one."""
    for entry in group.providers:
        if entry.name not in besides:
            bench.report.row(_row(bench, group, entry, *group.notes.get(entry.name, (status, reason))))


def _row(bench: Bench, group: Group, entry: Provider, status: str = "ok", note: str = "") -> Row:
    note = "; ".join(filter(None, (note, group.note)))
    return row_of(group.case, group.dtype, entry, bench.device, group.checks.get(entry.name), status, note)


def _timed(bench: Bench, group: Group, allowance: float) -> None:
    """Report the speeds of a group, timer by timer as they are known, then those without one."""
    inputs = group.case.inputs(DTYPES[group.dtype], bench.device)
    calls = {name: bind(function, inputs) for name, function in group.functions.items()}
    some = next(iter(calls.values()), tuple)()
    work = group.case.work(inputs, some)
    kept = sum(x.numel() * x.element_size() for x in some if isinstance(x, Tensor))
    del some
    peaks = {name: peak_memory(call, bench.device) for name, call in calls.items()}
    timed: set[str] = set()
    for timer, samples in _samples(bench, group, calls, allowance):
        for entry in group.providers:
            if entry.name not in samples or entry.name not in calls:
                continue
            timed.add(entry.name)
            row = with_speed(_row(bench, group, entry), samples[entry.name], samples.get(BASELINE), timer)
            row.peak_bytes, row.meter = peaks[entry.name]
            row.result_bytes = kept
            row.less_memory = peaks[BASELINE].bytes / max(row.peak_bytes, 1) if BASELINE in peaks else None
            bench.report.row(with_floor(row, work, bench.rates))
    _withhold(bench, group, SKIPPED, "the budget ended before it was timed", besides=timed)


def _samples(
    bench: Bench, group: Group, calls: dict[str, Call], allowance: float
) -> Iterator[tuple[str, dict[str, Samples]]]:
    if bench.device == "cuda":
        start = bench.budget.spent
        for share, timer in ((0.5, timing.DO_BENCH), (1.0, timing.CUDA_GRAPH)):
            left = min(share * allowance - (bench.budget.spent - start), bench.budget.left)
            yield timer, timing.on_device(calls, timer, left, bench.budget.clock)
        return
    # A case may take three times its share of the budget; its samples, of which there are up to forty, need not.
    allowance /= 3
    # On a CPU that others use too the rates are measured in the same rounds: they meet the same noise.
    meters = bench.meters(group.dtype)
    runs = {name: meter.run for name, meter in meters.items()}
    taken = timing.interleaved({**calls, **runs}, allowance, bench.sync)
    bench.rates |= {name: meter.amount / taken[name].median for name, meter in meters.items()}
    yield timing.WALL_CLOCK, taken
