"""The same model in another type, in another place, or in another order of memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from repro.forward import Block, Model, Rotary
from repro.linear import Packed, Weight, pack

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bf16": torch.float32}
"""Type of the stream and of all that is measured, by precision."""


def cast(model: Model, dtype: torch.dtype, device: str) -> Model:
    """The same model with its tensors in another type or place."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().to(device=device, dtype=dtype)
        if isinstance(value, Rotary | Block):
            return type(value)(**{key: move(item) for key, item in vars(value).items()})
        return tuple(move(item) for item in value) if isinstance(value, tuple) else value

    return Model(**{key: move(item) for key, item in vars(model).items()})


def rounded(model: Model) -> Model:
    """A float32 model with every weight rounded to bf16, those of the forward's products held in that type.

    W_V and W_O, which the forward and the measures both read, keep the rounded values in float32, as do embedding,
    positions and unembedding. Agreement: tests/test_linear.py.
    """
    device = str(model.W_E.device)
    brain = cast(model, torch.bfloat16, device)
    back = cast(brain, torch.float32, device)
    both = zip(brain.blocks, back.blocks, strict=True)
    blocks = tuple(replace(coarse, W_V=same.W_V, W_O=same.W_O) for coarse, same in both)
    return replace(back, rotary=model.rotary, blocks=blocks)


def packed(model: Model) -> Model:
    """The same model with the weights of its products in this processor's order; see `repro.linear.pack`."""

    def one(W: Weight) -> Weight:
        return W if isinstance(W, Packed) else pack(W)

    def each(block: Block) -> Block:
        gate = None if block.W_gate is None else one(block.W_gate)
        return replace(block, W_QKV=one(block.W_QKV), W_in=one(block.W_in), W_gate=gate, W_out=one(block.W_out))

    return replace(model, blocks=tuple(each(block) for block in model.blocks))
