"""Tables of rotary position embeddings, read from the original model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from repro.model.decoder import Rotary
from repro.model.folder import Folder

_ADJACENT = frozenset({"cohere", "cohere2", "ernie4_5", "glm", "glm4", "helium"})
"""Architectures that rotate dimensions (2i, 2i+1) together, among those that hold frequencies."""


def rotary_of_module(folder: Folder, module: nn.Module) -> tuple[Rotary | None, Rotary | None]:
    """Return the tables of a Hugging Face model, and those of its layers with a window where they have their own.

    Nothing if it has no rotary positions. Kinds whose frequencies depend on the prompt are refused with config.json.
    Agreement: tests/model/test_architectures.py.
    """
    adjacent = getattr(module.config, "model_type", "") in _ADJACENT
    for part in module.modules():
        if isinstance(getattr(part, "inv_freq", None), torch.Tensor):
            return _of_frequencies(folder, part, "", adjacent), None
        if isinstance(kinds := getattr(part, "rope_type", None), dict):
            full, local = (
                _of_frequencies(folder, part, f"{kind}_", adjacent) if kind in kinds else None
                for kind in ("full_attention", "sliding_attention")
            )
            return full or local, local
        table = getattr(part, "embed_positions", None)
        if isinstance(table, torch.Tensor):  # GPT-J: sines, then cosines
            sin, cos = table[: folder.shape.n_ctx].chunk(2, dim=-1)
            return Rotary(cos.contiguous(), sin.contiguous(), adjacent=True), None
    return None, None


def _of_frequencies(folder: Folder, part: Any, prefix: str, adjacent: bool) -> Rotary:
    """Return the tables of a module's frequencies; prefix: of its attributes, where kinds of layers have their own."""
    frequencies = getattr(part, f"{prefix}inv_freq").float()
    angles = torch.arange(folder.shape.n_ctx, dtype=torch.float32)[:, None] * frequencies[None, :]
    strength = float(getattr(part, f"{prefix}attention_scaling", 1.0))
    return Rotary(angles.cos() * strength, angles.sin() * strength, adjacent)


def unrotated_layers(config: Any) -> frozenset[int]:
    """Return the layers of a Hugging Face model with rotary positions that do without them."""
    kinds, model = getattr(config, "layer_types", None) or (), getattr(config, "model_type", "")
    if model == "cohere2" or (model == "exaone4" and config.sliding_window is not None):
        return frozenset(layer for layer, kind in enumerate(kinds) if kind == "full_attention")
    return frozenset(
        layer for layer, rotated in enumerate(getattr(config, "no_rope_layers", None) or ()) if not rotated
    )


def rotary_of_native(bridge: Any) -> Rotary | None:
    """Return the tables of TransformerLens' native model, or nothing if it has no rotary positions."""
    tables = getattr(bridge.original_model, "rotary", None)
    return None if tables is None else Rotary(tables.cos_cached[:, 0::2], tables.sin_cached[:, 0::2], adjacent=True)
