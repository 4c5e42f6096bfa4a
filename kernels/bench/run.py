"""Checks first, then times: every provider at every case that fits the budget."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from repro.kernels.bench import roofline, timing
from repro.kernels.bench.cases import Case
from repro.kernels.bench.gate import Check, Truth
from repro.kernels.bench.memory import peak_memory
from repro.kernels.bench.providers import (
    BASELINE,
    DTYPES,
    Call,
    Function,
    Provider,
    bind,
    dtypes,
    of_kernel,
)
from repro.kernels.bench.report import FAILED, SKIPPED, UNAVAILABLE, Report, Row, device_name
from repro.kernels.bench.timing import Budget, Samples
from repro.kernels.errors import KernelError
from repro.kernels.registry import KERNELS
from repro.kernels.work import Work

# Shares of the budget: until when checks may start, and until when timing may.
CHECK_SHARE, TIME_SHARE = 0.45, 0.8
# A compilation by torch.compile takes about this long, before the first has been seen.
COMPILE_SECONDS = 20.0
# Calls per provider that checking and timing need at least, against the floor that one call cannot beat.
CALLS, SLACK = 8, 2
FEWEST_POSITIONS = 64


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

    @property
    def providers(self) -> list[Provider]:
        """Return every provider that has this kernel in this dtype."""
        return of_kernel(self.case.kernel.name, self.dtype, self.device)


@dataclass
class Bench:
    """A run of the benchmark on one device within one budget."""

    device: str
    budget: Budget
    report: Report
    rates: dict[str, Samples] = field(default_factory=dict)
    """Meter -> seconds a call, measured in this run."""
    failed: set[str] = field(default_factory=set)
    """Kernels of which a check failed: no speed of theirs is printed."""
    compile_seconds: float = COMPILE_SECONDS

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


def groups(bench: Bench, cases: list[Case]) -> list[Group]:
    """Return every case in every dtype of the device; on a CPU over as many positions as the budget allows."""
    if bench.device != "cpu":
        return [Group(case, dtype, bench.device) for case in cases for dtype in dtypes(bench.device)]
    chosen = list(cases)
    while sum(_estimate(bench, case) for case in chosen) > bench.budget.left * TIME_SHARE:
        longest = max(range(len(chosen)), key=lambda i: _estimate(bench, chosen[i]))
        if chosen[longest].shape.positions <= FEWEST_POSITIONS:
            break
        chosen[longest] = chosen[longest].shortened(chosen[longest].shape.positions // 2)
    return [
        Group(
            short,
            "fp32",
            bench.device,
            note="" if short == case else f"{short.shape.positions} of {case.shape.positions} positions: budget",
        )
        for case, short in zip(cases, chosen, strict=True)
    ]


def _estimate(bench: Bench, case: Case) -> float:
    """Return the seconds to check and time a case on a CPU, from the matrix-product rate and what is usual."""
    rate = 2.0 * roofline.MATMUL_SIZE["cpu"] ** 3 / bench.rates["matmul ieee"].median
    runs = of_kernel(case.kernel.name, "fp32", "cpu")
    return case.kernel.flop(case.shape) / rate * CALLS * SLACK * len(runs)


def check_all(bench: Bench, todo: list[Group]) -> None:
    """Compare every provider at every case with float64, before anything is timed; those that compile come last."""
    for compiles in (False, True):
        for group in todo:
            entries = [entry for entry in group.providers if entry.compiles == compiles]
            reason = _check_group(bench, group, entries) if entries else ""
            if reason:
                group.notes.update({entry.name: (SKIPPED, reason) for entry in entries})


def _check_group(bench: Bench, group: Group, entries: list[Provider]) -> str:
    """Check some providers of a group; return why none could be checked, or nothing."""
    if bench.budget.spent > CHECK_SHARE * bench.budget.seconds:
        return "the budget ended before it was checked"
    try:
        inputs = group.case.inputs(DTYPES[group.dtype], bench.device)
        truth = Truth(group.case.kernel.name, inputs)
    except torch.OutOfMemoryError:
        return "the float64 reference does not fit this device's memory"
    for entry in entries:
        _check(bench, group, entry, inputs, truth)
    return ""


def _check(bench: Bench, group: Group, entry: Provider, inputs: dict[str, Any], truth: Truth) -> None:
    """Check one provider against float64: leave its function in the group if it passed, else a note."""
    kernel, before = group.case.kernel.name, bench.budget.spent
    if entry.compiles and before + bench.compile_seconds > CHECK_SHARE * bench.budget.seconds:
        group.notes[entry.name] = (SKIPPED, "compiling it does not fit the budget")
        return
    try:
        function = entry.function(kernel, bench.device)
        verdict = truth.check(bind(function, inputs)(), entry.precision(group.dtype))
    except torch.OutOfMemoryError:
        group.notes[entry.name] = (SKIPPED, "out of memory")
        return
    except KernelError as error:
        group.notes[entry.name] = (UNAVAILABLE, str(error))
        return
    except Exception as error:  # whatever a kernel dies of, the others are still measured
        group.notes[entry.name] = (FAILED, f"{type(error).__name__}: {error}".splitlines()[0][:200])
        bench.failed.add(kernel)
        return
    if entry.compiles:
        bench.compile_seconds = bench.budget.spent - before
    group.checks[entry.name] = verdict
    if verdict.passed:
        group.functions[entry.name] = function
        return
    said = f"{verdict.result} is off by {verdict.error:.1e}, allowed {verdict.allowed:.0e}"
    group.notes[entry.name] = (FAILED, said)
    bench.failed.add(kernel)


def time_all(bench: Bench, todo: list[Group]) -> None:
    """Time what passed, group by group, and reports it; what no longer fits is reported as skipped."""
    allowance = max(bench.budget.seconds * TIME_SHARE - bench.budget.spent, 0.0) / max(len(todo), 1)
    for group in todo:
        kernel = group.case.kernel.name
        if not group.functions and kernel not in bench.failed:
            bench.report.rows(_withheld(bench, group, SKIPPED, "no provider can be timed"))
        elif kernel in bench.failed:
            bench.report.rows(_withheld(bench, group, FAILED, f"no speed is printed: a check of {kernel} failed"))
        elif bench.budget.spent > TIME_SHARE * bench.budget.seconds:
            bench.report.rows(_withheld(bench, group, SKIPPED, "the budget ended before it was timed"))
        else:
            try:
                bench.report.rows(list(_timed(bench, group, allowance)))
            except torch.OutOfMemoryError:
                bench.report.rows(_withheld(bench, group, SKIPPED, "out of memory"))
            except RuntimeError as error:  # a device that fails in one case may still serve the next
                bench.report.broken.append(group.case.name)
                bench.report.rows(_withheld(bench, group, FAILED, f"while it was timed: {error}".splitlines()[0][:200]))


def _withheld(bench: Bench, group: Group, status: str, reason: str) -> Iterator[Row]:
    """Return rows without speeds: each provider's own reason if it has one."""
    for entry in group.providers:
        own, why = group.notes.get(entry.name, (status, reason))
        yield _row(bench, group, entry, own, why)


def _row(bench: Bench, group: Group, entry: Provider, status: str = "ok", note: str = "") -> Row:
    shape, verdict = group.case.shape, group.checks.get(entry.name)
    row = Row(
        case=group.case.name,
        kernel=group.case.kernel.name,
        shape=shape.name,
        model=shape.model,
        dims=shape.label(),
        provider=entry.name,
        dtype=group.dtype,
        precision=entry.precision(group.dtype),
        device=device_name(bench.device),
        status=status,
        note="; ".join(filter(None, (note, group.note))),
    )
    if verdict is None:
        return row
    error = verdict.error if math.isfinite(verdict.error) else None
    return replace(row, check_result=verdict.result, check_error=error, check_allowed=verdict.allowed)


def _timed(bench: Bench, group: Group, allowance: float) -> Iterator[Row]:
    inputs = group.case.inputs(DTYPES[group.dtype], bench.device)
    calls = {name: bind(function, inputs) for name, function in group.functions.items()}
    some = next(iter(calls.values()), tuple)()
    work = group.case.work(inputs, some)
    kept = sum(x.numel() * x.element_size() for x in some if isinstance(x, Tensor))
    del some
    peaks = {name: peak_memory(call, bench.device) for name, call in calls.items()}
    for timer, samples in _samples(bench, group, calls, allowance):
        for entry in group.providers:
            if entry.name not in samples:
                continue
            row = _with_speed(_row(bench, group, entry), samples[entry.name], samples.get(BASELINE), timer)
            row.peak_bytes, row.meter = peaks[entry.name]
            row.result_bytes = kept
            row.less_memory = peaks[BASELINE].bytes / max(row.peak_bytes, 1) if BASELINE in peaks else None
            yield _with_floor(bench, row, work)
    for entry in group.providers:
        if entry.name in group.notes:
            yield _row(bench, group, entry, *group.notes[entry.name])


def _samples(
    bench: Bench, group: Group, calls: dict[str, Call], allowance: float
) -> Iterator[tuple[str, dict[str, Samples]]]:
    if bench.device == "cuda":
        for timer in (timing.DO_BENCH, timing.CUDA_GRAPH):
            yield timer, timing.on_device(calls, timer)
        return
    # On a CPU that others use too the rates are measured in the same rounds: they meet the same noise.
    meters = {name: meter.run for name, meter in bench.meters(group.dtype).items()}
    taken = timing.interleaved({**calls, **meters}, allowance, bench.sync)
    bench.rates.update({name: taken[name] for name in meters})
    yield timing.WALL_CLOCK, taken


def _with_speed(row: Row, samples: Samples, baseline: Samples | None, timer: str) -> Row:
    row.timer, row.samples = timer, len(samples.seconds)
    row.median_ms, row.p20_ms, row.p80_ms = (1e3 * x for x in (samples.median, samples.p20, samples.p80))
    if baseline is not None:
        ratio = samples.against(baseline)
        row.faster, row.faster_p20, row.faster_p80 = ratio.median, ratio.p20, ratio.p80
    return row


def _with_floor(bench: Bench, row: Row, work: Work) -> Row:
    meters = {"copy": 2.0 * roofline.COPY_BYTES[bench.device]}
    size, name = roofline.MATMUL_SIZE[bench.device], f"matmul {row.precision}"
    meters[name] = 2.0 * size**3 / roofline.PRECISIONS[row.precision][2]
    row.flop, row.bytes = work.flop, work.bytes
    if name not in bench.rates or "copy" not in bench.rates:
        return row
    rate, bandwidth = (meters[meter] / bench.rates[meter].median for meter in (name, "copy"))
    row.matmul_flop_per_s, row.copy_bytes_per_s = rate, bandwidth
    seconds = roofline.floor_seconds(work, rate, bandwidth)
    row.floor_ms, row.bound = 1e3 * seconds, roofline.bound(work, rate, bandwidth)
    assert row.median_ms is not None
    row.roofline_percent = 100 * row.floor_ms / row.median_ms
    return row
