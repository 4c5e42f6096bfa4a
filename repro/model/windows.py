"""How far back the layers of a Hugging Face model read."""

from __future__ import annotations

from typing import Any


def windows(config: Any) -> dict[int, int]:
    """Return by layer the positions back to which its heads read, their own included, where that is not everything.

    config: transformers' own configuration. Agreement: tests/model/test_architectures.py, tests/sweep.
    """
    local = getattr(config, "attention_layers", None)
    if local is not None:  # GPT-Neo
        return {layer: int(config.window_size) for layer, kind in enumerate(local) if kind == "local"}
    window = getattr(config, "sliding_window", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return {}
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return {layer: int(window) for layer, kind in enumerate(kinds) if kind == "sliding_attention"}
