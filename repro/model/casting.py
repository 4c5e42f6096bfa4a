"""The same model in another type, in another place, or in another order of memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from repro.model.forward import Block, Model, Rotary, trace
from repro.model.linear import Packed, Weight, pack

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bf16": torch.float32}
"""Type of the stream and of all that is measured, by precision."""
PACKED_AT_MOST = 2**30
"""Bytes of weights that are packed: both orders are in memory until they have been compared."""
# Largest deviation of a packed pass from the plain one, relative to its largest value, by the type of products.
_SAME = {torch.float32: 5e-5, torch.bfloat16: 5e-2}


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
    positions and unembedding. Agreement: tests/model/test_linear.py.
    """
    device = str(model.W_E.device)
    # By default CUDA may also add up in bf16; nothing else here multiplies in it.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    brain = cast(model, torch.bfloat16, device)
    back = cast(brain, torch.float32, device)
    both = zip(brain.blocks, back.blocks, strict=True)
    blocks = tuple(replace(coarse, W_V=same.W_V, W_O=same.W_O) for coarse, same in both)
    return replace(back, rotary=model.rotary, blocks=blocks)


def packed(model: Model) -> Model:
    """The same model with the weights of its products in this processor's order; see `repro.model.linear.pack`.

    The model as it stands where it is large, or where a pass over a few tokens does not give the same last site.
    Agreement: tests/model/test_linear.py.
    """
    if sum(W.nbytes for block in model.blocks for W in vars(block).values() if isinstance(W, Tensor)) > PACKED_AT_MOST:
        return model

    def one(W: Weight, act: str = "none") -> Weight:
        return W if isinstance(W, Packed) else pack(W, act)

    def each(block: Block) -> Block:
        gated = block.W_gate is not None
        return replace(
            block,
            W_QKV=one(block.W_QKV),
            W_in=one(block.W_in, "none" if gated else model.act),
            W_gate=None if block.W_gate is None else one(block.W_gate, model.act),
            W_out=one(block.W_out),
        )

    found = replace(model, blocks=tuple(each(block) for block in model.blocks))
    if products(found) == "plain":
        return model
    tokens = torch.arange(min(model.shape.n_ctx, 64), device=model.W_E.device)[None] % model.shape.d_vocab
    with torch.no_grad():
        plain, ours = (trace(given, tokens).final for given in (model, found))
    allowed = _SAME[model.blocks[0].W_QKV.dtype] * plain.abs().max()
    return found if (ours - plain).abs().max() <= allowed else model


def products(model: Model) -> str:
    """How the forward multiplies, for the record: `plain`, `packed`, or `packed 9/12` where some weights are not.

    Plain and packed products differ by rounding, so what was begun with one must not go on with the other.
    """
    weights = [W for b in model.blocks for W in (b.W_QKV, b.W_in, b.W_gate, b.W_out) if W is not None]
    n = sum(isinstance(W, Packed) for W in weights)
    return "plain" if n == 0 else "packed" if n == len(weights) else f"packed {n}/{len(weights)}"
