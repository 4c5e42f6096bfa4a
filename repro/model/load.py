"""The model boundary: a folder becomes a `Model` with processed weights, compared with the original before use."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from repro.errors import ReproError
from repro.model.casting import DTYPES, cast, rounded
from repro.model.decoder import Model
from repro.model.folder import Folder
from repro.model.original import read_original
from repro.model.processing import process
from repro.model.refusals import unrunnable
from repro.model.selfcheck import ROUNDING, DiffersError, check_against_original
from repro.process import quiet


def load(folder: Folder, precision: str = "float32", device: str = "cpu", prompts: np.ndarray | None = None) -> Model:
    """Return the model of a folder, its weights processed, and checked against the original model.

    Processing: norms folded, writing weights centred (LayerNorm only), unembedding centred, value biases folded into
    b_O. precision: float32 or float64, the type of weights and activations; or bf16, to which all weights, and inputs
    and outputs of every product but the unembedding, are rounded, while the stream, norms and sums stay float32 (the
    check is of the unrounded model). prompts [prompt, position]: what the model will be given; the first at its full
    length is part of the check, and without any the model must be right over its whole context. A small difference in
    float32 is looked at again in float64: where attention is sharp, rounding alone comes to more than is allowed.
    Returns a `Model` on `device`. Raises ReproError (exit 4) naming what is unreadable, not finite, unsupported, or
    computed differently from the original. Agreement: tests/model/test_model.py, tests/model/test_architectures.py.
    """
    dtype = torch.float64 if precision == "float64" else torch.float32
    try:
        try:
            model = _checked(folder, dtype, prompts)
        except DiffersError as error:
            if dtype is torch.float64 or error.off > ROUNDING:
                raise
            model = _checked(folder, torch.float64, prompts)
    except ReproError:
        raise
    except Exception as error:  # the libraries raise many kinds; all mean that this model cannot be had
        raise unrunnable(folder, error, "load") from error
    model = cast(model, DTYPES[precision], device)
    return rounded(model) if precision == "bf16" else model


def _checked(folder: Folder, dtype: torch.dtype, prompts: np.ndarray | None) -> Model:
    tokens = [_probe(folder)]
    if prompts is not None:
        tokens.append(torch.from_numpy(prompts[:1].astype(np.int64)))
    with torch.no_grad(), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = read_original(folder, dtype, tokens, whole=prompts is None)
        model, value_biases = process(folder, original, dtype)
        check_against_original(folder, original, model, value_biases)
    return model


def _probe(folder: Folder) -> Tensor:
    """Return a few token ids from the whole vocabulary, for the start-up check."""
    generator = torch.Generator().manual_seed(0)
    length = min(folder.shape.n_ctx, 24)
    return torch.randint(0, folder.shape.d_vocab, (2, length), generator=generator)
