"""One launch of a Triton kernel as a value: what is launched is exactly what is compiled ahead of time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Fused multiply-add wherever the hardware has it: one rounding less, and the same on every architecture.
ENABLE_FP_FUSION = True
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64"}
# Pointers and integers that are multiples of this many bytes or elements let the compiler use 128-bit loads.
DIVISIBILITY = 16

Argument = Tensor | int | float | None


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

    def run(self) -> None:
        """Launch the kernel on the current stream of its first tensor's device."""
        with torch.cuda.device_of(next(value for value in self.arguments.values() if isinstance(value, Tensor))):
            self.fn[self.grid](*self.arguments.values(), **self.constexprs, enable_fp_fusion=ENABLE_FP_FUSION)

    def compile_spec(self) -> CompileSpec:
        """Return a launch for the compiler, with the types, constants and divisibility that it would specialise."""
        names = list(self.fn.arg_names)
        constexprs = dict(self.constexprs)
        num_warps, num_stages = constexprs.pop("num_warps"), constexprs.pop("num_stages")
        signature = dict.fromkeys(names, "constexpr")
        attrs: dict[tuple[int, ...], list[list[object]]] = {}
        for name, value in self.arguments.items():
            signature[name] = _kind(value)
            if signature[name] == "constexpr":
                constexprs[name] = value
            elif isinstance(value, Tensor) or (isinstance(value, int) and value % DIVISIBILITY == 0):
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


def kind(dtype: torch.dtype, precision: str) -> str:
    """Return the row of a table of block sizes: "half", or float32's precision."""
    return precision if dtype == torch.float32 else "half"


def _kind(value: Argument) -> str:
    """Return the compiler's name for an argument's type; integers equal to 1 and absent pointers are constants."""
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if value is None or (isinstance(value, int) and value == 1):
        return "constexpr"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"
