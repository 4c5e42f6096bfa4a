"""What a model may be or hold that is not computed here, each refused by its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from repro.errors import Exit, ReproError, listing, plain, unavailable, words_of
from repro.model.config_keys import READ
from repro.model.folder import Folder
from repro.model.linear import ACTIVATIONS
from repro.model.native_keys import READ as NATIVE_READ
from repro.model.windows import window_key, windows

_ACTIVATION_KEYS = ("activation_function", "hidden_activation", "hidden_act", "activation")

# Keys of Hugging Face's configurations, and which of their values are not computed here.
_REFUSED: dict[str, Callable[[Any], bool]] = {
    "add_cross_attention": bool,
    "alibi": bool,
    "attn_logit_softcapping": lambda cap: cap is not None and cap <= 0,
    "clip_qkv": lambda value: value is not None,
    "do_layer_norm_before": lambda value: value is False,
    "final_logit_softcapping": lambda cap: cap is not None and cap <= 0,
    "is_encoder_decoder": bool,
    "num_experts": bool,
    "num_local_experts": bool,
    "n_routed_experts": bool,
    "qk_layernorm": bool,
    "use_bidirectional_attention": bool,
    "use_qk_norm": bool,
}


def refuse_settings(folder: Folder, config: Any, whole: bool) -> None:
    """Refuse settings of a Hugging Face configuration that are not computed here, by their keys.

    whole: whether prompts may be longer than those that are compared, which then must not reach an attention window.
    Raises ReproError (exit 4). Agreement: tests/model/test_selfcheck.py.
    """
    named = [f"{key} = {value!r}" for key, refused in _REFUSED.items() if refused(value := getattr(config, key, None))]
    if config.model_type == "gemma3_text" and config.attn_logit_softcapping is not None:
        named.append(f"attn_logit_softcapping = {config.attn_logit_softcapping!r} (transformers' own model ignores it)")
    projected = getattr(config, "word_embed_proj_dim", config.hidden_size)
    if projected != config.hidden_size:
        named.append(f"word_embed_proj_dim = {projected!r} (hidden_size = {config.hidden_size!r})")
    key = next((key for key in _ACTIVATION_KEYS if getattr(config, key, None) is not None), "")
    if key and getattr(config, key) not in ACTIVATIONS:
        named.append(f"{key} = {getattr(config, key)!r} ({listing(list(ACTIVATIONS))} are)")
    if named:
        raise ReproError(f"{folder.path}: not supported: {listing(named)} in config.json", Exit.UNAVAILABLE)
    window, key = min(windows(config).values(), default=None), window_key(config)
    if whole and window is not None and window < folder.shape.n_ctx:
        raise ReproError(
            f"{folder.path}: not supported: {key} = {window} in config.json, an attention window, with prompts of any "
            f"length: what it does is compared with the original on prompts that reach it; load the model with the "
            "prompts that it will be given",
            Exit.UNAVAILABLE,
        )


def refuse_layout(folder: Folder, mapping: Mapping[str, Any]) -> None:
    """Refuse layers that are not an attention and an MLP that each read the stream and add to it, through norms.

    The norms are before both, after both, or both. mapping: TransformerLens' parts of the architecture. Raises
    ReproError (exit 4).
    """
    layer = mapping["blocks"].submodules if "blocks" in mapping else {}
    attn, mlp = (getattr(layer.get(name), "submodules", {}) for name in ("attn", "mlp"))
    norm = "ln1" in layer or "ln1_post" in layer
    wanted = {"a norm before or after attention": norm, "attention heads": "o" in attn, "an MLP": "out" in mlp}
    lacking = [f"layers without {name}" for name, present in wanted.items() if not present]
    if ("ln1_post" in layer) != ("ln2_post" in layer) or ("ln2" in layer and "ln1" not in layer):
        lacking.append("norms of attention in other places than those of the MLP")
    if "ln_final" not in mapping:
        lacking.append("no final norm")
    if "embed_ln" in mapping:
        lacking.append("a norm of the embeddings")
    if lacking:
        raise ReproError(f"{folder.path}: not supported: {', '.join(lacking)}", Exit.UNAVAILABLE)


def refuse_parts(folder: Folder, bridge: Any) -> None:
    """Refuse by name what the parts of a model are and the forward pass here does not compute."""
    cfg = bridge.cfg
    norm = str(cfg.normalization_type or "").upper()
    first = bridge.blocks[0]
    q_norm = first.attn._modules.get("q_norm")
    unsupported = {
        "query/key norms of some other size than a head or all heads": q_norm is not None
        and tuple(q_norm.weight.shape) not in ((folder.shape.d_head,), (folder.shape.n_heads * folder.shape.d_head,)),
        "query/key norms after rotation": bool(getattr(cfg, "qk_norm_after_rope", False)),
        f"normalization_type = {cfg.normalization_type!r}": not norm.startswith(("LN", "RMS")),
        f"positional_embedding_type = {cfg.positional_embedding_type!r}": cfg.positional_embedding_type
        not in ("standard", "rotary"),
        f"act_fn = {cfg.act_fn!r}": cfg.act_fn not in ACTIVATIONS,
        "final_rms = true (a final norm of another kind)": norm.startswith("LN") and bool(cfg.final_rms),
    }
    named = [name for name, present in unsupported.items() if present]
    if named:
        raise ReproError(f"{folder.path}: not supported: {', '.join(named)}", Exit.UNAVAILABLE)


def unrunnable(folder: Folder, error: Exception, doing: str) -> ReproError:
    """Return what to say where transformers itself cannot load or run a model: its reason, or the settings in question.

    doing: `load` or `run`. A key of the wrong type is named; the words of errors that are symptoms are left out.
    Agreement: tests/model/test_config_keys.py.
    """
    said = words_of(error)
    if key := re.search(r"alidation error for field '(\w+)'", said):
        value = plain(repr(folder.config.get(key[1])), 80)
        return unavailable(
            f"{folder.path / 'config.json'}: {key[1]} is {value}, which transformers does not take there"
        )
    if "alidation error for validator" in said:
        return unavailable(f"{folder.path / 'config.json'}: {said.split('Error: ')[-1]}")
    if isinstance(error, OSError | ImportError | MemoryError) or "allocate" in said:
        return unavailable(f"{folder.path}: {_library(folder)} cannot {doing} this model ({said})")
    keys = sorted(key for key, value in folder.config.items() if key in READ | NATIVE_READ and type(value) is not int)
    held = listing(
        [plain(f"{key} = {folder.config[key]!r}", 80) for key in ("model_type", *keys) if key in folder.config], 12
    )
    return unavailable(
        f"{folder.path}: {_library(folder)} itself cannot {doing} this model; compare config.json with that of the "
        f"model's own page: {held}"
    )


def _library(folder: Folder) -> str:
    return "transformers" if folder.is_hugging_face else "TransformerLens"


def refuse_incomplete(folder: Folder, report: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that does not fit its configuration: the library fills gaps with random numbers."""
    for kind in ("missing", "unexpected", "mismatched"):
        names = sorted(str(key if isinstance(key, str) else key[0]) for key in report[f"{kind}_keys"])
        if names:
            raise ReproError(
                f"{folder.path}: the weights do not fit config.json: {kind} {listing(names, 4)}", Exit.UNAVAILABLE
            )


def refuse_not_finite(folder: Folder, state: Mapping[str, Any]) -> None:
    """Refuse weights that are NaN or infinite, naming the tensor."""
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ReproError(f"{folder.path}: {name} is not a tensor", Exit.UNAVAILABLE)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ReproError(f"{folder.path}: weights of {name} are not finite (NaN or infinite)", Exit.UNAVAILABLE)
