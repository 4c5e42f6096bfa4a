"""A model's folder: its configuration, prompts and fingerprints, read without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from repro.errors import AbsentError, Exit, ReproError

PROMPTS = "prompts.safetensors"

# Our name -> the names it goes by in TransformerLens' and in Hugging Face's configurations.
_ALIASES: dict[str, tuple[str, ...]] = {
    "n_layers": ("n_layers", "num_hidden_layers", "n_layer"),
    "n_heads": ("n_heads", "num_attention_heads", "n_head"),
    "d_model": ("d_model", "hidden_size", "n_embd"),
    "n_ctx": ("n_ctx", "max_position_embeddings", "n_positions"),
    "d_vocab": ("d_vocab", "vocab_size"),
}
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "n_kv_heads": ("n_key_value_heads", "num_key_value_heads"),
    "d_head": ("d_head", "head_dim"),
    "d_mlp": ("d_mlp", "intermediate_size", "n_inner"),
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
        """Floating-point operations of one forward pass per token, unembedding excluded.

        2 (2 D H K + 2 D G K + 2 D M) per layer for the matrices and 2 H K T for causal attention at context length T.
        """
        matrices = 2 * self.d_model * self.d_head * (self.n_heads + self.n_kv_heads) + 2 * self.d_model * self.d_mlp
        attention = self.n_heads * self.d_head * context
        return float(2 * self.n_layers * (matrices + attention))


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
        return "architectures" in self.config or "model_type" in self.config


def read_folder(path: Path, prompts: Path | None = None) -> Folder:
    """The folder of a local model: `config.json`, weights, prompts, tokenizer.

    path: the folder. prompts: a file of prompts elsewhere. Raises ReproError: exit 4 for what is missing or
    unreadable, exit 2 where there are no prompts. Agreement: tests/test_folder.py.
    """
    if not path.is_dir():
        raise AbsentError(f"{path}: no such model folder")
    config = _read_config(path / "config.json")
    weights = _weights(path)
    found = prompts if prompts is not None else path / PROMPTS
    if not found.is_file():
        raise ReproError(
            f"{found}: no prompts; a safetensors file with `tokens`, int32 [prompts, positions], BOS first, is needed"
        )
    tokenizer = path / "tokenizer.json"
    return Folder(
        path=path,
        config=config,
        shape=_shape(path / "config.json", config),
        weights=weights,
        prompts=found,
        tokenizer=tokenizer if tokenizer.is_file() else None,
    )


def read_shape(path: Path) -> Shape:
    """The sizes of the model in a folder, from its `config.json` alone. Raises ReproError like `read_folder`."""
    return _shape(path / "config.json", _read_config(path / "config.json"))


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ReproError(f"{path}: unreadable model configuration ({error})", Exit.UNAVAILABLE) from None
    if not isinstance(config, dict):
        raise ReproError(f"{path}: a JSON object is expected, found {type(config).__name__}", Exit.UNAVAILABLE)
    return config


def _shape(path: Path, config: Mapping[str, Any]) -> Shape:
    def find(names: tuple[str, ...]) -> int | None:
        for name in names:
            value = config.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
                raise ReproError(f"{path}: {name} is {value!r}; a positive whole number is expected", Exit.UNAVAILABLE)
            return value
        return None

    sizes: dict[str, int] = {}
    for ours, names in _ALIASES.items():
        value = find(names)
        if value is None:
            raise ReproError(f"{path}: {ours} is missing (also known as {', '.join(names[1:])})", Exit.UNAVAILABLE)
        sizes[ours] = value
    if config.get("attn_only"):
        raise ReproError(f"{path}: attn_only models are not supported: every layer needs an MLP", Exit.UNAVAILABLE)
    optional = {ours: find(names) for ours, names in _OPTIONAL.items()}
    n_heads = sizes["n_heads"]
    shape = Shape(
        **sizes,
        n_kv_heads=optional["n_kv_heads"] or n_heads,
        d_head=optional["d_head"] or max(sizes["d_model"] // n_heads, 1),
        d_mlp=optional["d_mlp"] or 4 * sizes["d_model"],
    )
    if shape.n_heads % shape.n_kv_heads:
        raise ReproError(f"{path}: {n_heads} heads do not share {shape.n_kv_heads} key/value heads", Exit.UNAVAILABLE)
    if shape.n_layers < 2:
        raise ReproError(
            f"{path}: the model has one layer; erasure needs a writer and a later layer that could erase it"
        )
    return shape


def _weights(path: Path) -> tuple[Path, ...]:
    """The weight files, in name order: safetensors before a `*final.pth`."""
    safe = sorted(file for file in path.glob("model*.safetensors") if file.is_file())
    if safe:
        return tuple(safe)
    pth = sorted(path.glob("*final.pth"))
    if len(pth) == 1:
        return tuple(pth)
    what = "no weights" if not pth else f"{len(pth)} files *final.pth"
    raise ReproError(f"{path}: {what}; one model.safetensors or one *final.pth is expected", Exit.UNAVAILABLE)


def read_prompts(folder: Folder) -> np.ndarray:
    """The prompts' token ids: int32 [prompt, position], BOS first, checked against the model.

    Raises ReproError: exit 4 for an unreadable file or a token id outside the vocabulary (naming row and column),
    exit 2 for prompts longer than the model's context. Agreement: tests/test_folder.py.
    """
    path = folder.prompts
    try:
        with safe_open(str(path), framework="numpy") as file:
            if "tokens" not in file.keys():  # noqa: SIM118 - not a mapping
                raise ReproError(f"{path}: holds no tensor `tokens`", Exit.UNAVAILABLE)
            tokens = file.get_tensor("tokens")
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise ReproError(f"{path}: unreadable prompts ({error})", Exit.UNAVAILABLE) from None
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or tokens.size == 0:
        raise ReproError(
            f"{path}: tokens are {tokens.dtype} {list(tokens.shape)}; int32 [prompts, positions] is expected",
            Exit.UNAVAILABLE,
        )
    if tokens.shape[1] > folder.shape.n_ctx:
        raise ReproError(
            f"{path}: prompts of {tokens.shape[1]} tokens are longer than the model's context of {folder.shape.n_ctx}"
        )
    outside = np.argwhere((tokens < 0) | (tokens >= folder.shape.d_vocab))
    if len(outside):
        row, column = outside[0]
        raise ReproError(
            f"{path}: token id {tokens[row, column]} at row {row}, position {column} is outside the vocabulary of "
            f"{folder.shape.d_vocab}",
            Exit.UNAVAILABLE,
        )
    if len(np.unique(tokens[:, 0])) > 1:
        raise ReproError(
            f"{path}: rows start with different tokens; every prompt must start with BOS", Exit.UNAVAILABLE
        )
    return tokens.astype(np.int32)


def sha256(path: Path) -> str:
    """Hash of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_fingerprint(folder: Folder) -> str:
    """One hash for the model: of its configuration and of each weight file."""
    parts = [sha256(folder.path / "config.json"), *(sha256(file) for file in folder.weights)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def tokens_fingerprint(tokens: np.ndarray) -> str:
    """Hash of the token ids that an experiment reads."""
    return hashlib.sha256(np.ascontiguousarray(tokens, dtype="<i4").tobytes()).hexdigest()
