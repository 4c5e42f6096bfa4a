"""Results are declared before they are computed, and what could not be stored, or leaves the store, is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repro.errors import Exit, ReproError
from repro.store.layout import Layout, Variable, result_path
from repro.store.result import open_result
from tests import faulty


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return result_path(tmp_path / "store", "mini", "scan", "0123456789ab")


@pytest.mark.parametrize("max_bytes", [1, 3 * 5 * 4 * 4, 2**30])
def test_blocks_cover_everything_once(path: Path, max_bytes: int) -> None:
    declared = Layout(
        (Variable("pr", ("node", "site", "prompt", "position")),),
        {"node": ["a", "b"], "site": ["x", "y", "z"]},
        {"prompt": 5, "position": 4},
    )
    values = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    got = np.full_like(values, np.nan)
    with open_result(path, declared, 2, {}) as result:
        for i in result.missing():
            result.write_unit(i, {"pr": values[:, :, result.unit_slice(i)]})
        for index, block in result.iter_blocks("pr", max_bytes):
            assert block.nbytes <= max(max_bytes, 5 * 4 * 4)
            part = got[index["node"], index["site"]]
            assert np.isnan(part).all()
            part[...] = block
    assert got.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("variables", "coords", "sizes", "message"),
    [
        ([("pr", ("node",))], {"node": ["a"]}, {}, "hold 'prompt'"),
        ([("pr", ("head", "prompt"))], {}, {"prompt": 1}, "'head' has neither"),
        ([("pr", ("node", "prompt"))], {"node": ["a", "a"]}, {"prompt": 1}, "a label twice"),
        ([("pr", ("node", "prompt"))], {"node": [1]}, {"prompt": 1}, "labels are non-empty strings"),
        ([("pr", ("node", "prompt"))], {"node": []}, {"prompt": 1}, "no labels"),
        ([("pr", ("prompt",)), ("pr", ("prompt",))], {}, {"prompt": 1}, "used twice"),
        ([("../pr", ("prompt",))], {}, {"prompt": 1}, "cannot name a variable"),
        ([("summary", ("prompt",))], {}, {"prompt": 1}, "cannot name a variable"),
        ([("pr", ("prompt",))], {"a/b": ["a"]}, {"prompt": 1}, "cannot name a labelled"),
        ([("pr", ("prompt",))], {}, {"prompt": 0}, "at least 1"),
        ([("pr", ("prompt",))], {}, {"prompt": 1, "node": 2}, "only prompt and position"),
        ([], {}, {"prompt": 1}, "at least one variable"),
        ([("pr", ("prompt",), "str")], {}, {"prompt": 1}, "not a real number type"),
        ([("pr", ("prompt",), "float33")], {}, {"prompt": 1}, "not a real number type"),
    ],
)
def test_layouts_that_cannot_be_stored_are_refused(
    variables: list[tuple[Any, ...]], coords: dict[str, Any], sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(ReproError, match=message):
        Layout(tuple(Variable(*variable) for variable in variables), coords, sizes)


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc", "a\\b", "a\0b", ".hidden", "x" * 65, "a\n"])
def test_names_that_could_leave_the_store_are_refused(tmp_path: Path, name: str) -> None:
    for names in ((name, "e", "k"), ("s", name, "k"), ("s", "e", name)):
        with pytest.raises(ReproError, match="not a valid name of a directory") as caught:
            result_path(tmp_path, *names)
        assert caught.value.code == Exit.USAGE


def test_reserved_names_and_links_out_of_the_store_are_refused(tmp_path: Path) -> None:
    for name in ("committed", "bench"):
        with pytest.raises(ReproError, match="cannot name a subject"):
            result_path(tmp_path, name, "e", "k")
    (tmp_path / "store" / "s").mkdir(parents=True)
    (tmp_path / "away").mkdir()
    (tmp_path / "store" / "s" / "e").symlink_to(tmp_path / "away")
    with pytest.raises(ReproError, match="remove the link"):
        result_path(tmp_path / "store", "s", "e", "k")
    with pytest.raises(ReproError, match="remove the link"):
        open_result(tmp_path / "store" / "s" / "e" / "k", faulty.layout(5), 2, {})
    assert list((tmp_path / "away").iterdir()) == []
    # A store that is itself behind a link is the user's choice.
    (tmp_path / "linked").symlink_to(tmp_path / "store")
    assert result_path(tmp_path / "linked", "t", "e", "k").name == "k"
