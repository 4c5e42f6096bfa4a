"""Untrained twins beside a scan: of the model's own architecture, told in the answer, and able to claim something."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import repro
from repro.measures.path_shares import PathShares
from repro.model.forward import Model, trace
from repro.scan import kept
from repro.scan.controls import SETTINGS, calibrated, present_writer
from repro.scan.twin import SCALES, SEED, Twin, claimed, twins_line, untrained_twins
from repro.scan.untrained import twin
from tests import scenes
from tests.runs import Run

NONE = Twin("of an initialiser", SEED, (), True)


@pytest.fixture(autouse=True)
def single(one_thread: None) -> None:
    """Small products are slower on two threads than on one."""


def rms(weights: torch.Tensor) -> float:
    return float(weights.square().mean().sqrt())


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_a_model_at_hand_has_a_twin_of_its_architecture(kind: str) -> None:
    given = scenes.model(kind)
    drawn, other = twin(given, 0, 0.1), twin(given, 1, 0.1)
    for name in ("shape", "center", "eps", "act", "softmax_scale", "parallel", "rotary"):
        assert getattr(drawn, name) is getattr(given, name)
    for mine, its in zip(drawn.blocks, given.blocks, strict=True):
        for name in vars(its):
            assert getattr(getattr(mine, name), "shape", None) == getattr(getattr(its, name), "shape", None)
        assert mine.rotated == its.rotated
        assert not any(getattr(mine, name).any() for name in ("b_QKV", "b_O", "b_in", "b_out"))
        assert rms(mine.W_in) == pytest.approx(0.1, rel=0.1)
        assert not torch.equal(mine.W_in, its.W_in)
        if mine.q_norm is not None:
            assert torch.equal(mine.q_norm, torch.ones_like(mine.q_norm))
    assert torch.equal(drawn.blocks[0].W_in, twin(given, 0, 0.1).blocks[0].W_in)
    assert not torch.equal(drawn.blocks[0].W_in, other.blocks[0].W_in)
    tokens = torch.from_numpy(scenes.prompts(2, 9))
    assert torch.isfinite(trace(drawn, tokens).final).all()


@pytest.mark.parametrize("kind", ["native", "llama"])
def test_a_twin_at_the_trained_scale_has_the_size_of_every_matrix(kind: str) -> None:
    given = scenes.model(kind)
    drawn = twin(given, 0, None)
    for mine, its in zip((drawn, *drawn.blocks), (given, *given.blocks), strict=True):
        for name in ("W_E", "W_QKV", "W_O", "W_in", "W_out"):
            if hasattr(its, name):
                assert rms(getattr(mine, name)) == pytest.approx(rms(getattr(its, name)), rel=0.15)
    if given.center:
        assert drawn.blocks[0].W_out.mean(-1).abs().max() < 1e-6
        assert rms(twin(given, 0, 0.1).blocks[0].W_out) == pytest.approx(0.1 / 6**0.5, rel=0.1)


def test_a_twin_with_a_planted_eraser_claims_it_and_one_without_does_not() -> None:
    """The negative control of the negative control."""
    setting = next(setting for setting in SETTINGS if setting.name == "planted head")
    model, tokens = setting.drawn(2)
    measure = PathShares(measure="path_shares", stride=4, decoys=32)
    none = claimed(twin(model, 7, 0.02), tokens, measure, "of an initialiser", 7)
    assert none == Twin("of an initialiser", 7, (), True)
    erased = calibrated(setting, model, tokens, writer := present_writer(setting, model, tokens))
    one = claimed(erased, tokens, measure, "planted", 0)
    assert (writer, "L2H1") in [claim[:2] for claim in one.claims]
    assert twins_line([none, one]).startswith("untrained twin: ")
    assert f"at the scale planted ({one.claims[0][0]} by {one.claims[0][1]}, -0." in twins_line([none, one])
    few = claimed(erased, tokens[:4], measure, "planted", 0)
    assert twins_line([few]) == "untrained twin: too few prompts to claim anything"


def test_a_scan_in_memory_tells_of_its_twins() -> None:
    arguments: dict[str, Any] = {"tokens": scenes.prompts(14, 20), "stride": 4, "decoys": 8, "draws": 0}
    found = repro.scan(scenes.model("native"), **arguments, confirm=False, controls=True)
    assert [drawn.scale for drawn in found.twins] == list(SCALES)
    assert twins_line(found.twins) in str(found)
    assert "untrained twin" not in str(repro.scan(scenes.model("native"), **arguments, confirm=False))


def test_the_command_prints_them_keeps_them_and_looks_once(
    finished: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished("native").copy(tmp_path)
    looked: list[np.ndarray] = []

    def twins(model: Model, tokens: np.ndarray, measure: PathShares, **more: Any) -> tuple[Twin, ...]:
        looked.append(tokens)
        real = untrained_twins(model, tokens, measure, **more)
        return (NONE, replace(real[1], claims=(("L0H1", "MLP1", -0.2),)))

    assert json.loads(run.cli("scan", "--json").out)["untrained_twins"] is None
    monkeypatch.setattr("repro.stages.answer.untrained_twins", twins)
    said = run.cli("scan", "--controls")
    assert said.code == 0, said.text
    path = run.result("scan")
    assert [drawn.seed for drawn in (kept.load(path) or pytest.fail("nothing kept")).twins] == [SEED, SEED]
    (told,) = [row for row in said.out.splitlines() if "untrained twin: " in row]
    few = "untrained twin: too few prompts to claim anything"  # eight of them, of a model with 171 pairs
    assert told.endswith(few)
    assert [len(tokens) for tokens in looked] == [8]
    again = run.cli("scan", "--json", "--controls")
    assert len(looked) == 1
    assert few in again.err
    document = json.loads(again.out)
    assert [row["scale"] for row in document["untrained_twins"]] == list(SCALES)
    assert document["untrained_twins"][1]["claims"] == [["L0H1", "MLP1", -0.2]]
