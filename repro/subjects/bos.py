"""The token that a model's prompts begin with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from repro.errors import plain, unavailable
from repro.model.folder import PROMPTS

_USUAL = ("<|BOS|>", "<bos>", "<s>", "<|begin_of_text|>", "<|endoftext|>")
"""What tokenizers call it, where no configuration says so."""


def first_token(model: Path, d_vocab: int) -> int:
    """Return the id that prompts of a model begin with.

    The first that is named: by the model's own prompts, which begin with it; `bos_token_id` of config.json; `bos_token`
    of tokenizer_config.json; a special token of tokenizer.json with a usual name; and, for models trained without one,
    the end of text (`eos_token_id`), which stood between their training documents.

    Raises ReproError (exit 4) if nothing is named, or an id outside the vocabulary.
    Agreement: tests/subjects/test_text.py.
    """
    for where, token in _candidates(model):
        if type(token) is not int or not 0 <= token < d_vocab:
            raise unavailable(
                f"{where} is {plain(repr(token), 80)}; a token id below the vocabulary's size, {d_vocab}, is expected"
            )
        return token
    raise unavailable(
        f"{model}: neither config.json nor the tokenizer names a BOS token; set bos_token_id in config.json"
    )


def _candidates(model: Path) -> Iterator[tuple[str, Any]]:
    if (token := _of_prompts(model / PROMPTS)) is not None:
        yield f"{model / PROMPTS}: the first token", token
    config, tokenizer = _json(model / "config.json"), _json(model / "tokenizer.json")
    added = {
        entry.get("content"): entry.get("id")
        for entry in tokenizer.get("added_tokens") or ()
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and entry.get("special")
    }
    named = _json(model / "tokenizer_config.json").get("bos_token")
    name = named.get("content") if isinstance(named, dict) else named
    if config.get("bos_token_id") is not None:
        yield f"{model / 'config.json'}: bos_token_id", config["bos_token_id"]
    for usual in (name, *_USUAL):
        if isinstance(usual, str) and usual in added:
            yield f"{model / 'tokenizer.json'}: the id of {plain(usual, 80)}", added[usual]
    ends = config.get("eos_token_id")
    if ends is not None:
        yield f"{model / 'config.json'}: eos_token_id", ends[0] if isinstance(ends, list) and ends else ends


def _of_prompts(path: Path) -> int | None:
    """Return the first token of frozen prompts; None where there are none that can be read."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            return int(file.get_slice("tokens")[0, 0])
    except (OSError, SafetensorError, ValueError, TypeError, IndexError):
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
