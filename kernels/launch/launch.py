"""One launch of a Triton kernel as a value: what is launched is exactly what is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

# Fused multiply-add wherever the hardware has it: one rounding less, and the same on every architecture.
ENABLE_FP_FUSION = True
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64"}
# Pointers and integers that are multiples of this many bytes or elements let the compiler use 128-bit loads.
DIVISIBILITY = 16

Argument = Tensor | int | float | None
Row = TypeVar("Row")


@dataclass(frozen=True)
class Tiling:
    """What the tiles of a launch make of the least work: for predictions and gates, never for results."""

    flop: float
    """Products of whole tiles, padding included."""
    reads: Mapping[str, float]
    """Tensor argument -> times that each of its elements is loaded; 1 unless named."""
    steps: float
    """Passes of one program through its inner loop."""
    formed: float = 0.0
    """Times that each head's output is formed, inside or beforehand; 0 where none is."""
    calls: int = 1
    """Launches of this kind in one call of the function."""
    library: tuple[float, float] = (0.0, 0.0)
    """FLOP and bytes of what the vendor's library does in one call, before or after."""


class CompileSpec(NamedTuple):
    """What `triton.compile(ASTSource(fn, signature, constexprs, attrs), options=...)` needs."""

    fn: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    attrs: dict[tuple[int, ...], list[list[object]]]
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments in order (None: an absent pointer), its constants, its grid and its size.

    `constexprs` holds num_warps and num_stages beside the kernel's own constants.
    """

    fn: Any
    arguments: Mapping[str, Argument]
    constexprs: Mapping[str, Any]
    grid: tuple[int, ...]
    tiling: Tiling | None = None

    def on(self, tensors: Mapping[str, Argument]) -> Launch:
        """Return the same launch of other tensors that lie alike."""
        return replace(self, arguments={**self.arguments, **tensors})

    def run(self) -> None:
        """Launch the kernel on the current stream of its first tensor's device."""
        with torch.cuda.device_of(next(value for value in self.arguments.values() if isinstance(value, Tensor))):
            self.fn[self.grid](*self.arguments.values(), **self.constexprs, enable_fp_fusion=ENABLE_FP_FUSION)

    def compile_spec(self) -> CompileSpec:
        """Return a launch for the compiler, with the types, constants and divisibility that it would specialise."""
        names = list(self.fn.arg_names)
        plain = {
            self.fn.arg_names[at] if isinstance(at, int) else at for at in getattr(self.fn, "do_not_specialize", ())
        }
        constexprs = dict(self.constexprs)
        num_warps, num_stages = constexprs.pop("num_warps"), constexprs.pop("num_stages")
        signature = dict.fromkeys(names, "constexpr")
        attrs: dict[tuple[int, ...], list[list[object]]] = {}
        for name, value in self.arguments.items():
            signature[name] = "i32" if name in plain and isinstance(value, int) else _kind(value)
            if signature[name] == "constexpr":
                constexprs[name] = value
            elif isinstance(value, Tensor) or (
                name not in plain and isinstance(value, int) and not value % DIVISIBILITY
            ):
                attrs[(names.index(name),)] = [["tt.divisibility", DIVISIBILITY]]
        return CompileSpec(self.fn, signature, constexprs, attrs, num_warps, num_stages)


def rows(tensor: Tensor) -> Tensor:
    """Return the tensor itself if its last dimension is contiguous, else a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def named_strides(name: str, tensor: Tensor, dims: str) -> dict[str, int]:
    """Return the strides of a tensor's leading dimensions, as kernel arguments `name_dim`."""
    # The stride of a dimension of one element means nothing; zero keeps it from spoiling the alignment of the others.
    sizes = enumerate(zip(dims.split(), tensor.shape, strict=False))
    return {f"{name}_{dim}": tensor.stride(index) if size > 1 else 0 for index, (dim, size) in sizes}


def pow2(size: int) -> int:
    """Return the smallest power of two that holds `size`, at least 16, the least that a matrix product takes."""
    return max(16, 1 << (size - 1).bit_length())


def processors(device: torch.device) -> int:
    """Return how many programs a device runs side by side; off a GPU those of an H100, for which code is compiled."""
    if device.type != "cuda":
        return 132
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def row_of(table: Mapping[tuple[str, str], Row], vendor: str, dtype: torch.dtype, precision: str) -> Row:
    """Return the block sizes for a kind of device and of input; "cuda80" has those of "cuda" where it has none.

    The kind of input is "half", or float32's precision; "tf32" fits the tiles of "tf32x3".
    """
    kind = "half" if dtype != torch.float32 else "tf32x3" if precision == "tf32" else precision
    own = (vendor, kind)
    return table[own] if own in table else table["cuda" if vendor == "cuda80" else vendor, kind]


def _kind(value: Argument) -> str:
    """Return the compiler's name for an argument's type; integers equal to 1 and absent pointers are constants."""
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if value is None or (isinstance(value, int) and value == 1):
        return "constexpr"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"
