"""What the kernel tests share: seeds, awkward shapes, arguments, and one comparison against float64.

Tolerances come from the one table that `bench` uses too, repro/kernels/bench/tolerances.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from repro.kernels import fused, outputs, select
from repro.kernels.bench.tolerances import TOLERANCES, error_ratio

SEED = 20231
# The most that a kernel's error may exceed that of the float32 reference, both measured against float64.
MOST_TIMES_REFERENCE = 4.0
# What rounding in float32 makes of nothing: errors of the reference below this are taken as this.
ROUNDING = 3e-8

Results = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Shape:
    """Sizes of one case: B prompts, P positions, H heads in G groups of d_head K, D = d_model, W writers, S sites."""

    B: int = 1
    P: int = 1
    H: int = 1
    G: int = 1
    K: int = 32
    D: int = 64
    W: int = 1
    S: int = 1

    def __str__(self) -> str:
        return "-".join(f"{name}{value}" for name, value in self.__dict__.items())


# Awkward first: one position, none a multiple of a block, heads and dimensions that are no powers of two.
SHAPES = (
    Shape(),
    Shape(B=2, P=63, H=3, G=1, K=48, D=96, W=3, S=2),
    Shape(P=100, H=8, G=2, K=64, D=128, W=2, S=9),
    Shape(B=2, P=33, H=9, G=3, K=32, D=200, W=1, S=11),
    Shape(P=65, H=2, G=2, K=128, D=72, W=2, S=3),
)
WHOLE_CONTEXT = Shape(P=1024, H=2, G=1, K=64, D=128, S=2)

# Provider and dtype; Triton's runs under the interpreter where there is no GPU.
CPU = pytest.param("torch", torch.float32, id="torch-fp32")
TRITON = (
    pytest.param("triton", torch.float32, id="triton-fp32", marks=pytest.mark.kernels),
    pytest.param("triton", torch.float16, id="triton-fp16", marks=pytest.mark.kernels),
)
PROVIDERS = (CPU, *TRITON)
# What the projections also have: the same where no C compiler built their loop.
ALONE = pytest.param("torch alone", torch.float32, id="torch-alone-fp32")
PRECISION = {torch.float32: "ieee", torch.float16: "fp16", torch.bfloat16: "bf16"}


def kernels(name: str, precision: str = "ieee") -> Any:
    """The functions of a provider, for tensors on the CPU: Triton's visit a GPU if there is one."""
    if name == "torch alone":
        provider = select.provider("torch", "cpu", precision)
        return select.Kernels(name, {kernel: fused.torch_alone()(each) for kernel, each in provider.functions.items()})
    if name != "triton" or os.environ.get("TRITON_INTERPRET") == "1":
        return select.provider(name, "cpu", precision)
    provider = select.provider(name, "cuda", precision)
    return select.Kernels(name, {kernel: _on_gpu(function) for kernel, function in provider.functions.items()})


def _on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its arguments moved to the GPU and its results moved back."""

    def there(value: Any) -> Any:
        return value.cuda() if isinstance(value, Tensor) and value.device.type == "cpu" else value

    def call(*arguments: Any, **named: Any) -> Any:
        results = function(*map(there, arguments), **{name: there(value) for name, value in named.items()})
        if isinstance(results, Tensor):
            return results.cpu()
        return tuple(None if result is None else result.cpu() for result in results)

    return call


def randn(*size: int, dtype: torch.dtype = torch.float64, seed: int = SEED) -> Tensor:
    """Standard normal numbers that depend on the sizes and the seed alone."""
    generator = torch.Generator().manual_seed(seed + sum(31**place * n for place, n in enumerate(size)) % 2**31)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


def shapes_to(d_model: int) -> st.SearchStrategy[Shape]:
    """Shapes of a projection, any that are small, with a d_model of at most this."""
    most = {"B": 3, "P": 140, "H": 9, "K": 40, "D": d_model, "S": 11}
    return st.builds(Shape, **{name: st.integers(1, size) for name, size in most.items()})


def projection_arguments(shape: Shape, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `projection` whose head outputs have entries of size 1."""
    z = randn(shape.B, shape.P, shape.H, shape.K, dtype=dtype)
    W_O = (randn(shape.H, shape.K, shape.D) / shape.K**0.5).to(dtype)
    return {"z": z, "W_O": W_O, "of": randn(shape.S, shape.B, shape.P, shape.D, dtype=dtype)}


def composition_arguments(shape: Shape, dtype: torch.dtype) -> dict[str, Any]:
    """Tensor arguments of `v_composition`, with directions `onto`; values and outputs have entries of size 1."""
    B, P, H, G, K, D, W, S = (getattr(shape, name) for name in "BPHGKDWS")
    return {
        "q": randn(B, P, H, K, dtype=dtype),
        "k": randn(B, P, G, K, dtype=dtype, seed=SEED + 1),
        "writer": randn(W, B, P, D, dtype=dtype) + 0.5,
        "scale": (randn(B, P).abs() + 0.5).to(dtype),
        "W_V": (randn(G, D, K) / D**0.5).to(dtype),
        "W_O": (randn(H, K, D) / K**0.5).to(dtype),
        "onto": randn(S, B, P, D, dtype=dtype, seed=SEED + 2),
    }


def wide(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same arguments in float64: what the results are compared with starts from the very same numbers."""
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in arguments.items()}


def apart(tensor: Tensor) -> Tensor:
    """Equal numbers that lie apart in memory: every dimension but the last is cut from a larger one."""
    larger = tensor.new_full([2 * size for size in tensor.shape[:-1]] + [tensor.shape[-1]], float("nan"))
    part = larger[tuple(slice(0, size) for size in tensor.shape[:-1])]
    return part.copy_(tensor)


def agree(got: Results, true: Results, precision: str) -> None:
    """Fails unless every result lies within the tolerance of a precision from the float64 results."""
    assert len(got) == len(true)
    for index, (ours, right) in enumerate(zip(got, true, strict=True)):
        if ours is None or right is None:
            assert ours is right, f"result {index} is {ours}, not {right}"
            continue
        assert ours.shape == right.shape
        assert ours.dtype in (torch.float32, torch.float64)
        error = error_ratio(ours, right)
        assert error <= TOLERANCES[precision], f"result {index} is off by {error:.1e}, {precision} allows less"


def as_accurate(got: Results, reference: Results, true: Results) -> None:
    """Fails if a result errs more than MOST_TIMES_REFERENCE times the float32 reference, both against float64."""
    for ours, theirs, right in zip(got, reference, true, strict=True):
        if ours is None or theirs is None or right is None:
            continue
        times = error_ratio(ours, right) / max(error_ratio(theirs, right), ROUNDING)
        assert times <= MOST_TIMES_REFERENCE, f"errs {times:.1f} times as much as the reference in float32"


@contextmanager
def poisoned() -> Iterator[None]:
    """Every result starts as NaN: a lane that a kernel forgets to write fails the comparison."""
    patch = pytest.MonkeyPatch()

    def full_of_nan(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full(shape, float("nan"), dtype=dtype, device=device)

    patch.setattr(outputs, "empty", full_of_nan)
    try:
        yield
    finally:
        patch.undo()
