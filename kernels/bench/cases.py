"""What is measured: model shapes and kernels, each one declared entry; a case is one kernel at one shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from repro.kernels.errors import UnsupportedError

SEED = 2310


@dataclass(frozen=True)
class Shape:
    """One model's dimensions, and how many prompts and positions of it are measured."""

    name: str
    model: str
    d_model: int
    heads: int
    groups: int
    """Key and value heads."""
    d_head: int
    sites: int
    vocab: int
    center: bool
    """Whether the norm subtracts the mean (LayerNorm) or not (RMSNorm)."""
    bias: bool
    """Whether the unembedding has a bias."""
    positions: int = 1024
    prompts: int = 1
    writers: int = 1
    directions: int = 2
    """Directions per position that V-composition is projected onto: the writer's output and one logit difference."""

    def label(self) -> str:
        """Return the dimensions on one line."""
        return (
            f"B {self.prompts} P {self.positions} H {self.heads}/{self.groups} K {self.d_head} D {self.d_model} "
            f"S {self.sites} W {self.writers} N {self.directions} V {self.vocab}"
        )


_PAPER = Shape("paper", "gelu-4l", 512, 8, 8, 64, sites=9, vocab=48262, center=True, bias=True)

# Sites are 2 L + 1. Vocabularies are those of the weights, padding included.
SHAPES = (
    _PAPER,
    replace(_PAPER, name="paper4", prompts=4),
    replace(_PAPER, name="writers", writers=8),
    Shape("smollm2", "SmolLM2-135M", 576, 9, 3, 64, sites=61, vocab=49152, center=False, bias=False),
    Shape("gpt2xl", "GPT-2 XL", 1600, 25, 25, 64, sites=97, vocab=50257, center=True, bias=False),
    Shape("pythia", "Pythia-6.9B", 4096, 32, 32, 128, sites=65, vocab=50432, center=True, bias=False),
)

# What a machine without a GPU measures unless told otherwise: one prompt, and the runner's unit of four.
CPU_SHAPES = ("paper", "paper4")


@dataclass(frozen=True)
class Work:
    """The least that any program for a case must do: multiplications and additions, and bytes read and written once."""

    flop: float
    bytes: float


@dataclass(frozen=True)
class Kernel:
    """A function of `repro.kernels.reference`: how its inputs are drawn, and what it must at least do."""

    name: str
    inputs: Callable[[Shape, Callable[..., Tensor]], dict[str, Any]]
    flop: Callable[[Shape], float]
    shapes: tuple[str, ...]
    """Names of the shapes at which it differs from its other cases."""


def _projection(s: Shape, draw: Callable[..., Tensor]) -> dict[str, Any]:
    return {
        "z": draw(s.prompts, s.positions, s.heads, s.d_head),
        "W_O": draw(s.heads, s.d_head, s.d_model, scale=s.d_head**-0.5),
        "of": draw(s.sites, s.prompts, s.positions, s.d_model),
    }


def _projection_onto_vectors(s: Shape, draw: Callable[..., Tensor]) -> dict[str, Any]:
    return {
        "v": draw(1, s.prompts, s.positions, s.d_model),
        "of": draw(s.sites, s.prompts, s.positions, s.d_model),
    }


def _v_composition(s: Shape, draw: Callable[..., Tensor]) -> dict[str, Any]:
    return {
        "q": draw(s.prompts, s.positions, s.heads, s.d_head),
        "k": draw(s.prompts, s.positions, s.groups, s.d_head),
        "writer": draw(s.writers, s.prompts, s.positions, s.d_model),
        "scale": draw(s.prompts, s.positions).abs() + 0.5,
        "W_V": draw(s.groups, s.d_model, s.d_head, scale=s.d_model**-0.5),
        "W_O": draw(s.heads, s.d_head, s.d_model, scale=s.d_head**-0.5),
        "onto": draw(s.directions, s.prompts, s.positions, s.d_model),
        "center": s.center,
    }


def _top2_logits(s: Shape, draw: Callable[..., Tensor]) -> dict[str, Any]:
    resid = draw(s.prompts * s.positions, s.d_model)
    chosen = torch.arange(len(resid), device=resid.device)[:, None] * 7919 % s.vocab
    return {
        "resid": resid,
        "W_U": draw(s.d_model, s.vocab, scale=s.d_model**-0.5),
        "b_U": draw(s.vocab) if s.bias else None,
        "chosen": chosen,
    }


def _projection_flop(s: Shape) -> float:
    rows = s.prompts * s.positions * s.heads
    return 2.0 * rows * s.d_model * (s.d_head + s.sites + 1)


def _vectors_flop(s: Shape) -> float:
    return 2.0 * s.prompts * s.positions * s.d_model * (s.sites + 1)


def _v_composition_flop(s: Shape) -> float:
    # A causal pattern has P (P + 1) / 2 entries; each costs K for its score and K for every writer's weighted sum.
    rows = s.prompts * s.positions
    pattern = 2.0 * s.prompts * s.heads * s.positions * (s.positions + 1) / 2 * s.d_head * (1 + s.writers)
    values = 2.0 * s.writers * rows * s.groups * s.d_model * s.d_head
    outputs = 2.0 * s.writers * rows * s.heads * s.d_model * (s.d_head + s.directions)
    return pattern + values + outputs


def _top2_flop(s: Shape) -> float:
    return 2.0 * s.prompts * s.positions * s.d_model * s.vocab


_EVERYWHERE = tuple(shape.name for shape in SHAPES if shape.writers == 1)

KERNELS = (
    Kernel("projection", _projection, _projection_flop, _EVERYWHERE),
    Kernel("projection_onto_vectors", _projection_onto_vectors, _vectors_flop, _EVERYWHERE),
    Kernel("v_composition", _v_composition, _v_composition_flop, tuple(shape.name for shape in SHAPES)),
    Kernel("top2_logits", _top2_logits, _top2_flop, _EVERYWHERE),
)


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
        generator = torch.Generator(device=device).manual_seed(SEED)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)

        return self.kernel.inputs(self.shape, draw)

    def work(self, inputs: dict[str, Any], results: Sequence[Tensor | None]) -> Work:
        """Return FLOP from the shape, and bytes of every input read once and every result written once."""
        tensors = [x for x in (*inputs.values(), *results) if isinstance(x, Tensor)]
        return Work(self.kernel.flop(self.shape), float(sum(x.numel() * x.element_size() for x in tensors)))

    def shortened(self, positions: int) -> Case:
        """Return the same case over fewer positions."""
        return replace(self, shape=replace(self.shape, positions=positions))


def every() -> list[Case]:
    """Return every declared case, shape by shape, the paper's first."""
    return [Case(kernel, shape) for shape in SHAPES for kernel in KERNELS if shape.name in kernel.shapes]


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
            kernels, shapes = ", ".join(k.name for k in KERNELS), ", ".join(s.name for s in SHAPES)
            raise UnsupportedError(f"bench: no case {word!r}; kernels: {kernels}; shapes: {shapes}; or kernel/shape")
        if word in {kernel.name for kernel in KERNELS} and device == "cpu":
            found = [case for case in found if case.shape.name in CPU_SHAPES]
        chosen += [case for case in found if case not in chosen]
    if not chosen:
        raise UnsupportedError("bench: --only names no case")
    return chosen
