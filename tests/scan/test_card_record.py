"""The card kept in git: a slice of it is computed anew, and what docs/findings.md says of it is what it holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import repro
from repro.card_record import main
from repro.errors import Exit
from repro.labels import writers
from repro.model.attributions import attributions, targets
from repro.model.folder import read_folder, read_prompts
from repro.model.forward import logits, trace
from repro.model.load import load
from tests.runs import PAPER, ROOT

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


@pytest.mark.long
def test_the_command_writes_what_the_card_says(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(PAPER, tmp_path / "experiments.toml")
    shutil.copytree(folders["native"], tmp_path / "toy")
    with (tmp_path / "experiments.toml").open("a") as spec:
        spec.write('\n[subject.toy]\nmodel = "toy"\nwriter = "L0H0"\nerasers = ["L1H1"]\n')
    monkeypatch.chdir(tmp_path)
    asked = ["dla_card", "--subject", "toy", "--prompts", "2", "--to", str(tmp_path / "card.json")]
    assert main(asked) == Exit.UNAVAILABLE, "nothing is stored yet"
    card = repro.run("toy", "dla_card", prompts=2)["dla_card"]
    (tmp_path / "card.json").write_text('{"toy": {"slice": 1, "prompts": 99}, "other": {}}')
    assert main(asked) == Exit.OK
    kept = json.loads((tmp_path / "card.json").read_text())
    assert kept["other"] == {}
    assert kept["toy"]["slice"] == 1
    assert kept["toy"]["prompts"] == 2
    (tmp_path / "card.json").write_text("{")
    assert main(asked) == Exit.USAGE
    assert (tmp_path / "card.json").read_text() == "{", "what cannot be read is not written over"
    repro.run("toy", "nodes_onto_writer", prompts=2)
    assert main(["nodes_onto_writer", *asked[1:]]) == Exit.USAGE
    assert "a projection; give an experiment that is a dla_card" in capsys.readouterr().err
    first = kept["toy"]["writers"][0]
    assert first["taken_back"] == pytest.approx(list(card["taken_back"].isel(writer=0).values), abs=1e-4)
    assert set(first) == set(RECORD["mini"]["writers"][0])
    assert set(kept["toy"]) == set(RECORD["mini"]) - {"command"}


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
