"""Write a model that is in memory as a local folder, so that the paper can be run on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file as save_tensors
from torch import Tensor

from repro.errors import ReproError
from repro.model.folder import PROMPTS
from repro.model.native import stored_name

_TRANSPOSED = ("q", "k", "v", "o", "in", "gate", "out", "unembed")
_CONFIG = (
    "d_model", "n_layers", "d_mlp", "d_head", "n_heads", "n_key_value_heads", "n_ctx", "d_vocab", "act_fn", "gated_mlp",
    "eps", "final_rms", "normalization_type", "positional_embedding_type", "rotary_dim", "rotary_base",
)  # fmt: skip


def export(model: Any, tokens: np.ndarray, folder: Path | str) -> Path:
    """Write a model and its prompts in the local-folder format.

    model: a Hugging Face causal language model, or an unprocessed native TransformerLens bridge (before
    `enable_compatibility_mode`). tokens: int [prompts, positions], BOS first. folder: created; a tokenizer.json may be
    put beside. Returns the folder, which `--subject` takes. Raises ReproError (exit 2) for another kind of model, or
    where the folder exists. Agreement: tests/model/test_export.py, the same numbers either way.
    """
    folder = Path(folder)
    if folder.exists():
        raise ReproError(f"{folder}: already exists; give a directory that does not exist yet")
    native = not hasattr(model, "save_pretrained")
    if native:
        _refuse_other(model)
    folder.mkdir(parents=True)
    _write_native(model, folder) if native else save_dequantised(model, folder)
    save_arrays({"tokens": np.ascontiguousarray(tokens, dtype=np.int32)}, folder / PROMPTS)
    return folder


def _refuse_other(model: Any) -> None:
    """Refuse a model that is not a native TransformerLens bridge, or that is processed already."""
    if getattr(getattr(model, "cfg", None), "architecture", None) != "TransformerLensNative":
        raise ReproError(
            f"{type(model).__name__} cannot be exported; a Hugging Face causal language model or a native "
            "TransformerLens bridge can"
        )
    if getattr(model, "compatibility_mode", False):
        raise ReproError("the model's weights are already processed; export it before enable_compatibility_mode()")


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


def _write_native(model: Any, folder: Path) -> None:
    config = model.cfg
    values = {key: getattr(config, key, None) for key in _CONFIG}
    values = {key: value for key, value in values.items() if value is not None}
    if values.get("positional_embedding_type") == "rotary":
        values["rotary_adjacent_pairs"] = True
    (folder / "config.json").write_text(json.dumps(values, indent=1))
    weights = dict(_raw(key, tensor.detach().cpu(), config) for key, tensor in model.state_dict().items())
    save_tensors({key: tensor.contiguous() for key, tensor in weights.items()}, folder / "model.safetensors")


def _raw(key: str, tensor: Tensor, config: Any) -> tuple[str, Tensor]:
    """Return a native parameter under the library's raw name, matrices [in, out] and heads apart as it has them."""
    part, kind = key.split(".")[-2:]
    if part in _TRANSPOSED and kind == "weight":
        tensor = tensor.T
    if part == "o" and kind == "weight":
        tensor = tensor.unflatten(0, (config.n_heads, config.d_head))
    if part in ("q", "k", "v"):
        shared = None if part == "q" else getattr(config, "n_key_value_heads", None)
        tensor = tensor.unflatten(-1, (shared or config.n_heads, config.d_head)).movedim(-2, 0)
    return stored_name(key), tensor
