"""A model as people have it: in a directory, in memory from one of the libraries, or loaded already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from repro.errors import ReproError
from repro.model.decoder import Model
from repro.model.export import export
from repro.model.folder import PROMPTS, read_folder
from repro.model.load import load


def as_tokens(tokens: Any) -> np.ndarray:
    """Return token ids as int64 [prompt, position], of one prompt [position] or several, an array or a tensor.

    Raises ReproError (exit 2) for anything else. Agreement: tests/scan/test_corrected.py.
    """
    try:
        found = np.asarray(tokens.detach().cpu() if hasattr(tokens, "detach") else tokens)
    except ValueError:
        raise ReproError("tokens: prompts of unequal length; all need the same number of tokens") from None
    if found.dtype.kind not in "iu" or found.ndim not in (1, 2) or not found.size or (found < 0).any():
        raise ReproError(
            f"tokens: token ids [position] or [prompt, position] are expected, BOS first, not {found.dtype} "
            f"{list(found.shape)}"
        )
    return np.atleast_2d(found).astype(np.int64)


def loaded(model: Any, tokens: np.ndarray, precision: str = "float32", whole: bool = False) -> Model:
    """Return a model with processed weights, checked against the original on the first prompt.

    model: a directory (Hugging Face or TransformerLens format), a Hugging Face causal language model, an unprocessed
    native TransformerLens bridge, or what this function returned: the way to load once and ask often. A model in
    memory is written to a temporary directory and read back, which takes its size twice. tokens: [prompt, position];
    whole: whether it must be right over its whole context, not just for prompts of that length.
    Raises ReproError: exit 2 for another kind of object or for token ids that the model does not have, exit 4 for a
    model that is not supported. Agreement: tests/scan/test_corrected.py, the same numbers by every way.
    """
    if isinstance(model, Model):
        found = model
    else:
        with TemporaryDirectory(prefix="dla-erasure-") as place:
            prompts = Path(place) / PROMPTS
            if isinstance(model, str | Path):
                folder = Path(model).expanduser()
                save_file({"tokens": tokens.astype(np.int32)}, prompts)
            else:
                folder = export(model, tokens, Path(place) / "model")
                prompts = folder / PROMPTS
            found = load(read_folder(folder, prompts), precision, prompts=None if whole else tokens)
    if found.longest is not None and tokens.shape[1] > found.longest:
        raise ReproError(
            f"tokens: {tokens.shape[1]} positions; it was loaded for prompts of at most {found.longest}, and what "
            "it does beyond was not compared: load it with prompts as long as these"
        )
    if tokens.max() >= found.shape.d_vocab or tokens.shape[1] > found.shape.n_ctx:
        raise ReproError(
            f"tokens: ids up to {int(tokens.max())} at {tokens.shape[1]} positions; the model has "
            f"{found.shape.d_vocab} tokens and {found.shape.n_ctx} positions"
        )
    return found


def load_model(model: Any, tokens: Any = None, *, precision: str = "float32") -> Model:
    """Return a model that is loaded once and asked often: `repro.corrected_dla` and `repro.scan` take it.

    model: as for `loaded`. tokens: prompts [prompt, position], the first of which is compared with the original; it
    then serves prompts of at most that length. Nothing: any, and a setting that binds anywhere in its context is
    refused. Raises ReproError as `loaded` does. Agreement: tests/scan/test_corrected.py.
    """
    if tokens is None:
        return loaded(model, np.zeros((1, 2), np.int64), precision, whole=True)
    ids = as_tokens(tokens)
    return replace(loaded(model, ids, precision), longest=ids.shape[1])
