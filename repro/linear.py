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

# What oneDNN computes in the same breath as the product: its name of the activation, and of the algorithm.
_FUSED = {
    "none": ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "swish": ("swish", ""),
}
_TYPICAL_ROWS = 1024
"""Rows for which oneDNN chooses its order of memory; any number can be multiplied."""
# Largest deviation allowed from the plain product, relative to its largest value: both round, in another order.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Packed:
    """A weight [I, O] in oneDNN's own order of memory, which nothing but `linear` can read."""

    content: Tensor
    shape: torch.Size
    dtype: torch.dtype


Weight = Tensor | Packed


def pack(W: Tensor) -> Weight:
    """The weight [I, O] packed for products on this processor; as it stands where that cannot be had or is wrong.

    For float32 and bfloat16 on a CPU, by the operators that `torch.compile` itself emits for frozen weights. They are
    not promised to stay, so a product with the packed weight is first compared with the plain one.
    Agreement: tests/test_linear.py.
    """
    if W.device.type != "cpu" or W.dtype not in _TOLERANCE:
        return W
    try:
        content = torch.ops.mkldnn._reorder_linear_weight(W.t().contiguous(), _TYPICAL_ROWS)
        packed = Packed(content, W.shape, W.dtype)
        probe = torch.linspace(-1, 1, 2 * W.shape[0]).view(2, -1).to(W.dtype)
        zero = W.new_zeros(W.shape[1])
        plain, ours = linear(probe, W, zero), linear(probe, packed, zero)
    except (AttributeError, RuntimeError, TypeError):
        return W
    off = (ours - plain).abs().max()
    return packed if off <= _TOLERANCE[W.dtype] * plain.abs().max() else W


def linear(x: Tensor, W: Weight, b: Tensor, act: str = "none") -> Tensor:
    """act(x W + b), computed in the type of W with float32 accumulation or wider.

    x [N, I]; W [I, O]; b [O], in the type of W; act: a name in ACTIVATIONS, or `none`. Returns [N, O] in W's type.
    """
    x = x.to(W.dtype)
    if not isinstance(W, Packed):
        y = torch.addmm(b, x, W)
    else:
        # In bfloat16 the product is rounded before the activation, as it is where nothing is packed.
        fused, act = (act, "none") if W.dtype is torch.float32 else ("none", act)
        name, algorithm = _FUSED[fused]
        y = torch.ops.mkldnn._linear_pointwise(x, W.content, b, name, [], algorithm)
    return y if act == "none" else ACTIVATIONS[act](y)
