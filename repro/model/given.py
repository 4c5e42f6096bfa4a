"""A model as people have it: in a directory, in memory from one of the libraries, or loaded already."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from repro.errors import ReproError
from repro.model.export import export
from repro.model.folder import PROMPTS, read_folder
from repro.model.forward import Model
from repro.model.load import load


def as_tokens(tokens: Any, shape_of: str = "tokens") -> np.ndarray:
    """Return token ids as int64 [prompt, position], of one prompt [position] or several, an array or a tensor.

    Raises ReproError (exit 2) for anything else. Agreement: tests/model/test_given.py.
    """
    found = np.asarray(tokens.detach().cpu() if hasattr(tokens, "detach") else tokens)
    if found.dtype.kind not in "iu" or found.ndim not in (1, 2) or not found.size or (found < 0).any():
        raise ReproError(
            f"{shape_of}: token ids [position] or [prompt, position] are expected, BOS first, not {found.dtype} "
            f"{list(found.shape)}"
        )
    return np.atleast_2d(found).astype(np.int64)


def loaded(model: Any, tokens: np.ndarray, precision: str = "float32") -> Model:
    """Return a model with processed weights, checked against the original on the first prompt.

    model: a directory (Hugging Face or TransformerLens format), a Hugging Face causal language model, an unprocessed
    native TransformerLens bridge, or what this function returned: the way to load once and ask often. A model in
    memory is written to a temporary directory and read back, which takes its size twice. tokens: [prompt, position].
    Raises ReproError: exit 2 for another kind of object or for token ids that the model does not have, exit 4 for a
    model that is not supported. Agreement: tests/model/test_given.py, the same numbers by every way.
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
            found = load(read_folder(folder, prompts), precision, prompts=tokens)
    if tokens.max() >= found.shape.d_vocab or tokens.shape[1] > found.shape.n_ctx:
        raise ReproError(
            f"tokens: ids up to {int(tokens.max())} at {tokens.shape[1]} positions; the model has "
            f"{found.shape.d_vocab} tokens and {found.shape.n_ctx} positions"
        )
    return found


def load_model(model: Any, tokens: Any = None, *, precision: str = "float32") -> Model:
    """Return a model that is loaded once and asked often: `repro.corrected_dla` and `repro.scan` take it.

    model: as for `loaded`. tokens: prompts [prompt, position] on which it is compared with the original; nothing: the
    token ids 0 to 15. Raises ReproError as `loaded` does. Agreement: tests/model/test_given.py.
    """
    ids = np.arange(16)[None] if tokens is None else as_tokens(tokens)
    return loaded(model, ids, precision)
