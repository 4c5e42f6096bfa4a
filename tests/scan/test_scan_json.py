"""`scan.json` is documented: every key of a document that holds everything, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repro.scan import answer, choose, expected
from repro.scan.confirmation import Confirmation
from repro.scan.document import document as data
from repro.scan.document import median_interval
from repro.scan.expected import Reported
from repro.scan.twin import SCALES, Twin
from repro.scan.verdict import scan
from tests.scan.made import erase, quiet

PAGE = Path(__file__).parents[2] / "docs" / "scan-json.md"
ROW = re.compile(r"^\| `([^`]+)` \| ([a-z ]+) \|", re.MULTILINE)


def documented() -> dict[str, str]:
    """Every key of the page with its type."""
    return dict(ROW.findall(PAGE.read_text(encoding="utf-8")))


def values(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every key below a value, entries of arrays as `[]`, and what stands there."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        path = f"{at}.{key}" if at else key
        yield path, inner
        yield from values(inner, path)
        for entry in inner if isinstance(inner, list) else ():
            yield from values(entry, f"{path}[]")


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The answer about a model of which something is claimed, confirmed, expected, and looked at in twins."""
    raw = quiet()
    for eraser in ("MLP1", "L2H0", "MLP2"):
        erase(raw, "L0H1", eraser, -0.6)
    kept = Confirmation(-0.6, -0.1, -0.1, -0.1, -0.2, -0.2)
    monkeypatch.setattr(choose, "confirm_on", lambda model, tokens, wanted: dict.fromkeys(wanted, kept))
    entry = Reported(model="a/b", stratum="rest", writer="L0H1", erasers=("MLP1",), source="me")
    monkeypatch.setattr(expected, "read_expected", lambda: (entry,))
    twins = tuple(Twin(scale, 0, (("L0H1", "MLP1", -0.2),), True) for scale in SCALES)

    def model() -> Any:
        return None

    path = tmp_path / "one"
    path.mkdir()
    answer.answered(raw, path, "toy", np.zeros((20, 64), np.int64), model, tmp_path, lambda: twins, ("a/b", ""))
    found: dict[str, Any] = json.loads((tmp_path / answer.FILE).read_text(encoding="utf-8"))
    return found


def test_every_key_is_documented_and_no_other(document: dict[str, Any]) -> None:
    keys = {path for path, _ in values(document)}
    first = {key for key in keys if key.startswith("strata.first.")}
    assert keys - first == set(documented())
    rest = {key.replace("strata.rest.", "strata.first.") for key in documented()}
    assert {key.replace("observations", "claims") for key in first} <= rest


def test_the_first_token_is_observed_where_it_is_common_and_has_no_p_value() -> None:
    raw = quiet()
    erase(raw, "L0H1", "MLP1", -0.6)
    confirmed: dict[tuple[str, str], Confirmation] = {}
    differing = data(raw, scan(raw, draws=0), scan(raw, "first", draws=0), confirmed)["strata"]["first"]
    assert "claims" in differing
    for name in ("path", "clean"):
        raw[name].loc[{"stratum": "first"}] = raw[name].sel(stratum="first").isel(prompt=0)
    first = data(raw, scan(raw, draws=0), scan(raw, "first", draws=0), confirmed)["strata"]["first"]
    assert "claims" not in first
    (seen,) = first["observations"]
    assert (seen["writer"], seen["eraser"]) == ("L0H1", "MLP1")
    assert "p_adjusted" not in seen


def test_the_interval_of_a_median_covers_it() -> None:
    generator = np.random.default_rng(0)
    held = [low <= 0.0 <= high for low, high in (median_interval(generator.standard_normal(15)) for _ in range(300))]
    assert 0.93 <= np.mean(held) <= 1.0
    narrow, wide = median_interval(generator.standard_normal(400)), median_interval(generator.standard_normal(15))
    assert narrow[1] - narrow[0] < wide[1] - wide[0]
    assert np.isnan(median_interval(np.array([np.nan, 1.0]))).all()


def test_what_stands_there_is_of_the_type_that_is_told(document: dict[str, Any]) -> None:
    kinds: dict[str, Any] = {
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": int | float,
        "array": list,
        "object": dict,
    }
    told = documented()
    for path, value in values(document):
        if path.startswith("strata.first."):
            continue
        if told[path] == "two numbers":
            assert value is None or [type(part) for part in value] == [float, float], path
        else:
            assert isinstance(value, kinds[told[path]]), path
            assert isinstance(value, bool) == (told[path] == "boolean"), path
