"""How fast the kernels are, said only of kernels that are right.

Needs torch, numpy and, for GPUs, triton; from the root of a checkout:

    python -m repro.kernels.bench --device cuda --budget 8m --out results.jsonl

Every provider is first compared with float64, then timed in turns with the others; a kernel, shape and dtype of which a
check of ours fails gets no speed, and the command ends in 1. What no longer fits the budget is left out and named. On a
GPU everything runs in a process of its own, which is replaced when a kernel takes it down.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from repro.kernels.bench import compile_all as bench_compile
from repro.kernels.bench.cases import select
from repro.kernels.bench.compile_table import PREDICTED
from repro.kernels.bench.report import Report, describe, environment
from repro.kernels.bench.schedule import Schedule
from repro.kernels.bench.timing import Budget, Clock, parse_budget
from repro.kernels.bench.workers import Child, InThisProcess, Worker
from repro.kernels.errors import KernelError, UnsupportedError

DEFAULT_BUDGET = "5m"
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


def run(
    options: Options,
    say: Callable[[str], None] = print,
    clock: Clock = time.monotonic,
    start: Callable[[], Worker] | None = None,
) -> Report:
    """Measure what the options ask for; `failed` of the report names what failed its check, `broken` steps and cases.

    start: starts a worker, and another for each one lost; by default this process, or one of its own on a GPU.

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
    seen = environment(device, budget.seconds)
    report.add(seen, describe(seen))
    begin = start or (Child if device == "cuda" else partial(InThisProcess, clock))
    Schedule(budget, report, device, begin).run(cases, WHOLE_SHAPE[device], options.only is None)
    if (device == "cpu" and options.only is None) or options.compile_all:
        report.add({"record": "note", "text": PREDICTED}, "", PREDICTED, bench_compile.heading())
        for record in bench_compile.in_children(options.compile_all, budget):
            report.add(record, bench_compile.line_of(record))
    for name in report.failed:
        report.add({"record": "failed", "group": name}, f"{name}: a check failed, so none of its speeds is printed")
    for name in report.broken:
        report.add({"record": "broken", "group": name}, f"{name}: its measurement ended in an error")
    return report


def resolve(device: str) -> str:
    """Return where to run, given `auto`, `cpu` or `cuda`. Raises UnsupportedError if there is no such device."""
    if device not in ("auto", "cpu", "cuda"):
        raise UnsupportedError(f"bench: --device {device!r}; allowed: auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError("bench: --device cuda, but torch sees no GPU here")
    return "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 if all is right, 1 if a check or a measurement failed, 2 for a wrong option."""
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
