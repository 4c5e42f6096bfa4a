"""What a model may be or hold that is not computed here, each refused by its name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from repro.errors import ReproError, listing, plain, unavailable, words_of
from repro.model.config_keys import READ
from repro.model.folder import Folder
from repro.model.linear import ACTIVATIONS
from repro.model.native_keys import READ as NATIVE_READ
from repro.model.windows import windows

_ACTIVATION_KEYS = ("activation_function", "hidden_activation", "hidden_act", "activation")
_CAP_KEYS = ("attn_logit_softcapping", "final_logit_softcapping")


def refuse_settings(folder: Folder, config: Any, whole: bool) -> None:
    """Refuse settings of a Hugging Face configuration that are not computed here, by their keys.

    whole: whether prompts may be longer than those that are compared, which then must not reach an attention window.
    Raises ReproError (exit 4). Agreement: tests/model/test_selfcheck.py.
    """
    caps = {key: cap for key in _CAP_KEYS if (cap := getattr(config, key, None)) is not None}
    named = [f"{key} = {cap!r}" for key, cap in caps.items() if cap <= 0]
    if config.model_type == "gemma3_text" and (cap := caps.get("attn_logit_softcapping")) is not None:
        named.append(f"attn_logit_softcapping = {cap!r} (transformers' own model ignores it)")
    key = next((key for key in _ACTIVATION_KEYS if getattr(config, key, None) is not None), "")
    if key and getattr(config, key) not in ACTIVATIONS:
        named.append(f"{key} = {getattr(config, key)!r} ({listing(list(ACTIVATIONS))} are)")
    if named:
        raise unavailable(f"{folder.path}: not supported: {listing(named)} in config.json")
    window = min(windows(config).values(), default=None)
    if whole and window is not None and window < folder.shape.n_ctx:
        key = "window_size" if config.model_type == "gpt_neo" else "sliding_window"
        raise unavailable(
            f"{folder.path}: not supported: {key} = {window} in config.json, an attention window, with prompts of any "
            f"length: what it does is compared with the original on prompts that reach it; load the model with the "
            "prompts that it will be given"
        )


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


def refuse_misfits(folder: Folder, kinds: Mapping[str, Collection[str]]) -> None:
    """Refuse weights that do not fit config.json: the libraries fill gaps with random numbers.

    kinds: names of the weights that are `missing`, `unexpected` or `mismatched`.
    """
    said = [f"{kind} {listing(sorted(names), 4)}" for kind, names in kinds.items() if names]
    if said:
        raise unavailable(f"{folder.path}: the weights do not fit config.json: {'; '.join(said)}")


def refuse_not_finite(folder: Folder, state: Mapping[str, Any]) -> None:
    """Refuse weights that are NaN or infinite, naming the tensor."""
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise unavailable(f"{folder.path}: {name} is not a tensor")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise unavailable(f"{folder.path}: weights of {name} are not finite (NaN or infinite)")
