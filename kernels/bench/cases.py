"""What is measured: model shapes, each one declared entry; a case is one kernel of the registry at one shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from repro.kernels.errors import UnsupportedError
from repro.kernels.registry import KERNELS, Kernel
from repro.kernels.work import Shape, Work, listed

SEED = 2310


_PAPER = Shape("paper", "gelu-4l", 512, 8, 8, 64, sites=9, vocab=48262, center=True, bias=True)

# In the order in which a borrowed GPU measures them. Sites are 2 L + 1. Vocabularies are those of the weights, padding
# included.
SHAPES = (
    _PAPER,
    replace(_PAPER, name="paper4", prompts=4),
    # What a run hands over at once: the heads of all layers, and the directions in their slots behind the sites.
    replace(_PAPER, name="runner", prompts=4, heads=32, groups=32, beside=3),
    Shape("smollm2", "SmolLM2-135M", 576, 9, 3, 64, sites=61, vocab=49152, center=False, bias=False),
    replace(_PAPER, name="writers", writers=8),
    Shape("gpt2xl", "GPT-2 XL", 1600, 25, 25, 64, sites=97, vocab=50257, center=True, bias=False),
    Shape("pythia", "Pythia-6.9B", 4096, 32, 32, 128, sites=65, vocab=50432, center=True, bias=False),
)

# What a machine without a GPU measures unless told otherwise: one prompt, and the runner's unit of four.
CPU_SHAPES = ("paper", "paper4")


@dataclass(frozen=True)
class Case:
    """One kernel at one shape."""

    kernel: Kernel
    shape: Shape

    @property
    def name(self) -> str:
        """Return `kernel/shape`, as `--only` takes it."""
        return f"{self.kernel.name}/{self.shape.name}"

    def inputs(self, dtype: torch.dtype, device: str) -> dict[str, Any]:
        """Return the same random arguments every time on one kind of device; outputs are of the order of one."""
        generator = None if device == "meta" else torch.Generator(device=device).manual_seed(SEED)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)

        return self.kernel.inputs(self.shape, draw)

    def work(self, inputs: dict[str, Any], results: Sequence[Tensor | None]) -> Work:
        """Return FLOP from the shape, and bytes of every input read once and every result written once."""
        tensors = [x for x in (*inputs.values(), *results) if isinstance(x, Tensor)]
        return Work(self.kernel.flop(self.shape), float(sum(x.numel() * x.element_size() for x in tensors)))

    def least(self, dtype: torch.dtype) -> Work:
        """Return the same for a dtype without any numbers: shapes alone pass through the reference."""
        inputs = self.inputs(dtype, "meta")
        with torch.no_grad():
            return self.work(inputs, listed(self.kernel.function("reference")(**inputs)))


def every() -> list[Case]:
    """Return every declared case, shape by shape, the paper's first."""
    return [Case(kernel, shape) for shape in SHAPES for kernel in KERNELS.values() if shape.name in kernel.shapes]


def select(only: str | None, device: str) -> list[Case]:
    """Return the cases that a list of kernels, shapes and `kernel/shape` names; by default what suits the device.

    Raises UnsupportedError naming what no case matches. Agreement: tests/bench/test_bench_parts.py.
    """
    cases = every()
    if only is None:
        return [case for case in cases if device != "cpu" or case.shape.name in CPU_SHAPES]
    chosen: list[Case] = []
    for word in filter(None, (word.strip() for word in only.split(","))):
        found = [case for case in cases if word in (case.name, case.kernel.name, case.shape.name)]
        if not found:
            kernels, shapes = ", ".join(KERNELS), ", ".join(shape.name for shape in SHAPES)
            raise UnsupportedError(f"bench: no case {word!r}; kernels: {kernels}; shapes: {shapes}; or kernel/shape")
        if word in KERNELS and device == "cpu":
            found = [case for case in found if case.shape.name in CPU_SHAPES]
        chosen += [case for case in found if case not in chosen]
    if not chosen:
        raise UnsupportedError("bench: --only names no case")
    return chosen
