"""The prompts of a model directory: token ids, checked, and whatever would make prompts of unequal length of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from repro.errors import ReproError, listing, plain, unavailable, words_of
from repro.model.contents import refuse_other_content

MASK = "attention_mask"
_RUN = 3
"""Times that a special token stands at an end of a prompt before it is padding; two documents may meet at its end."""
_EQUAL = "prompts of unequal length are not supported; cut all to one length"


def read_tokens(path: Path, n_ctx: int, d_vocab: int, config: Mapping[str, Any]) -> np.ndarray:
    """Return the token ids of a file of prompts, int32 [prompt, position], BOS first, checked.

    n_ctx, d_vocab: of the model. config: its configuration, which names special tokens. Raises ReproError: exit 4 for
    an unreadable file, a tensor that nobody reads, padding, or a token id outside the vocabulary (naming row and
    column); exit 2 for prompts longer than the model's context. Agreement: tests/model/test_folder_prompts.py.
    """
    tokens, unpadded = _read(path)
    if tokens.shape[1] > n_ctx:
        raise ReproError(f"{path}: prompts of {tokens.shape[1]} tokens are longer than the model's context of {n_ctx}")
    refuse_outside(str(path), tokens, d_vocab)
    if not unpadded:
        _refuse_padding(path, tokens, config)
    if len(np.unique(tokens[:, 0])) > 1:
        raise unavailable(f"{path}: rows start with different tokens; every prompt must start with BOS")
    return tokens.astype(np.int32)


def refuse_outside(where: str, tokens: np.ndarray, d_vocab: int) -> None:
    """Raise ReproError (exit 4) naming the first of some token ids [row, position] that a vocabulary does not have."""
    outside = np.argwhere((tokens < 0) | (tokens >= d_vocab))
    if len(outside):
        row, column = outside[0]
        raise unavailable(
            f"{where}: token id {tokens[row, column]} at row {row}, position {column} is outside the vocabulary of "
            f"{d_vocab}"
        )


def _read(path: Path) -> tuple[np.ndarray, bool]:
    """Return the token ids, and whether a mask declares that there is no padding."""
    refuse_other_content(path)
    try:
        with safe_open(str(path), framework="numpy") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise unavailable(f"{path}: unreadable prompts ({words_of(error)})") from None
    held = listing([f"{plain(repr(name), 40)} {_described(array)}" for name, array in sorted(found.items())], 4)
    if "tokens" not in found:
        raise unavailable(
            f"{path}: holds no tensor `tokens` but {held or 'nothing'}; save the ids, int32 [prompts, positions], BOS "
            "first, under that name"
        )
    tokens = found.pop("tokens")
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or tokens.size == 0:
        raise unavailable(f"{path}: tokens are {_described(tokens)}; int32 [prompts, positions] is expected")
    mask = found.pop(MASK, None)
    if mask is not None and (mask.shape != tokens.shape or not (mask == 1).all()):
        raise unavailable(f"{path}: `{MASK}` {_described(mask)} leaves out positions of `tokens`: {_EQUAL}")
    if found:
        raise unavailable(
            f"{path}: {listing([repr(name) for name in found], 4)} beside `tokens` would not be read; save `tokens` "
            "alone"
        )
    return tokens, mask is not None


def _described(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _refuse_padding(path: Path, tokens: np.ndarray, config: Mapping[str, Any]) -> None:
    """Refuse runs of one token at the end or at the beginning of prompts, as padding leaves them."""
    special = {int(tokens[0, 0])}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given = config.get(name)
        special |= {item for item in (given if isinstance(given, list) else [given]) if type(item) is int}
    for where, ordered in (("ends", tokens[:, ::-1]), ("begins", tokens)):
        runs = _runs(ordered)
        # Documents that end where a prompt begins or ends leave two special tokens there.
        padded = np.where(np.isin(ordered[:, 0], list(special)), runs >= _RUN, _unusual(ordered, runs))
        if padded.any():
            row = int(np.argmax(padded))
            raise unavailable(
                f"{path}: row {row} {where} with {runs[row]} times the token id {ordered[row, 0]}, as padding does: "
                f"{_EQUAL}, or add an `{MASK}` of ones if nothing is padding"
            )


def _runs(ordered: np.ndarray) -> np.ndarray:
    """Return how often the first token of each row is repeated at its beginning, itself counted."""
    return np.cumprod(ordered == ordered[:, :1], axis=1).sum(1)


def _unusual(ordered: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """Return which rows end in a repeated token, where that is no habit of the text itself.

    Either several rows repeat a token that is nowhere else, or a quarter of all rows end so while fewer than one in
    sixteen neighbours within them are equal.
    """
    repeated = runs >= 2
    within = np.arange(ordered.shape[1]) >= runs[:, None]
    elsewhere = np.unique(ordered[:, :-1][within[:, :-1]])
    strange = repeated & ~np.isin(ordered[:, 0], elsewhere)
    ids, counts = np.unique(ordered[strange, 0], return_counts=True)
    strange &= np.isin(ordered[:, 0], ids[counts > 1])
    inside = within[:, 1:] & within[:, :-1]
    equal = (ordered[:, 1:] == ordered[:, :-1]) & inside
    often = repeated.sum() >= 2 and 4 * repeated.sum() >= len(runs) and 16 * equal.sum() < inside.sum()
    return strange | (repeated & often)
