"""Slopes of activations: the derivative for a small change, the secant from 0 where parts must add up."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from repro.model.linear import ACTIVATIONS

_NEAR_ZERO = 1e-4


def _gelu(x: Tensor) -> Tensor:
    below = (1 + torch.erf(x / math.sqrt(2))) / 2
    return below + x * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh(x: Tensor) -> Tensor:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))
    t = torch.tanh(inner)
    return (1 + t) / 2 + x / 2 * (1 - t.square()) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x.square())


def _silu(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


DERIVATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda x: (x > 0).to(x.dtype),
    "silu": _silu,
    "swish": _silu,
}
"""act'(u), by the names in `repro.model.linear.ACTIVATIONS`. Agreement: tests/model/test_net_effect.py."""


def secant(act: str, u: Tensor) -> Tensor:
    """Return act(u) / u of any shape: the slope of the line from 0, which gives act(u) when multiplied by u.

    At 0 it has a limit, and 0 / 0 has none: |u| below 1e-4 is taken as 1e-4, as `repro.model.paths.gates` does.
    """
    u = torch.where(u.abs() < _NEAR_ZERO, _NEAR_ZERO, u)
    return ACTIVATIONS[act](u) / u
