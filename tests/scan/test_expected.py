"""Expected erasures: which models are met, what counts as claimed, and the line about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from pydantic import ValidationError

from repro.check.published import read_published
from repro.labels import is_node
from repro.scan import expected
from repro.scan.expected import Case, Reported, compare, read_expected, recall_line
from repro.scan.table import answer
from repro.scan.verdict import scan
from tests.scan.made import erase, quiet

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


def found(*names: str, raw: xr.Dataset | None = None) -> tuple[Case, ...]:
    raw = erased() if raw is None else raw
    return compare(names, scan(raw, draws=0), scan(raw, "first", draws=0))


def test_the_list_is_whole() -> None:
    entries = read_expected()
    papers = read_published().paper
    (own,) = [entry for entry in entries if entry.writer == papers.writer]
    assert own.erasers == tuple(papers.erasers)
    assert len({(entry.model, entry.stratum, entry.writer) for entry in entries}) == len(entries)
    assert all(is_node(label) for entry in entries for label in (entry.writer, *entry.erasers) if label)
    for wrong in ({"writer": "L0H1"}, {"writer_layer": 1}, {"erasers": ("MLP1",)}, {"eraser": "MLP1"}):
        with pytest.raises(ValidationError):
            Reported(model=HERE, stratum="rest", source="", **wrong)


@pytest.mark.parametrize(
    "name", [HERE, "SomeBody/A-Model", "a-model", "/home/me/a-model", "/home/me/a-model/", "elsewhere/A-model"]
)
def test_a_model_is_met_by_its_name(listed: list[Reported], name: str) -> None:
    listed.append(Reported(model=HERE, stratum="rest", writer="L0H1", erasers=("MLP1",), source="me"))
    assert found("", name) == (Case("rest", "L0H1", "MLP1", "me", True),)
    assert found("another-model", "") == ()
    assert found(f"{name.rstrip('/')}-2") == ()


def test_recall_counts_what_is_claimed_and_names_what_is_not(listed: list[Reported]) -> None:
    listed.append(Reported(model=HERE, stratum="rest", writer="L0H1", erasers=("MLP1", "L2H0", "L9H0"), source="me"))
    cases = found(HERE)
    assert [(case.eraser, case.claimed) for case in cases] == [("MLP1", True), ("L2H0", False)]
    assert recall_line(cases) == ["expected erasures: 1 of 2 claimed (not L0H1 by L2H0)"]
    assert recall_line(()) == []
    few = erased().isel(prompt=slice(0, 4))
    few.attrs.update(erased().attrs)
    assert found(HERE, raw=few) == ()
    raw = erased()
    lines = answer(scan(raw, draws=0), scan(raw, "first", draws=0), "toy", 64, 16, known=cases)
    assert "expected erasures: 1 of 2 claimed (not L0H1 by L2H0)" in lines


def test_layers_stand_for_any_of_their_nodes(listed: list[Reported]) -> None:
    listed += [Reported(model=HERE, stratum="rest", writer_layer=0, after_layer=n, source="me") for n in (0, 1, 2)]
    # MLP1 lies after layer 0; no layer lies after the last.
    assert [(case.eraser, case.claimed) for case in found(HERE)] == [("after layer 0", True), ("after layer 1", False)]


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
