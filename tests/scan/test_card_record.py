"""The card kept in git: a slice of it is computed anew, and what docs/findings.md says of it is what it holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import repro
from repro.labels import writers
from repro.model.attributions import attributions, targets
from repro.model.folder import read_folder, read_prompts
from repro.model.forward import logits, trace
from repro.model.load import load
from tests.runs import ROOT

RECORD = json.loads((ROOT / "store" / "committed" / "card.json").read_text())
MINI = Path(repro.__file__).parent / "subjects" / "mini"


def test_a_slice_of_the_card_of_mini_is_computed_again() -> None:
    kept = RECORD["mini"]["slice"]
    positions = torch.tensor(kept["targets"])
    folder = read_folder(MINI)
    tokens = read_prompts(folder)[kept["prompt"] : kept["prompt"] + 1, : int(positions[-1]) + 1].astype(np.int64)
    model = load(folder, prompts=tokens)
    with torch.inference_mode():
        ids = torch.from_numpy(tokens)
        run = trace(model, ids)
        at = targets(model, run, 0, positions, logits(model, run.final[0, positions]).topk(2).indices)
        instead = {label: [torch.zeros_like(run.final[0])] for label in kept["writers"]}
        found = attributions(model, run, ids, 0, at, kept["writers"], instead)
    labels = writers(model.shape.n_layers, model.shape.n_heads, positional=True)
    rows = [labels.index(label) for label in kept["writers"]]
    np.testing.assert_allclose(found.dla[rows], kept["dla"], atol=2e-4)
    for i, form in enumerate(("held", "halves", "gradient")):
        np.testing.assert_allclose(found.net[i, rows], kept[form], atol=2e-4, err_msg=form)
    np.testing.assert_allclose(found.total[0], kept["zero"], atol=2e-4)
    # Negative control: another target has other numbers.
    assert not np.allclose(found.dla[rows], np.roll(kept["dla"], 1, axis=1), atol=2e-4)


@pytest.mark.parametrize("subject", sorted(RECORD))
def test_the_record_is_whole(subject: str) -> None:
    here = RECORD[subject]
    for kind in here["agreement"].values():
        for found in kind.values():
            assert found["signed"] <= found["pairs"]
            assert set(found["attributions"]) == {"dla", "dla_star", "held", "halves", "gradient"}
    assert here["incomplete"]["held"] < 1e-3
    assert here["incomplete"]["halves"] < 1e-3
    assert here["incomplete"]["gradient"] > 0.1
