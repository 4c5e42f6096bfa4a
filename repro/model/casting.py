"""The same model in another type or place, or rounded to bf16."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from repro.model.decoder import Block, Model, Rotary

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bf16": torch.float32}
"""Type of the stream and of all that is measured, by precision."""
Part = TypeVar("Part", bound=Model | Block | Rotary)


def cast(whole: Part, dtype: torch.dtype, device: str = "cpu") -> Part:
    """Return the same model, layer or tables with its tensors in another type or place, contiguous."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().to(device=device, dtype=dtype).contiguous()
        if isinstance(value, Rotary | Block):
            return cast(value, dtype, device)
        return tuple(map(move, value)) if isinstance(value, tuple) else value

    return replace(whole, **{name: move(value) for name, value in vars(whole).items()})


def rounded(model: Model) -> Model:
    """Return a float32 model with every weight rounded to bf16, those of the forward's products held in that type.

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
    return replace(back, rotary=model.rotary, rotary_local=model.rotary_local, blocks=blocks)
