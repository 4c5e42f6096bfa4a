"""Expected erasures: which models are met, what counts as claimed, and the line about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from pydantic import ValidationError

import repro
from repro.check.published import read_published
from repro.labels import is_node
from repro.scan import expected
from repro.scan.expected import Case, Reported, compare, read_expected, recall_line
from repro.scan.table import answer
from repro.scan.verdict import Scan, scan
from tests import toys
from tests.runs import Run
from tests.scan.made import erase, quiet
from tests.scenes import prompts

HERE = "somebody/a-model"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[Reported]:
    """A list of the test's own."""
    entries: list[Reported] = []
    monkeypatch.setattr(expected, "read_expected", lambda: tuple(entries))
    return entries


def erased() -> xr.Dataset:
    raw = quiet()
    erase(raw, "L0H1", "MLP1", -0.6)
    raw["path"].loc[{"stratum": "first"}] = raw["path"].sel(stratum="first").isel(prompt=[0] * 20).values
    return raw


def found(source: str, directory: str = "", raw: xr.Dataset | None = None) -> tuple[Case, ...]:
    raw = erased() if raw is None else raw
    return compare(source, directory, scan(raw, draws=0), scan(raw, "first", draws=0))


def test_the_list_is_whole() -> None:
    entries = read_expected()
    papers = read_published().paper
    (own,) = [entry for entry in entries if entry.writer == papers.writer]
    assert own.erasers == tuple(papers.erasers)
    assert len({(entry.model, entry.stratum, entry.writer) for entry in entries}) == len(entries)
    assert all(is_node(label) for entry in entries for label in (entry.writer, *entry.erasers) if label)
    for entry in entries:
        told = ("https://", "measured for this project: ", "public report, source not recorded")
        assert any(part in entry.source for part in told), entry.source
    for wrong in ({"writer": "L0H1"}, {"writer_layer": 1}, {"erasers": ("MLP1",)}, {"eraser": "MLP1"}):
        with pytest.raises(ValidationError):
            Reported(model=HERE, stratum="rest", source="", **wrong)


@pytest.mark.parametrize(
    ("source", "directory"), [(HERE, "x"), ("SomeBody/A-Model", ""), ("/at/home/a-model", "a-model"), ("", "A-Model")]
)
def test_a_model_is_met_by_its_source_or_its_directory(listed: list[Reported], source: str, directory: str) -> None:
    listed.append(Reported(model=HERE, stratum="rest", writer="L0H1", erasers=("MLP1",), source="me"))
    assert found(source, directory) == (Case("rest", "L0H1", "MLP1", "me", True),)


@pytest.mark.parametrize(
    ("source", "directory"),
    [("", ""), ("elsewhere/a-model", "elsewhere--a-model"), ("a-model", "b"), (f"{HERE}-2", "a-model-2"), ("", HERE)],
)
def test_another_model_is_not(listed: list[Reported], source: str, directory: str) -> None:
    listed.append(Reported(model=HERE, stratum="rest", writer="L0H1", erasers=("MLP1",), source="me"))
    assert found(source, directory) == ()


def test_a_scan_in_memory_goes_by_its_directory_alone(listed: list[Reported], tmp_path: Path) -> None:
    """Neither by what it is called nor by `_name_or_path`, which in a fine-tuned model names the base model."""
    listed.append(Reported(model=HERE, stratum="rest", writer="L0H1", erasers=("MLP1",), source="me"))
    folder = toys.make_native(tmp_path / "tuned")
    arguments: dict[str, Any] = {"tokens": prompts(14, 20), "stride": 4, "decoys": 8, "draws": 0, "confirm": False}
    assert repro.scan(folder, **arguments, name="a-model").known == ()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": HERE}))
    assert repro.scan(folder, **arguments).known == ()
    (case,) = repro.scan(folder.rename(tmp_path / "a-model"), **arguments).known
    assert (case.writer, case.eraser) == ("L0H1", "MLP1")


def test_recall_counts_what_is_claimed_and_names_what_is_not(listed: list[Reported]) -> None:
    listed.append(Reported(model=HERE, stratum="rest", writer="L0H1", erasers=("MLP1", "L2H0", "L9H0"), source="me"))
    cases = found(HERE)
    assert [(case.eraser, case.claimed) for case in cases] == [("MLP1", True), ("L2H0", False)]
    assert recall_line(cases) == ["expected erasures: 1 of 2 claimed (not L0H1 by L2H0)"]
    assert recall_line(()) == []
    few = erased().isel(prompt=slice(0, 4))
    few.attrs.update(erased().attrs)
    assert found(HERE, raw=few) == ()
    assert found(HERE, raw=erased()) != ()
    raw = erased()
    lines = answer(scan(raw, draws=0), scan(raw, "first", draws=0), "toy", 64, known=cases)
    assert "expected erasures: 1 of 2 claimed (not L0H1 by L2H0)" in lines


def test_layers_stand_for_any_of_their_nodes(listed: list[Reported]) -> None:
    listed += [Reported(model=HERE, stratum="rest", writer_layer=0, after_layer=n, source="me") for n in (0, 1, 2)]
    # MLP1 lies after layer 0; no layer lies after the last.
    assert [(case.eraser, case.claimed) for case in found(HERE)] == [("after layer 0", True), ("after layer 1", False)]


def test_of_some_components_only_named_pairs_are_cases(listed: list[Reported]) -> None:
    """With named roles other components are not looked at: what they do nobody knows."""
    entry = Reported(model=HERE, stratum="rest", writer="L0H1", erasers=("MLP1", "L2H0"), source="me")
    listed += [entry, Reported(model=HERE, stratum="rest", writer_layer=0, after_layer=0, source="me")]
    listed.append(Reported(model=HERE, stratum="rest", source="me"))
    assert [case.eraser for case in found(HERE)] == ["MLP1", "L2H0", "after layer 0", ""]
    some = erased().sel(component=["MLP1", "L2H1"])
    some.attrs.update(erased().attrs)
    assert [case.eraser for case in found(HERE, raw=some)] == ["MLP1"]


def test_where_nothing_is_expected_a_claim_is_told(listed: list[Reported]) -> None:
    listed.append(Reported(model=HERE, stratum="first", source="me"))
    assert recall_line(found(HERE)) == ["expected erasures: none at the first token, but some are claimed"]
    nothing = quiet()
    nothing["path"].loc[{"stratum": "first"}] = np.where(
        np.isfinite(nothing["path"].sel(stratum="first")), 0.01, np.nan
    )
    assert recall_line(found(HERE, raw=nothing)) == ["expected erasures: none at the first token, and none is claimed"]


def test_the_list_is_part_of_the_package() -> None:
    declared = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'"scan/{expected.FILE.name}"' in declared


def test_the_command_goes_by_the_source_and_the_directory(
    finished: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = finished("native").copy(tmp_path), []

    def seen(source: str, directory: str, *scans: Scan) -> tuple[Case, ...]:
        asked.append((source, directory))
        return ()

    monkeypatch.setattr("repro.scan.answer.compare", seen)
    assert run.cli("scan").code == 0
    assert asked == [(str(run.model.resolve()), run.model.name)]
