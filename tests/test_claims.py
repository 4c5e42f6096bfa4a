"""Workers share a store without doing anything twice, and nobody ever unlocks by hand."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from repro import claims
from repro.errors import ReproError
from repro.layout import result_path
from repro.store import Result, open_result, pending
from tests import faulty

N_PROMPTS = 9  # five units, the last one short


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return result_path(tmp_path / "store", "mini", "scan", "0123456789ab")


def _open(path: Path, n_prompts: int = N_PROMPTS, unit: int = faulty.UNIT, **provenance: Any) -> Result:
    return open_result(path, faulty.layout(n_prompts), unit, {**faulty.PROVENANCE, **provenance})


def test_one_pass_feeds_several_results(path: Path, tmp_path: Path) -> None:
    with _open(path) as first, _open(path.with_name("second"), n_prompts=5) as second:
        first.write_unit(1, faulty.measure(first.layout, first.unit_slice(1)))
        seen = {}
        for i, lacking in pending([first, second]):
            seen[i] = [result.path.name for result in lacking]
            for result in lacking:
                result.write_unit(i, faulty.measure(result.layout, result.unit_slice(i)))
        assert seen == {
            0: [path.name, "second"],
            1: ["second"],
            2: [path.name, "second"],
            3: [path.name],
            4: [path.name],
        }
        assert first.missing() == second.missing() == []
        with _open(path.with_name("third"), unit=3) as third, pytest.raises(ReproError, match="different units"):
            next(pending([first, third]))


def test_a_unit_that_failed_is_not_offered_again(path: Path) -> None:
    with _open(path) as result:
        done = []
        for i, _ in pending([result]):
            if i != 2:
                result.write_unit(i, faulty.measure(result.layout, result.unit_slice(i)))
            done.append(i)
        assert done == [0, 1, 2, 3, 4]
        assert result.missing() == [2]
        assert not list((path / "units").glob("*.claim"))


def test_a_claim_keeps_others_out_until_it_ends(path: Path) -> None:
    arrays = faulty.measure(faulty.layout(N_PROMPTS), slice(0, 2))
    with _open(path) as one, _open(path) as two:
        assert one.claim(0)
        assert one.claim(0)
        assert not two.claim(0)
        with pytest.raises(ReproError, match=rf"unit 0 is held by process {os.getpid()}"):
            two.write_unit(0, arrays)
        two.release(0)
        assert not two.claim(0)
        one.release(0)
        assert two.claim(0)
        assert two.write_unit(0, arrays)
        assert not one.claim(0)
        assert two.claim(1)
        two.close()
        assert one.claim(1)


def _claim(result: Result, **changes: Any) -> Path:
    """A claim on unit 0 by a process that never was."""
    assert result.claim(0)
    file = result.path / "units" / "0.claim"
    file.write_text(json.dumps({**json.loads(file.read_text()), "token": "another", **changes}))
    return file


@pytest.mark.parametrize(
    ("changes", "expired"),
    [
        ({}, False),
        ({"pid": 2**22 + 1}, True),
        ({"started": "1"}, True),
        ({"boot": "before"}, True),
        ({"host": "elsewhere"}, False),
        ({"namespace": "another container"}, False),
    ],
)
def test_claims_of_dead_processes_expire(path: Path, changes: dict[str, Any], expired: bool) -> None:
    with _open(path) as result, _open(path) as other:
        file = _claim(result, **changes)
        assert other.claim(0) == expired
        if not expired and changes:
            long_ago = time.time() - claims.LEASE_S - 1
            os.utime(file, (long_ago, long_ago))
            assert other.claim(0)
        # Whoever lost a claim writes nothing.
        if expired:
            assert not result._claims.holds("0")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', "null"])
def test_torn_claims_expire(path: Path, content: str) -> None:
    with _open(path) as result:
        (path / "units" / "0.claim").write_text(content)
        assert result.claim(0)
