"""How fast the kernels are, said only of kernels that are right.

Needs torch, numpy and, for GPUs, triton; from the root of a checkout:

    python -m repro.kernels.bench --device cuda --budget 8m --out results.jsonl

Every provider is first compared with float64, then timed in turns with the others; a kernel of which one check fails
gets no speed at all, and the command ends in 1. Steps that no longer fit the budget are left out and named.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from repro.kernels.bench import compile_all as bench_compile
from repro.kernels.bench import timing
from repro.kernels.bench.cases import select
from repro.kernels.bench.compile_table import PREDICTED
from repro.kernels.bench.providers import DTYPES
from repro.kernels.bench.report import Report, describe, environment
from repro.kernels.bench.run import Bench, check_all, groups, time_all
from repro.kernels.bench.timing import Budget, Clock, parse_budget
from repro.kernels.bench.whole import end_to_end, profile_slowest
from repro.kernels.errors import KernelError, UnsupportedError

DEFAULT_BUDGET = "5m"
OURS = ("triton", "triton tf32x3")
WHOLE_SHAPE = {"cpu": "paper", "cuda": "paper4"}


@dataclass(frozen=True)
class Options:
    """What is asked of one run."""

    device: str = "auto"
    """auto, cpu or cuda (a ROCm device is called cuda too)."""
    budget: str = DEFAULT_BUDGET
    """The longest it may take: 90s, 8m, 1h."""
    only: str | None = None
    """Kernels, shapes or kernel/shape, separated by commas."""
    compile_all: bool = False
    """Compile every configuration for every architecture ahead of time, not only the default ones."""
    as_json: bool = False
    out: Path | None = None
    """The results file, one JSON object a line."""


def run(options: Options, say: Callable[[str], None] = print, clock: Clock = time.monotonic) -> Report:
    """Measure what the options ask for; `failed` of the report names kernels whose check failed, `broken` steps.

    Raises UnsupportedError for a device that is not there, a case that does not exist or a budget that is no time.
    Agreement: tests/kernels/test_bench.py.
    """
    device = resolve(options.device)
    try:
        budget = Budget(parse_budget(options.budget), clock)
    except ValueError as error:
        raise UnsupportedError(f"bench: --budget {error}") from None
    cases = select(options.only, device)
    report = Report(options.out, options.as_json, say)
    bench = Bench(device, budget, report)
    seen = environment(device, budget.seconds)
    report.add(seen, describe(seen))
    _measure_rates(bench)
    todo = groups(bench, cases)
    check_all(bench, todo)
    time_all(bench, todo)
    if device == "cuda":
        _step(report, "profile", lambda: profile_slowest(bench, todo, OURS))
    if options.only is None:
        _step(report, "end_to_end", lambda: end_to_end(bench, todo, WHOLE_SHAPE[device]))
    if (device == "cpu" and options.only is None) or options.compile_all:
        _step(report, "compile", lambda: _compile_table(bench, options.compile_all))
    report.failed = sorted(bench.failed)
    for kernel in report.failed:
        report.add(
            {"record": "failed", "kernel": kernel}, f"{kernel}: a check failed, so none of its speeds is printed"
        )
    return report


def resolve(device: str) -> str:
    """Return where to run, given `auto`, `cpu` or `cuda`. Raises UnsupportedError if there is no such device."""
    if device not in ("auto", "cpu", "cuda"):
        raise UnsupportedError(f"bench: --device {device!r}; allowed: auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError("bench: --device cuda, but torch sees no GPU here")
    return "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device


def _measure_rates(bench: Bench) -> None:
    """Measure copy and matrix-product rates that bound every kernel; on a CPU again beside each case."""
    dtypes = ("fp32",) if bench.device == "cpu" else tuple(DTYPES)
    meters = {name: meter for dtype in dtypes for name, meter in bench.meters(dtype).items()}
    calls = {name: meter.run for name, meter in meters.items()}
    for call in calls.values():
        call()
    if bench.device == "cuda":
        bench.rates.update(timing.on_device(calls, timing.DO_BENCH))
    else:
        bench.rates.update(timing.interleaved(calls, 0.0, bench.sync))
    for name, samples in bench.rates.items():
        rate, unit = meters[name].amount / samples.median, "B" if name == "copy" else "FLOP"
        record = {"record": "rate", "meter": name, "per_second": rate, "unit": unit, "samples": len(samples.seconds)}
        bench.report.add(record, f"measured here: {name} {rate / 1e9:.1f} G{unit}/s")


def _step(report: Report, name: str, run: Callable[[], None]) -> None:
    """Run a step whose failure is recorded and leaves the others their turn."""
    try:
        run()
    except Exception as error:  # the results so far are worth more than a traceback
        report.broken.append(name)
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        report.add({"record": name, "status": f"failed: {reason}"}, f"{name}: failed: {reason}")


def _compile_table(bench: Bench, everything: bool) -> None:
    """Compile ahead of time in processes of its own, where no kernel is interpreted."""
    bench.report.add({"record": "note", "text": PREDICTED}, "", PREDICTED, bench_compile.heading())
    for record in bench_compile.in_children(everything, bench.budget):
        bench.report.add(record, bench_compile.line_of(record))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 if all is right, 1 if a check failed, 2 for an option that cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m repro.kernels.bench", description="Times the kernels that are right."
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument(
        "--budget", default=DEFAULT_BUDGET, help="the longest it may take, such as 90s or 8m (default 5m)"
    )
    parser.add_argument("--only", help="kernels, shapes or kernel/shape, separated by commas")
    parser.add_argument("--compile-all", action="store_true", help="compile every configuration ahead of time")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object a line")
    parser.add_argument("--out", type=Path, help="the results file, one JSON object a line")
    try:
        report = run(Options(**vars(parser.parse_args(arguments))))
    except KernelError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 1 if report.failed or report.broken else 0
