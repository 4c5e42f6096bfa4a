"""The answer: what is printed last, what is kept, and what is not computed twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from repro.scan import answer, choose
from repro.scan.confirmation import Confirmation
from repro.store.records import ROLES
from tests.scan.made import erase, quiet

TOKENS = np.zeros((20, 64), np.int64)
KEPT = Confirmation(-0.6, -0.1, -0.1, -0.1, -0.2, -0.2)
REFUTED = Confirmation(-0.6, -0.59, -0.59, -0.6, -0.6, -0.6)


def erased() -> xr.Dataset:
    """L0H1 loses more than half to MLP1."""
    raw = quiet()
    erase(raw, "L0H1", "MLP1", -0.6)
    return raw


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[str, str]]]:
    """Every list of pairs that real forwards were asked for."""
    asked: list[list[tuple[str, str]]] = []

    def confirmed(model: Any, tokens: np.ndarray, wanted: list[tuple[str, str]]) -> dict[Any, Confirmation]:
        asked.append(wanted)
        return dict.fromkeys(wanted, model)

    monkeypatch.setattr(choose, "confirm_on", confirmed)
    return asked


def said(raw: xr.Dataset, directory: Path, told: Confirmation = KEPT, key: str = "one") -> list[str]:
    def model() -> Any:
        return told

    (path := directory / key).mkdir(exist_ok=True)
    return answer.answered(raw, path, "toy", TOKENS[: raw.sizes["prompt"]], model, directory)


def test_the_verdict_is_the_last_line(tmp_path: Path, asked: list[list[tuple[str, str]]]) -> None:
    lines = said(erased(), tmp_path)
    assert lines[-1] == "Erasure found: MLP1 takes back more than half of what L0H1 writes."
    assert lines[0].startswith("toy: 20 prompts x 64 tokens, ")
    assert asked == [[("L0H1", "MLP1")]]
    (row,) = [line for line in lines if line.startswith("L0H1")]
    assert "kept" in row
    assert all(len(line) <= 120 for line in lines)


def test_a_refuted_claim_is_no_claim(tmp_path: Path, asked: list[list[tuple[str, str]]]) -> None:
    lines = said(erased(), tmp_path, REFUTED)
    assert lines[-1].startswith("No erasure found")
    assert "refuted by intervention: L0H1 by MLP1" in lines
    document = json.loads((tmp_path / "scan.json").read_text())
    assert document["found"] is False
    assert document["strata"]["rest"]["refuted"] == [["L0H1", "MLP1"]]
    assert document["strata"]["rest"]["claims"] == []


def test_nothing_found_is_said(tmp_path: Path, asked: list[list[tuple[str, str]]]) -> None:
    assert said(quiet(), tmp_path)[-1] == "No erasure found: no writer is cleared of a quarter of what it writes."
    assert asked == []


def test_too_few_prompts_are_said(tmp_path: Path, asked: list[list[tuple[str, str]]]) -> None:
    raw = erased().isel(prompt=slice(0, 5))
    raw.attrs.update(erased().attrs)
    assert said(raw, tmp_path)[-1].startswith("Too few prompts: with 5 no pair of ")


def test_the_same_result_is_confirmed_once(tmp_path: Path, asked: list[list[tuple[str, str]]]) -> None:
    first = said(erased(), tmp_path)
    assert said(erased(), tmp_path) == first
    assert len(asked) == 1
    said(erased(), tmp_path, key="another")
    assert len(asked) == 2
    # Where figures go has no part in it: what is kept lies beside the result.
    (tmp_path / "scan.json").unlink()
    assert said(erased(), tmp_path) == first
    assert len(asked) == 2
    (tmp_path / "one" / ROLES).unlink()
    said(erased(), tmp_path)
    assert len(asked) == 3


def test_what_is_kept_is_json(tmp_path: Path, asked: list[list[tuple[str, str]]]) -> None:
    said(erased(), tmp_path)
    document = json.loads((tmp_path / "scan.json").read_text(), parse_constant=pytest.fail)
    (writer,) = document["strata"]["rest"]["writers"]
    assert (writer["writer"], writer["verdict"]) == ("L0H1", "mostly erased")
    (claim,) = document["strata"]["rest"]["claims"]
    assert (claim["writer"], claim["eraser"], claim["confirmed"]) == ("L0H1", "MLP1", "kept")
    low, high = claim["interval"]
    assert low <= claim["path_share"] <= high
    assert (document["untrained_twins"], document["expected"]) == (None, [])


def test_the_lines_are_plain_text_where_colour_is_forced_as_in_a_notebook(
    tmp_path: Path, asked: list[list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = said(erased(), tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert said(erased(), tmp_path, key="two") == plain
    assert not any("\x1b" in line for line in plain)
