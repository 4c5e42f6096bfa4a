"""What bounds a kernel: a device's matrix-product and copy rates, measured here or declared by its maker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from repro.kernels.work import Work

# Larger than any cache but the largest servers', small enough to be repeated in every round of a measurement.
COPY_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}

# Product type -> (dtype of the arguments, whether torch may round them to TF32, products of that type in one of ours).
PRECISIONS: dict[str, tuple[torch.dtype, bool, int]] = {
    "ieee": (torch.float32, False, 1),
    "tf32": (torch.float32, True, 1),
    "tf32x3": (torch.float32, True, 3),
    "bf16": (torch.bfloat16, False, 1),
    "fp16": (torch.float16, False, 1),
}


@dataclass(frozen=True)
class Card:
    """One accelerator as its maker declares it: dense rates in FLOP/s, memory in bytes/s, shared memory in bytes."""

    name: str
    backend: str
    arch: int | str
    warp: int
    shared: int
    """Shared memory that one block may use."""
    memory: float
    processors: int
    """Streaming multiprocessors, or compute units: each starts one instruction of each of four schedulers a clock."""
    clock: float
    """Clocks per second, boosted."""
    cache: float
    """Bytes/s out of the last cache that all processors share."""
    rates: dict[str, float] = field(default_factory=dict)
    """Precision -> FLOP/s; a precision that is absent does not exist there."""


# Data sheets: A100 80GB SXM, H100 SXM, MI300X; dense rates, without sparsity. TF32x3 is three TF32 products. Caches:
# 5,120 bytes a clock (A100's white paper, taken for H100 too), and MI300X's Infinity Cache.
_CARDS = (
    Card("A100", "cuda", 80, 32, 163 << 10, 2.039e12, 108, 1.41e9, 7.2e12,
         {"ieee": 19.5e12, "tf32": 156e12, "tf32x3": 52e12, "bf16": 312e12, "fp16": 312e12}),
    Card("H100", "cuda", 90, 32, 227 << 10, 3.35e12, 132, 1.755e9, 9.0e12,
         {"ieee": 66.9e12, "tf32": 494.7e12, "tf32x3": 164.9e12, "bf16": 989.4e12, "fp16": 989.4e12}),
    Card("MI300X", "hip", "gfx942", 64, 64 << 10, 5.3e12, 304, 2.1e9, 17.2e12,
         {"ieee": 163.4e12, "bf16": 1307.4e12, "fp16": 1307.4e12}),
)  # fmt: skip
CARDS = {card.name: card for card in _CARDS}


def vendor(target: Card) -> str:
    """Return the kind of device whose tiles a card takes, as `launch.precision.check` names it."""
    return "cuda80" if target.backend == "cuda" and int(target.arch) < 90 else target.backend


def predicted_seconds(
    target: Card, work: Work, loaded: float, flop: float, rate: float, issue: Issue
) -> dict[str, float]:
    """Return bound -> the least seconds of one launch by it; the longest is what to expect at best.

    work: bytes moved by memory, each once; loaded: bytes that programs load, whatever cache has them; flop: of whole
    tiles; rate: FLOP/s; issue: what the programs start. Programs that fill the processors unevenly leave some idle.
    """
    waves = -(-issue.programs // target.processors)
    busy = issue.programs / (waves * target.processors)
    return {
        "memory": work.bytes / target.memory,
        "cache": loaded / (target.cache * min(1.0, issue.programs / target.processors)),
        "matrix": flop / (rate * busy),
        "issue": waves * issue.instructions * issue.warps / 4 / target.clock,
    }


@dataclass(frozen=True)
class Issue:
    """What a launch starts: programs of so many warps, each of so many instructions."""

    programs: int
    warps: int
    instructions: float


def floor(work: Work, rate: float, bandwidth: float) -> tuple[float, str]:
    """Return the least seconds for this work, and what takes them: `compute` or `memory`, perfectly overlapped.

    work: FLOP and bytes; rate: FLOP/s; bandwidth: bytes/s. Agreement: tests/bench/test_bench_parts.py.
    """
    compute, memory = work.flop / rate, work.bytes / bandwidth
    return (compute, "compute") if compute >= memory else (memory, "memory")


@dataclass(frozen=True)
class Meter:
    """A rate that is measured by running something: `amount` FLOP or bytes a call."""

    name: str
    run: Callable[[], Tensor]
    amount: float


def copy_meter(device: str) -> Meter:
    """Return a copy within memory; its amount counts the bytes read and the bytes written."""
    size = COPY_BYTES[device]
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return Meter("copy", lambda: target.copy_(source), 2.0 * size)


def matmul_meter(device: str, precision: str) -> Meter:
    """Return a large square product in a precision's dtype and rounding; TF32x3 counts a third of TF32's."""
    dtype, tf32, products = PRECISIONS[precision]
    size = MATMUL_SIZE[device]
    generator = torch.Generator(device=device).manual_seed(size)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def run() -> Tensor:
        with matmul_precision(tf32):
            return torch.mm(a, b, out=out)

    return Meter(f"matmul {precision}", run, 2.0 * size**3 / products)


@contextmanager
def matmul_precision(tf32: bool) -> Iterator[None]:
    """Set, for as long as it lasts, whether torch may round float32 matrix products to TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
