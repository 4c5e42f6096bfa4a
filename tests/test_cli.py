"""The command line: help, exit codes, one clear sentence for each thing that is wrong, and nothing lost by it."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from repro.errors import Exit
from repro.files import load, sealed, write_durably
from tests.runs import PAPER, ROOT, SPECS, Run, cli, only_error

Finished = Callable[[str], Run]
COMMANDS = ("all", "plan", "run", "figures", "check", "verify", "subjects", "clean")


# ---------------------------------------------------------------------------------------------------------------- help


def test_help_names_every_command_and_none_that_is_missing() -> None:
    answer = cli("--help")
    assert answer.code == Exit.OK
    listed = [line.split()[0] for line in answer.out.split("Commands:")[1].splitlines() if line.startswith("  ")]
    assert set(COMMANDS) <= set(listed)
    for command in listed:
        assert cli(command, "--help").code == Exit.OK


def test_help_answers_at_once() -> None:
    """Under half a second of processor time, best of three; the wall clock of a shared machine proves nothing."""
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = subprocess.run([sys.executable, "-m", "repro", "--help"], cwd=ROOT, capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert found.returncode == 0
        spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(spent) < 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["plan", "--nonsense"],
        ["plan", "--prompts", "0"],
        ["plan", "--prompts", "many"],
        ["verify", "extra"],
    ],
    ids=" ".join,
)
def test_what_no_command_takes_is_a_usage_error(arguments: list[str]) -> None:
    assert cli(*arguments).code == Exit.USAGE


# ------------------------------------------------------------------------------------------------------- machine output


def test_json_is_all_that_machines_are_told(finished: Finished) -> None:
    run = finished("native")
    answer = run.cli("plan", "--json")
    rows = json.loads(answer.out)
    assert rows["subject"] == run.subject
    assert set(rows["items"][0]) == {"experiment", "about", "precision", "state", "why", "key", "flop", "bytes"}
    assert f"subject: {run.subject}" in answer.err
    assert json.loads(run.cli("check", "--json").out)["subject"] == run.subject
    names = [row["name"] for row in json.loads(cli("subjects", "--spec", PAPER, "--json").out)]
    assert names[:3] == ["gelu-4l", "smollm2", "mini"]


def test_subjects_are_listed_with_what_is_here() -> None:
    lines = {line.split()[0]: line for line in cli("subjects", "--spec", PAPER).out.splitlines()}
    assert " here " in lines["mini"]
    assert " not here " in lines["gelu-4l"]
    assert "the paper's own model and prompts, from the hub" in lines["gelu-4l"]


def test_the_defaults_fall_back_loudly(tmp_path: Path) -> None:
    answer = cli("plan", "--spec", PAPER, "--out", tmp_path)
    assert answer.code == Exit.OK
    assert answer.out.splitlines()[0].startswith("subject: mini (bundled")
    assert answer.out.splitlines()[1].startswith("NOT THE PAPER'S SUBJECT: gelu-4l cannot be had here (")
    assert "; smollm2 cannot be had here (" in answer.out.splitlines()[1]
    assert answer.out.splitlines()[1].endswith("; showing mini instead")


# ------------------------------------------------------------------------------------------------------------ bad usage


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--device", "cuda"], "--device cuda: torch sees no CUDA or ROCm device here; use --device cpu"),
        (["--device", "tpu"], "--device tpu: allowed are auto, cpu and cuda"),
        (["--kernels", "fast"], "--kernels fast: allowed are auto, triton, torch and reference"),
        (["--memory", "lots"], "--memory lots: give a size such as 2GiB or 512MiB"),
        (["--only", "post_7"], "no experiment, figure or group 'post_7'. Did you mean 'post_5'? Known: "),
        (["--subject", "minni"], "--subject minni: no such subject. Did you mean 'mini'? Declared: gelu-4l, smollm2, "),
        (["--spec", "none.toml"], "none.toml: no such file; name a spec with --spec; the paper's is "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_is_told_before_anything_is_computed(
    folders: dict[str, Path], tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    if arguments[1] == "cuda" and any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("there is a card here")
    answer = cli("all", "--spec", PAPER, "--subject", folders["native"], "--out", tmp_path, *arguments)
    assert answer.code == Exit.USAGE
    said = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert said[0].removeprefix("error: ").startswith(sentence)
    assert not list(tmp_path.iterdir())


def test_every_problem_of_a_spec_is_a_line_of_its_own() -> None:
    answer = cli("plan", "--spec", SPECS / "refused" / "wrong_types.toml")
    assert answer.code == Exit.USAGE
    lines = answer.err.splitlines()
    assert len(lines) > 10
    assert all(line.startswith(f"error: {SPECS / 'refused' / 'wrong_types.toml'}:") for line in lines)


@pytest.mark.parametrize("place", ["file", "proc"])
def test_a_root_that_cannot_be_written_is_told_before_computing(
    folders: dict[str, Path], tmp_path: Path, place: str
) -> None:
    out = Path("/proc/nowhere") if place == "proc" else tmp_path / "file"
    if place == "file":
        out.write_text("keep me")
    answer = cli("all", "--spec", PAPER, "--subject", folders["native"], "--out", out)
    assert answer.code == Exit.USAGE
    assert only_error(answer).startswith(f"--out {out}: ")
    assert "pass over" not in answer.out
    if place == "file":
        assert out.read_text() == "keep me"


def test_triton_on_a_cpu_is_refused_and_never_replaced(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    given = ("--spec", PAPER, "--subject", folders["native"], "--out", tmp_path, "--device", "cpu")
    answer = cli("run", "scan", *given, "--kernels", "triton")
    assert answer.code == Exit.USAGE
    assert "--kernels triton: " in only_error(answer)
    assert "use" in answer.err or "choose" in answer.err


# ---------------------------------------------------------------------------------------------------------------- clean


def test_clean_shows_first_and_removes_only_what_the_spec_no_longer_uses(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path / "out")
    assert run.cli("clean").out == "nothing to remove\n"
    spec = tmp_path / "spec.toml"
    spec.write_text(PAPER.read_text().replace("prompts = 30", "prompts = 6", 1))
    assert cli("run", "dla_scatter", "--spec", spec, "--subject", run.model, "--out", run.out).code == Exit.OK
    (old,) = finished("native").result("dla_scatter").relative_to(finished("native").out).parts[-1:]
    shown = cli("clean", "--spec", spec, "--subject", run.model, "--out", run.out)
    place = run.store / "dla_scatter" / old
    assert shown.out.splitlines() == [f"would remove {place}", "nothing was removed; say --yes to remove"]
    assert place.is_dir()
    removed = cli("clean", "--spec", spec, "--subject", run.model, "--out", run.out, "--yes")
    assert removed.out.splitlines() == [f"removed {place}"]
    assert not place.exists()
    assert len(list((run.store / "dla_scatter").iterdir())) == 1


def test_clean_keeps_what_may_be_used_once_roles_are_known(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path)
    shutil.rmtree(run.store / "scan")
    assert run.cli("clean", "--yes").out == "nothing to remove\n"
    assert (run.store / "v_patch").is_dir()


def test_clean_leaves_what_another_spec_computed_under_the_same_name(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path)
    theirs = run.store / "dla_scatter" / "0123456789ab"
    shutil.copytree(run.result("dla_scatter"), theirs)
    body = load(theirs / "provenance.json") or {}
    for change in ({"subject": "another"}, {"model": "elsewhere", "key": {**body["key"], "weights": "0" * 64}}):
        write_durably(theirs / "provenance.json", sealed({**body, **change}))
        assert run.cli("clean", "--yes").out == "nothing to remove\n"
    (theirs / "provenance.json").unlink()
    assert run.cli("clean", "--yes").out == "nothing to remove\n"
    write_durably(theirs / "provenance.json", sealed(body))
    assert run.cli("clean", "--yes").out == f"removed {theirs}\n"
