"""Write a model that is in memory as a local folder, so that the paper can be run on it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file as save_tensors
from torch import Tensor

from repro.errors import Exit, ReproError
from repro.model.folder import PROMPTS

_HEADS = {"q": ("n_heads", "Q"), "k": ("n_key_value_heads", "K"), "v": ("n_key_value_heads", "V")}
_ATTENTION = re.compile(r"(blocks\.\d+\.attn)\.([qkvo])\.(weight|bias)\Z")
_MLP = re.compile(r"(blocks\.\d+\.mlp)\.(in|out|gate)\.(weight|bias)\Z")
_KEPT = {
    "embed.weight": "embed.W_E",
    "pos_embed.weight": "pos_embed.W_pos",
    "unembed.bias": "unembed.b_U",
}
_CONFIG = (
    "d_model", "n_layers", "d_mlp", "d_head", "n_heads", "n_key_value_heads", "n_ctx", "d_vocab", "act_fn", "gated_mlp",
    "eps", "final_rms", "normalization_type", "positional_embedding_type", "rotary_dim", "rotary_base",
)  # fmt: skip


def export(model: Any, tokens: np.ndarray, folder: Path | str, tokenizer: Path | str | None = None) -> Path:
    """Write a model and its prompts in the local-folder format.

    model: a Hugging Face causal language model, or an unprocessed native TransformerLens bridge (before
    `enable_compatibility_mode`). tokens: int [prompts, positions], BOS first. folder: created. tokenizer: a
    tokenizer.json to copy. Returns the folder, which `--subject` takes. Raises ReproError (exit 2) for another kind of
    model, or where the folder exists. Agreement: tests/model/test_export.py, the same numbers either way.
    """
    folder = Path(folder)
    if folder.exists():
        raise ReproError(f"{folder}: already exists; give a directory that does not exist yet")
    writer = _writer(model)
    folder.mkdir(parents=True)
    writer(folder)
    save_arrays({"tokens": np.ascontiguousarray(tokens, dtype=np.int32)}, folder / PROMPTS)
    if tokenizer is not None:
        (folder / "tokenizer.json").write_bytes(Path(tokenizer).read_bytes())
    return folder


def _writer(model: Any) -> Callable[[Path], None]:
    if hasattr(model, "save_pretrained"):
        return lambda folder: save_dequantised(model, folder)
    config = getattr(model, "cfg", None)
    if getattr(config, "architecture", None) == "TransformerLensNative":
        if getattr(model, "compatibility_mode", False):
            raise ReproError("the model's weights are already processed; export it before enable_compatibility_mode()")
        return lambda folder: _write_native(config, model.state_dict(), folder)
    raise ReproError(
        f"{type(model).__name__} cannot be exported; a Hugging Face causal language model or a native TransformerLens "
        "bridge can",
        Exit.USAGE,
    )


def save_dequantised(model: Any, folder: Path) -> None:
    """Write a Hugging Face model; of one loaded from a GGUF file, the plain numbers that its weights are by now.

    The library marks such a model as quantised and refuses to save it; the marks are put back afterwards. Other ways of
    quantising keep weights packed, and are refused by the library.
    """
    quantised = getattr(model.config, "quantization_config", None)
    if getattr(quantised, "quant_method", None) != "gguf":
        model.save_pretrained(folder)
        return
    quantizer = model.hf_quantizer
    model.hf_quantizer = None
    del model.config.quantization_config
    try:
        model.save_pretrained(folder)
    finally:
        model.hf_quantizer, model.config.quantization_config = quantizer, quantised


def _write_native(config: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    values = {key: getattr(config, key, None) for key in _CONFIG}
    values = {key: value for key, value in values.items() if value is not None}
    if values.get("positional_embedding_type") == "rotary":
        values["rotary_adjacent_pairs"] = True
    (folder / "config.json").write_text(json.dumps(values, indent=1))
    weights = dict(_raw(key, tensor.detach().cpu(), config) for key, tensor in state.items())
    save_tensors({key: tensor.contiguous() for key, tensor in weights.items()}, folder / "model.safetensors")


def _raw(key: str, tensor: Tensor, config: Any) -> tuple[str, Tensor]:
    """Return a native parameter under the library's raw name and per-head shape."""
    if match := _ATTENTION.match(key):
        return _attention(match[1], match[2], match[3], tensor, config)
    if match := _MLP.match(key):
        where, part, kind = match.groups()
        return (f"{where}.W_{part}", tensor.T) if kind == "weight" else (f"{where}.b_{part}", tensor)
    if key == "unembed.weight":
        return "unembed.W_U", tensor.T
    if key in _KEPT:
        return _KEPT[key], tensor
    return key.removesuffix("eight").removesuffix("ias"), tensor


def _attention(where: str, part: str, kind: str, tensor: Tensor, config: Any) -> tuple[str, Tensor]:
    if part == "o":
        if kind == "bias":
            return f"{where}.b_O", tensor
        return f"{where}.W_O", tensor.T.reshape(config.n_heads, config.d_head, config.d_model)
    count, letter = _HEADS[part]
    heads = getattr(config, count, None) or config.n_heads
    if kind == "bias":
        return f"{where}.b_{letter}", tensor.reshape(heads, config.d_head)
    split = tensor.reshape(heads, config.d_head, config.d_model)
    return f"{where}.W_{letter}", torch.transpose(split, 1, 2)
