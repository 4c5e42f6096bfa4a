"""Matrix products of the forward pass, and the activations that may follow them, with their slopes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
    "swish": F.silu,
}


_NEAR_ZERO = 1e-4


def linear(x: Tensor, W: Tensor, b: Tensor, act: str = "none") -> Tensor:
    """Return act(x W + b), computed in the type of W with float32 accumulation or wider.

    x [N, I]; W [I, O]; b [O], in the type of W; act: a name in ACTIVATIONS, or `none`. Returns [N, O] in W's type.
    Agreement: tests/model/test_linear.py.
    """
    y = torch.addmm(b, x.to(W.dtype), W)
    return y if act == "none" else ACTIVATIONS[act](y)


def derivative(act: str, u: Tensor) -> Tensor:
    """Return act'(u) of any shape. Agreement: tests/model/test_net_effect.py."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        x = u.clone().requires_grad_()
        return torch.autograd.grad(ACTIVATIONS[act](x).sum(), x)[0]


def secant(act: str, u: Tensor) -> Tensor:
    """Return act(u) / u of any shape: the slope of the line from 0, which gives act(u) when multiplied by u.

    At 0 it has a limit, and 0 / 0 has none: |u| below 1e-4 is taken as 1e-4.
    """
    u = torch.where(u.abs() < _NEAR_ZERO, _NEAR_ZERO, u)
    return ACTIVATIONS[act](u) / u
