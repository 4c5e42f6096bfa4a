"""One launch of a Triton kernel as a value: what is launched is exactly what is compiled ahead of time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Fused multiply-add wherever the hardware has it: one rounding less, and the same on every architecture.
ENABLE_FP_FUSION = True
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64"}
# Pointers and integers that are multiples of this many bytes or elements let the compiler use 128-bit loads.
DIVISIBILITY = 16


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
    """A kernel with its arguments in order (None: an absent pointer), its constants, its grid and its size."""

    fn: Any
    arguments: Mapping[str, Tensor | int | float | None]
    constexprs: Mapping[str, Any]
    grid: tuple[int, ...]
    num_warps: int
    num_stages: int

    def run(self) -> None:
        """Launches the kernel on the current stream of its first tensor's device."""
        device = next(value.device for value in self.arguments.values() if isinstance(value, Tensor))
        guard: Callable[..., Any] = torch.cuda.device_of if device.type == "cuda" else _no_guard
        with guard(next(value for value in self.arguments.values() if isinstance(value, Tensor))):
            self.fn[self.grid](
                *self.arguments.values(),
                **self.constexprs,
                num_warps=self.num_warps,
                num_stages=self.num_stages,
                enable_fp_fusion=ENABLE_FP_FUSION,
            )

    def compile_spec(self) -> CompileSpec:
        """The same launch for the compiler: types, constants and divisibility as a launch would specialise them."""
        names = list(self.fn.arg_names)
        signature, constexprs = dict.fromkeys(names, "constexpr"), dict(self.constexprs)
        attrs: dict[tuple[int, ...], list[list[object]]] = {}
        for name, value in self.arguments.items():
            kind = _kind(value)
            if kind == "constexpr":
                constexprs[name] = value
                continue
            signature[name] = kind
            if isinstance(value, Tensor) or (isinstance(value, int) and value % DIVISIBILITY == 0):
                attrs[(names.index(name),)] = [["tt.divisibility", DIVISIBILITY]]
        return CompileSpec(self.fn, signature, constexprs, attrs, self.num_warps, self.num_stages)


class _no_guard:  # noqa: N801
    """Stands in for a device guard where there is only one device."""

    def __init__(self, tensor: Tensor) -> None:
        del tensor

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None


def _kind(value: Tensor | int | float | None) -> str:
    """The compiler's name for an argument's type; integers equal to 1 and absent pointers are constants."""
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if value is None or (isinstance(value, int) and value == 1):
        return "constexpr"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"
