"""Runs that are interrupted, fail in one experiment, or meet damage: nothing is lost, the rest is done later."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from repro.errors import Exit
from repro.measures import MineExamples, VPatch
from repro.run.loop import UnitArrays
from repro.run.session import Work
from repro.store.result import read_summary
from tests.runs import PAPER, Run, cli, contents, lasting

Finished = Callable[[str], Run]


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(
    folders: dict[str, Path], finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folders["native"]
    real, calls = Work.unit, []

    def interrupted(self: Work, unit: int, names: list[str]) -> dict[str, UnitArrays]:
        calls.append(unit)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, unit, names)

    monkeypatch.setattr(Work, "unit", interrupted)
    out = ("--spec", PAPER, "--subject", model, "--out", tmp_path)
    first = cli("run", *out)
    assert first.code == Exit.INTERRUPTED
    assert "interrupted; what was committed is kept, run the same command again to go on" in first.err
    monkeypatch.undo()
    rows = json.loads(cli("plan", *out, "--json").out)["items"]
    states = {row["experiment"]: row["state"] for row in rows}
    assert states["examples"] == "partial 1/2"
    assert list((tmp_path / "store").glob("*/scan/*/COMMIT")), "the scan was whole before"
    kept = contents(tmp_path / "store")
    shown = cli("clean", *out).out
    assert shown.strip() == "nothing to remove", "unfinished work is not to be cleaned away"
    second = cli("run", *out)
    assert second.code == Exit.OK, second.text
    after = contents(tmp_path / "store")
    units = [name for name in kept if "/units/" in name and name.endswith(".json")]
    assert units
    assert {name: after[name] for name in units} == {name: kept[name] for name in units}
    assert lasting(tmp_path / "store" / finished("native").subject) == lasting(finished("native").store)


def test_one_failing_experiment_does_not_stop_the_others(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished("native").copy(tmp_path)
    before = contents(run.result("scan"))
    for name in ("v_patch", "nodes_onto_writer"):
        shutil.rmtree(run.store / name)
    monkeypatch.setattr(VPatch, "compute", _fails)
    answer = run.cli("run")
    assert answer.code == Exit.FAILED
    assert "v_patch failed: ValueError: no such thing" in answer.out
    assert read_summary(run.result("nodes_onto_writer")).attrs["measure"] == "projection"
    assert contents(run.result("scan")) == before
    monkeypatch.undo()
    assert run.cli("run").code == Exit.OK
    assert read_summary(run.result("v_patch")).attrs["measure"] == "v_patch"


def _fails(*_: object) -> None:
    raise ValueError("no such thing")


def test_what_needs_no_examples_runs_where_none_can_be_found(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished("native").copy(tmp_path)
    for name in ("examples", "v_patch"):
        shutil.rmtree(run.store / name)
    monkeypatch.setattr(MineExamples, "compute", _fails)
    answer = run.cli("run")
    assert answer.code == Exit.FAILED
    assert "examples failed" in answer.out
    assert re.search(r"^waits for roles.*:\n(  .*\n)*?  resampled_dla", answer.out, re.MULTILINE), answer.out
    assert read_summary(run.result("v_patch")).attrs["measure"] == "v_patch"


def test_a_damaged_result_is_told_and_nothing_else_is_touched(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path)
    chunk = next(path for path in run.result("v_patch").rglob("c.*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(bytes(content))
    found = cli("verify", "--spec", PAPER, "--out", run.out)
    assert found.code == Exit.CORRUPT
    assert str(chunk) in found.out
    summary = run.result("dla_scatter") / "data.zarr" / "summary" / "zarr.json"
    summary.write_bytes(summary.read_bytes()[:-3])
    rows = {row["experiment"]: row for row in json.loads(run.cli("plan", "--json").out)["items"]}
    assert rows["dla_scatter"]["state"] == "corrupt"
    assert rows["dla_scatter"]["why"] == "data.zarr/summary/zarr.json is missing or has another size"
    before = contents(tmp_path)
    for command in ("figures", "check"):
        answer = run.cli(command)
        assert answer.code == Exit.CORRUPT
        assert answer.err == (
            f"error: {run.result('dla_scatter')} is damaged: data.zarr/summary/zarr.json is missing or has another "
            "size; `python -m repro run` repairs it\n"
        )
    assert contents(tmp_path) == before
    mended = run.cli("run")
    assert mended.code == Exit.OK, mended.text
    assert run.cli("figures").code == Exit.OK
    assert run.cli("run", "v_patch", "--fresh").code == Exit.OK
    assert cli("verify", "--spec", PAPER, "--out", run.out).code == Exit.OK
