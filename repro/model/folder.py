"""A model's folder: its configuration, prompts and fingerprints, read without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repro.errors import AbsentError, ReproError, plain, unavailable, words_of
from repro.model.config_keys import is_hugging_face, refuse_config
from repro.model.contents import refuse_other_content
from repro.model.native_keys import SIZES
from repro.model.prompt_file import read_tokens
from repro.model.sizes import refuse_other_sizes
from repro.model.weights import is_file, refuse_other_copy, weight_files

PROMPTS = "prompts.safetensors"
_LARGEST = 1 << 26
"""Bytes of a configuration."""
_MOST_HEADS = 1 << 16
_LONGEST_CONTEXT = 1 << 22
"""Tokens."""
_LARGEST_MASKS = 1 << 30
"""Bytes of the masks, one of every pair of positions a layer, that the library's own model holds."""

_OPTIONAL = ("n_kv_heads", "d_head", "d_mlp")

# What else of a configuration is read here or by the libraries, which do not say what is wrong with it.
_KINDS: dict[str, Any] = {
    "act_fn": str,
    "normalization": str,
    "normalization_type": str,
    "positional_embedding_type": str,
    "eps": int | float,
    "layer_norm_eps": int | float,
    "rotary_base": int | float,
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, in TransformerLens' words."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    n_ctx: int
    d_vocab: int

    def flop_per_token(self, context: int) -> float:
        """Return floating-point operations of one forward pass per token, unembedding excluded.

        2 (2 D H K + 2 D G K + 2 D M) per layer for the matrices and 2 H K T for causal attention at context length T.
        """
        matrices = 2 * self.d_model * self.d_head * (self.n_heads + self.n_kv_heads) + 2 * self.d_model * self.d_mlp
        attention = self.n_heads * self.d_head * context
        return float(2 * self.n_layers * (matrices + attention))

    @property
    def least_weights(self) -> int:
        """Return how many numbers every supported model's matrices have: V D + L (2 D K (H + G) + 2 D M)."""
        heads = 2 * self.d_model * self.d_head * (self.n_heads + self.n_kv_heads)
        return self.d_vocab * self.d_model + self.n_layers * (heads + 2 * self.d_model * self.d_mlp)


@dataclass(frozen=True)
class Folder:
    """A local model folder: everything `plan` needs to know about a model."""

    path: Path
    config: Mapping[str, Any]
    shape: Shape
    weights: tuple[Path, ...]
    prompts: Path
    tokenizer: Path | None

    @property
    def is_hugging_face(self) -> bool:
        """Whether the folder is in Hugging Face's format rather than in TransformerLens'."""
        return is_hugging_face(self.config)


def read_folder(path: Path, prompts: Path | None = None) -> Folder:
    """Return the folder of a local model: `config.json`, weights, prompts, tokenizer.

    path: the folder. prompts: a file of prompts elsewhere. Raises ReproError: exit 4 for what is missing or
    unreadable, exit 2 where there are no prompts. Agreement: tests/model/test_folder.py.
    """
    if not path.is_dir():
        raise AbsentError(f"{path}: model directory not found")
    config = _read_config(path / "config.json")
    refuse_config(path / "config.json", config)
    shape = _shape(path / "config.json", config)
    weights = weight_files(path, is_hugging_face(config))
    found = prompts if prompts is not None else path / PROMPTS
    if not is_file(found):
        raise ReproError(
            f"{found}: no prompts; a safetensors file with `tokens`, int32 [prompts, positions], BOS first, is needed"
        )
    tokenizer = path / "tokenizer.json"
    folder = Folder(
        path=path,
        config=config,
        shape=shape,
        weights=weights,
        prompts=found,
        tokenizer=tokenizer if is_file(tokenizer) else None,
    )
    _refuse_claims(folder)
    if not folder.is_hugging_face:
        refuse_other_sizes(path, vars(shape), weights)
    return folder


def read_shape(path: Path) -> Shape:
    """Return the sizes of the model in a folder, from its `config.json` alone. Raises ReproError like `read_folder`."""
    return _shape(path / "config.json", _read_config(path / "config.json"))


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _LARGEST or not path.is_file():
            raise ValueError(f"a file of at most {_LARGEST >> 20} MiB is expected")
        refuse_other_content(path)
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else words_of(error)
        raise unavailable(f"{path}: unreadable model configuration ({reason})") from None
    if not isinstance(config, dict):
        raise unavailable(f"{path}: a JSON object is expected, found {type(config).__name__}")
    return config


def _shape(path: Path, config: Mapping[str, Any]) -> Shape:
    def unfit(what: str) -> ReproError:
        return unavailable(f"{path}: {what}")

    def find(names: tuple[str, ...]) -> int | None:
        given = {name: value for name in names if (value := config.get(name)) is not None}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
                raise unfit(f"{name} is {plain(repr(value), 80)}; a positive whole number is expected")
        if len(set(given.values())) > 1:
            raise unfit(f"{' and '.join(given)} name the same size and must not differ")
        return next(iter(given.values()), None)

    found = {ours: find(names) for ours, names in SIZES.items()}
    sizes = {ours: value for ours, value in found.items() if value is not None}
    for ours, names in SIZES.items():
        if ours not in sizes and ours not in _OPTIONAL:
            raise unfit(f"{ours} is missing (also known as {', '.join(names[1:])})")
    for name, kind in _KINDS.items():
        value = config.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            expected = "a text" if kind is str else "a number"
            raise unfit(f"{name} is {plain(repr(value), 80)}; {expected} is expected")
    if config.get("attn_only"):
        raise unfit("attn_only models are not supported: every layer needs an MLP")
    if config.get("model_type") == "gpt_bigcode" and config.get("multi_query", True):
        given = sizes.setdefault("n_kv_heads", 1)
        if given != 1:
            raise unfit(f"num_key_value_heads is {given}, and multi_query = true shares one")
    n_heads, d_model = sizes["n_heads"], sizes["d_model"]
    defaults = {"n_kv_heads": n_heads, "d_head": max(d_model // n_heads, 1), "d_mlp": 4 * d_model}
    shape = Shape(**(defaults | sizes))
    if shape.n_heads % shape.n_kv_heads:
        raise unfit(f"{n_heads} heads cannot be shared out evenly among {shape.n_kv_heads} key/value heads")
    if shape.n_layers * n_heads > _MOST_HEADS or shape.n_ctx > _LONGEST_CONTEXT:
        raise unfit(
            f"{shape.n_layers} layers of {n_heads} heads and a context of {shape.n_ctx} tokens; at most {_MOST_HEADS} "
            f"heads in all and {_LONGEST_CONTEXT} tokens are supported"
        )
    rotary = config.get("rotary_dim")
    if isinstance(rotary, int) and rotary > shape.d_head:
        raise unfit(f"rotary_dim is {rotary}, and a head has {shape.d_head} dimensions")
    if shape.n_layers < 2:
        raise ReproError(
            f"{path}: the model has one layer; erasure needs a writer and a later layer that could erase it"
        )
    return shape


def _refuse_claims(folder: Folder) -> None:
    """Refuse, before anything is allocated, sizes that the files of weights, or the library, could not hold."""
    shape, native = folder.shape, not folder.is_hugging_face
    learned = (
        folder.config.get("positional_embedding_type") != "rotary"
        if native
        else folder.config.get("model_type") == "gpt2"
    )
    least = shape.least_weights + (shape.n_ctx * shape.d_model if learned else 0)
    held = sum(file.stat().st_size for file in folder.weights)
    what = ""
    if least > held:
        what = f"config.json describes at least {least} weights, but the weight files have only {held} bytes"
    elif native and shape.n_layers * shape.n_ctx**2 > _LARGEST_MASKS:
        what = f"a context of {shape.n_ctx} tokens is too long for the library's own model, which masks every pair"
    if what:
        raise unavailable(f"{folder.path}: {what}")


def read_prompts(folder: Folder) -> np.ndarray:
    """Return the prompts' token ids: int32 [prompt, position], BOS first, checked against the model.

    Raises ReproError like `read_tokens`. Agreement: tests/model/test_folder.py.
    """
    return read_tokens(folder.prompts, folder.shape.n_ctx, folder.shape.d_vocab, folder.config)


def sha256(path: Path) -> str:
    """Return the SHA-256 checksum of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_fingerprint(folder: Folder) -> str:
    """Return one hash for the model: of its configuration and of each weight file.

    Raises ReproError (exit 4) for what is unreadable, and for a second copy of the weights that differs.
    """
    refuse_other_copy(folder.weights)
    try:
        parts = [sha256(folder.path / "config.json"), *(sha256(file) for file in folder.weights)]
    except OSError as error:
        raise unavailable(f"{error.filename}: unreadable ({error.strerror})") from None
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def tokens_fingerprint(tokens: np.ndarray) -> str:
    """Return one hash of the token ids that an experiment reads."""
    return hashlib.sha256(np.ascontiguousarray(tokens, dtype="<i4").tobytes()).hexdigest()
