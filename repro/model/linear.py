"""Matrix products of the forward pass: with a weight as it stands, or packed into the order this processor reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}

# What oneDNN computes in the same breath as the product: its names of activation and algorithm. Not relu: it makes 0 of
# NaN.
_FUSED = {
    "none": ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "silu": ("swish", ""),
    "swish": ("swish", ""),
}
_TYPICAL_ROWS = 1024
"""Rows for which oneDNN chooses its order of memory; any number can be multiplied."""
_PROBED_ROWS = (2, 65)
"""Rows of the products compared: oneDNN multiplies few rows by other code than many."""
# Largest deviation allowed from the plain product, relative to its largest value: both round, in another order.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Packed:
    """A weight [I, O] in oneDNN's own order of memory, which nothing but `linear` can read."""

    content: Tensor
    shape: torch.Size
    dtype: torch.dtype


Weight = Tensor | Packed


def pack(W: Tensor, act: str = "none") -> Weight:
    """The weight [I, O] packed for products on this processor; as it stands where that cannot be had or is wrong.

    For float32 and bfloat16 on a CPU, by the operators that `torch.compile` itself emits for frozen weights. They are
    not promised to stay, and oneDNN can be told to multiply coarsely, so products with the packed weight are first
    compared with plain ones. act: the activation that follows. Agreement: tests/model/test_linear.py.
    """
    if W.device.type != "cpu" or W.dtype not in _TOLERANCE:
        return W
    try:
        packed = Packed(torch.ops.mkldnn._reorder_linear_weight(W.t().contiguous(), _TYPICAL_ROWS), W.shape, W.dtype)
        return packed if all(_same(W, packed, rows, act) for rows in _PROBED_ROWS) else W
    except (AttributeError, RuntimeError, TypeError):
        return W


def _same(W: Tensor, packed: Packed, rows: int, act: str) -> bool:
    """Whether products of seeded random rows with a weight and with it packed agree."""
    generator = torch.Generator().manual_seed(rows)
    probe = torch.randn(rows, W.shape[0], generator=generator).to(W.dtype)
    zero = W.new_zeros(W.shape[1])
    plain, ours = linear(probe, W, zero, act), linear(probe, packed, zero, act)
    return bool((ours - plain).abs().max() <= _TOLERANCE[W.dtype] * plain.abs().max())


def linear(x: Tensor, W: Weight, b: Tensor, act: str = "none") -> Tensor:
    """act(x W + b), computed in the type of W with float32 accumulation or wider.

    x [N, I]; W [I, O]; b [O], in the type of W; act: a name in ACTIVATIONS, or `none`. Returns [N, O] in W's type.
    """
    x = x.to(W.dtype)
    if not isinstance(W, Packed):
        y = torch.addmm(b, x, W)
    else:
        # In bfloat16 the product is rounded before the activation, as it is where nothing is packed.
        fused, act = (act, "none") if act in _FUSED and W.dtype is torch.float32 else ("none", act)
        name, algorithm = _FUSED[fused]
        y = torch.ops.mkldnn._linear_pointwise(x, W.content, b, name, [], algorithm)
    return y if act == "none" else ACTIVATIONS[act](y)
