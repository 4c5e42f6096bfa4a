"""The command line: help, exit codes, one clear sentence for each thing that is wrong, and nothing lost by it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from repro.errors import Exit
from tests.runs import PAPER, ROOT, SPECS, Answer, Run, cli, contents, environment
from tests.toys import make_native

Finished = Callable[[str], Run]
COMMANDS = ("all", "plan", "run", "figures", "check", "verify", "subjects", "clean")


def only_error(answer: Answer) -> str:
    """The one sentence of a command that refused: on the error stream, without a traceback."""
    (line,) = answer.err.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in answer.text
    return line.removeprefix("error: ")


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
    assert rows["subject"] == "native"
    assert set(rows["items"][0]) == {"experiment", "about", "state", "why", "key", "flop", "bytes"}
    assert "subject: native" in answer.err
    assert json.loads(run.cli("check", "--json").out)["subject"] == "native"
    names = [row["name"] for row in json.loads(cli("subjects", "--spec", PAPER, "--json").out)]
    assert names[:2] == ["gelu-4l", "mini"]


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
        (["--subject", "minni"], "--subject minni: no such subject. Did you mean 'mini'? Declared: gelu-4l, mini; a "),
        (["--spec", "none.toml"], "none.toml: cannot be read as a spec (No such file or directory); name a TOML file"),
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
    answer = cli("run", "writer", *given, "--kernels", "triton")
    assert answer.code == Exit.USAGE
    assert "--kernels triton: " in only_error(answer)
    assert "use" in answer.err or "choose" in answer.err


# ------------------------------------------------------------------------------------------------------------ bad input


def _unknown_head(model: Path) -> list[str]:
    return ["writer = 'L7H2'", "erasers = ['L8H1']"]


def _too_long(model: Path) -> list[str]:
    tokens = np.zeros((3, 65), np.int32)
    save_file({"tokens": tokens}, model / "prompts.safetensors")
    return []


def _outside(model: Path) -> list[str]:
    tokens = load_file(model / "prompts.safetensors")["tokens"]
    tokens[2, 9] = 61
    save_file({"tokens": tokens}, model / "prompts.safetensors")
    return []


def _unreadable(model: Path) -> list[str]:
    (model / "model.safetensors").write_bytes(b"\xff" * 100)
    return []


def _no_configuration(model: Path) -> list[str]:
    (model / "config.json").unlink()
    return []


def _no_prompts(model: Path) -> list[str]:
    (model / "prompts.safetensors").unlink()
    return []


def _gone(model: Path) -> list[str]:
    shutil.rmtree(model)
    return []


def _not_finite(model: Path) -> list[str]:
    weights = load_file(model / "model.safetensors")
    weights["blocks.2.mlp.W_in"][3, 4] = np.inf
    save_file(weights, model / "model.safetensors")
    return []


@pytest.mark.parametrize(
    ("spoil", "code", "sentence"),
    [
        (
            _unknown_head,
            Exit.USAGE,
            "[subject.native] writer: unknown head 'L7H2'; native has layers 0 to 2 with 4 heads each (L0H0 to L2H3)",
        ),
        (
            _too_long,
            Exit.USAGE,
            "{model}/prompts.safetensors: prompts of 65 tokens are longer than the model's context of 64",
        ),
        (
            _outside,
            Exit.UNAVAILABLE,
            "{model}/prompts.safetensors: token id 61 at row 2, position 9 is outside the vocabulary of 61",
        ),
        (_unreadable, Exit.UNAVAILABLE, "{model}: the model cannot be loaded (SafetensorError: "),
        (_no_configuration, Exit.UNAVAILABLE, "{model}/config.json: unreadable model configuration ("),
        (
            _no_prompts,
            Exit.USAGE,
            "{model}/prompts.safetensors: no prompts; a safetensors file with `tokens`, int32 [prompts, positions], "
            "BOS first, is needed",
        ),
        (_gone, Exit.UNAVAILABLE, "[subject.native] model: {model}: no such model folder"),
        (
            _not_finite,
            Exit.UNAVAILABLE,
            "{model}: weights of blocks.2.mlp.W_in are not finite (NaN or infinite)",
        ),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_bad_input_is_one_sentence_and_costs_nothing_that_is_there(
    finished: Finished, tmp_path: Path, spoil: Callable[[Path], list[str]], code: Exit, sentence: str
) -> None:
    run = finished("native").copy(tmp_path / "out")
    model = tmp_path / "native"
    shutil.copytree(run.model, model)
    roles = spoil(model)
    spec = tmp_path / "spec.toml"
    lines = "\n".join([f"[subject.native]\nmodel = '{model}'", *roles])
    spec.write_text(PAPER.read_text() + "\n" + lines + "\n")
    before = contents(tmp_path / "out")
    answer = cli("all", "--spec", spec, "--subject", "native", "--out", tmp_path / "out")
    assert answer.code == code
    assert only_error(answer).startswith(sentence.format(model=model))
    assert contents(tmp_path / "out") == before


def test_a_one_layer_model_is_refused(tmp_path: Path) -> None:
    model = make_native(tmp_path / "flat", n_layers=1)
    answer = cli("all", "--spec", PAPER, "--subject", model, "--out", tmp_path / "out")
    assert answer.code == Exit.USAGE
    assert only_error(answer) == (
        f"{model}/config.json: the model has one layer; erasure needs a writer and a later layer that could erase it"
    )


def test_two_layers_are_enough(tmp_path: Path) -> None:
    model = make_native(tmp_path / "two", n_layers=2)
    answer = cli("run", "--spec", PAPER, "--subject", model, "--out", tmp_path / "out")
    assert answer.code == Exit.OK, answer.text


def test_the_papers_subject_that_is_not_here_is_one_sentence(tmp_path: Path) -> None:
    answer = cli("all", "--spec", PAPER, "--subject", "gelu-4l", "--offline", "--out", tmp_path)
    assert answer.code == Exit.UNAVAILABLE
    assert "NeelNanda/GELU_4L512W_C4_Code" in only_error(answer)
    assert not list(tmp_path.iterdir())


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
    shutil.rmtree(run.store / "writer")
    assert run.cli("clean", "--yes").out == "nothing to remove\n"
    assert (run.store / "v_patch").is_dir()


# ------------------------------------------------------------------------------------------ the other package `kernels`

WHOSE = """
import importlib.util, json
import repro.kernels.reference as ours
theirs = importlib.util.find_spec("kernels")
from transformers.utils import is_kernels_available
print(json.dumps([ours.__name__, ours.__file__, theirs and theirs.origin, is_kernels_available()]))
"""


def whose(folder: Path, *path: Path) -> tuple[str, str, str | None, bool]:
    """Name and file of our kernels, file of the other package, and whether transformers believes it is there."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))}
    found = subprocess.run(
        [sys.executable, "-c", WHOSE], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    name, file, theirs, believed = json.loads(found.stdout)
    return name, file, theirs, believed


@pytest.mark.parametrize("installed", [False, True], ids=["without the wheel", "with the wheel"])
def test_the_other_package_of_that_name_is_never_mistaken_for_ours(tmp_path: Path, installed: bool) -> None:
    wheel = tmp_path / "site"
    (wheel / "kernels").mkdir(parents=True)
    (wheel / "kernels" / "__init__.py").write_text("")
    information = wheel / "kernels-0.10.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.10.0\n")
    name, file, theirs, believed = whose(ROOT, *([wheel] if installed else []))
    assert name == "repro.kernels.reference"
    assert Path(file).resolve() == (ROOT / "kernels" / "reference.py").resolve()
    if installed:
        assert theirs == str(wheel / "kernels" / "__init__.py")
    else:
        assert theirs is None, "from the checkout's root our folder is no regular package of that name"
        assert not believed


def test_a_model_runs_from_the_checkouts_root_with_the_other_package_there(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    wheel = tmp_path / "site"
    (wheel / "kernels").mkdir(parents=True)
    (wheel / "kernels" / "__init__.py").write_text("")
    variables = os.environ | {"PYTHONPATH": str(wheel), "REPRO_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "repro", "run", "writer", "--subject", str(folders["llama"])]
    found = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "out" / "store" / "llama" / "writer").is_dir()


def test_the_environment_of_a_test_is_put_back() -> None:
    before = dict(os.environ)
    with environment(REPRO_TEST_VARIABLE="1", HOME="/nowhere"):
        assert os.environ["REPRO_TEST_VARIABLE"] == "1"
    assert dict(os.environ) == before
