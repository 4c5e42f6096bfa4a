"""A child that measures on the CPU what it is asked to measure on a GPU, and fails where it is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from repro.kernels.bench import cases, child, providers, roofline, rows, run, timing, whole
from repro.kernels.bench.memory import peak_memory
from repro.kernels.registry import KERNELS
from repro.kernels.select import Kernels
from repro.kernels.work import Shape

TINY = Shape("paper", "tiny", 64, 4, 2, 16, sites=3, vocab=301, center=True, bias=True, positions=32)
SHAPES = (TINY, replace(TINY, name="paper4", prompts=2))


def fails(how: str) -> None:
    """Fail as a kernel may."""
    if how == "dies":
        os.abort()
    raise RuntimeError("CUDA error: device-side assert triggered")


def pretend(failing: Mapping[str, str]) -> None:
    """Let everything that asks for a GPU have an answer from the CPU. failing: "KERNEL/SHAPE DTYPE" -> how it fails."""
    inputs, meters = cases.Case.inputs, (roofline.copy_meter, roofline.matmul_meter)
    now = {"case": ""}

    def on_cpu(name: str, device: str, precision: str = "ieee") -> Kernels:
        path = "tiled" if name == "triton" else "reference"
        found = {kernel: entry.function(path) for kernel, entry in KERNELS.items()}
        return Kernels(name, {kernel: watched(function, name) for kernel, function in found.items()})

    def watched(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if name == "triton" and now["case"] in failing:
                fails(failing[now["case"]])
            return function(*given, **named)

        return call

    def drawn(self: cases.Case, dtype: torch.dtype, device: str) -> dict[str, Any]:
        now["case"] = f"{self.name} {str(dtype).removeprefix('torch.')}"
        return inputs(self, dtype, "cpu")

    def timer(call: Callable[[], Any], name: str) -> list[float]:
        call()
        return [1.0, 2.0, 3.0]

    cases.SHAPES = SHAPES  # type: ignore[assignment] # fewer and smaller
    cases.Case.inputs = drawn  # type: ignore[method-assign]
    torch.cuda.synchronize = lambda device=None: None
    timing.MAX_ROUNDS = timing.MIN_ROUNDS
    roofline.COPY_BYTES, roofline.MATMUL_SIZE = {"cuda": 1 << 16, "cpu": 1 << 16}, {"cuda": 64, "cpu": 64}
    roofline.copy_meter = lambda device: meters[0]("cpu")
    roofline.matmul_meter = lambda device, precision: meters[1]("cpu", precision)
    providers.kernels_of = on_cpu
    providers.PROVIDERS = tuple(entry for entry in providers.PROVIDERS if not entry.compiles)
    rows.device_name = lambda device: "fake"
    run.peak_memory = lambda call, device: peak_memory(call, "cpu")
    timing._triton_timer = timer  # type: ignore[assignment] # another name of its parameter
    whole.profiled = lambda call, device: "a table"


def work_without_profiler(jobs: Connection) -> None:
    """Serve jobs as the benchmark's child does, on a machine where no call can be profiled."""

    def profiled(call: Callable[[], Any], device: str) -> str:
        raise RuntimeError("no profiler here")

    pretend({})
    whole.profiled = profiled
    child.work(jobs)


def work(failing: Mapping[str, str], jobs: Connection) -> None:
    """Serve jobs as the benchmark's child does, but for some "KERNEL/SHAPE DTYPE", which each "dies" or "asserts"."""
    pretend(failing)
    child.work(jobs)
