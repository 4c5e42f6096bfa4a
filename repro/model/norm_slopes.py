"""Slopes through norms, from what a norm writes down to what it reads: its scale held, or moving in the gradient.

With y = x / scale(x) and a slope S in y, the slope in x is S / scale where the scale is held, and
(S - y <S, y> / n) / scale over the n numbers of y where it moves. Agreement: tests/model/test_net_effect.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repro.model.decoder import Model
from repro.model.paths import centred


def through_norm(model: Model, form: str, slope: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Return slopes in the stream [T, P, D] of slopes in what a layer reads of it: y [P, D], scale [P]."""
    if form == "gradient" and model.pre_norm:
        slope = slope - y * (slope * y).mean(-1, keepdim=True)
    return centred(model, slope) / scale[:, None]


def through_post(form: str, slope: Tensor, out: Tensor, weights: Tensor | None, gain: Tensor) -> Tensor:
    """Return slopes in what a norm after attention or MLP reads, over its weights g [D], which W_O and W_out contain.

    slope [T, P, D], in what it writes, out = g y [P, D]; gain [P]: one over its scale. Without such a norm they are the
    same: weights is None.
    """
    if weights is None:
        return slope
    if form == "gradient":
        slope = slope - out / weights.to(out.dtype).square() * (slope * out).mean(-1, keepdim=True)
    return slope * gain[:, None]


def through_weighted(model: Model, form: str, slope: Tensor, raw: Tensor, weights: Tensor) -> Tensor:
    """Return slopes in queries or keys before their own norm [T, P, heads, K]; raw [P, heads, K]: what that reads.

    weights: [K] of a norm of every one, [heads, K] of one over all of them.
    """
    over = tuple(range(-weights.ndim, 0))
    scale = torch.sqrt(raw.square().mean(over, keepdim=True) + model.eps)
    slope = slope * weights
    if form == "gradient":
        unit = raw / scale
        slope = slope - unit * (slope * unit).mean(over, keepdim=True)
    return slope / scale
