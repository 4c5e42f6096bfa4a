"""What every measure shares: an unembedding laid out for the kernels, and predictions that are not numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from repro.kernels.select import Kernels, provider
from repro.measures.batch import Engine
from repro.model.folder import read_folder
from repro.model.load import load


@pytest.mark.kernels
def test_triton_is_given_an_unembedding_in_whole_vectors(folders: dict[str, Path]) -> None:
    model = load(read_folder(folders["native"]))
    vocabulary = model.W_U.shape[1]
    assert vocabulary % 16, "the control: as it was loaded its rows begin anywhere"
    engine = Engine(model, Kernels("triton", {}))
    assert engine.model.W_U.stride() == (-(-vocabulary // 16) * 16, 1)
    assert torch.equal(engine.model.W_U, model.W_U)
    assert Engine(model, provider("torch", "cpu")).model is model


def test_a_prediction_that_is_not_a_number_has_no_direction(folders: dict[str, Path]) -> None:
    model = load(read_folder(folders["native"]))
    engine = Engine(model, provider("torch", "cpu"))
    resid = torch.randn(3, model.W_U.shape[0])
    resid[1] = torch.nan
    values, ids, _ = engine.kernels.top2_logits(resid, model.W_U, model.b_U, None)
    u = engine.top2_difference(values, ids)
    assert u[1].isnan().all()
    assert torch.equal(u[[0, 2]], model.W_U.T[ids[[0, 2], 0]] - model.W_U.T[ids[[0, 2], 1]])
