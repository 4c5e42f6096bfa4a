"""A tenth of the sweep over configurations, and controls that its harness notices what must not be."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

import repro.model.load
from repro.errors import Exit, ReproError
from repro.model import forward
from tests.sweep.configurations import PER_ARCHITECTURE, Drawn, draw, drawn
from tests.sweep.outcome import NO_MODEL, WrongError, assert_named, outcome

TENTH = slice(None, None, 10)


@pytest.mark.parametrize("part", range(4))
def test_every_configuration_is_right_or_refused_by_name(part: int, tmp_path: Path) -> None:
    counts = Counter(outcome(given, tmp_path / given.name)[0] for given in drawn()[TENTH][part::4])
    assert set(counts) <= {"right", "refused", NO_MODEL}
    assert counts["right"] + counts["refused"] >= 0.7 * counts.total()


def test_the_sweep_is_as_wide_as_it_says() -> None:
    every = drawn()
    assert len(every) >= 400
    assert len({given.kind for given in every}) >= 180
    assert sum(given.number == 0 for given in every) < len(every) - 8 * PER_ARCHITECTURE
    assert drawn() == every
    assert draw("llama", 3) != draw("llama", 4)


# --------------------------------------------------------------------------------------------------- negative controls


def test_a_wrong_pass_that_the_self_check_lets_through_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Drawn("llama", 0, {})
    assert outcome(given, tmp_path / "good")[0] == "right"
    monkeypatch.setattr(repro.model.load, "check_against_original", lambda *_: None)
    turn = forward.rotate
    monkeypatch.setattr(forward, "rotate", lambda rotary, x: torch.cat((turn(rotary, x)[:, :-1], x[:, -1:]), 1))
    with pytest.raises(WrongError, match="resid_mid0 differs"):
        outcome(given, tmp_path / "late")


def test_an_inner_error_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TypeError("'NoneType' object is not subscriptable")

    monkeypatch.setattr("tests.sweep.outcome.read_folder", fail)
    with pytest.raises(WrongError, match="ends in TypeError"):
        outcome(Drawn("gpt2", 0, {}), tmp_path / "model")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("z of layer 0 differs from the original model's by 1.1", "a symptom"),
        ("the model cannot be loaded (TypeError: 'NoneType' object is not subscriptable)", "a symptom"),
        ("not supported: an unusual model", "no key of config.json is named"),
        ("not supported: other_eps = 3 in config.json", "no key of config.json is named"),
    ],
)
def test_a_sentence_without_a_reason_is_noticed(said: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"rms_norm_eps": 3, "rope_parameters": {"rope_type": "x"}}))
    assert_named(
        ReproError("not supported: rope_parameters.rope_type = 'x' in config.json", Exit.UNAVAILABLE), tmp_path
    )
    with pytest.raises(WrongError, match=why):
        assert_named(ReproError(said, Exit.UNAVAILABLE), tmp_path)
