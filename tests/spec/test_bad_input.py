"""What users get wrong: one sentence for each, the exit code that says whose move it is, and nothing lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from repro.errors import Exit
from repro.measures import MEASURES
from repro.spec.read import read_spec
from tests.runs import PAPER, Run, cli, contents, only_error, spoil
from tests.toys import make_native

Finished = Callable[[str], Run]


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
    (model / "model.safetensors").write_bytes(b"\xff" * 100_000)
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
    spoil(model)
    return []


@pytest.mark.parametrize(
    ("damage", "code", "sentence"),
    [
        (
            _unknown_head,
            Exit.USAGE,
            "[subject.native] writer: unknown node 'L7H2'; native has layers 0 to 2 with 4 heads each (L0H0 to L2H3, "
            "and MLP0 to MLP2)",
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
        (_unreadable, Exit.UNAVAILABLE, "{model}/model.safetensors: not a safetensors file"),
        (_no_configuration, Exit.UNAVAILABLE, "{model}/config.json: unreadable model configuration ("),
        (
            _no_prompts,
            Exit.UNAVAILABLE,
            "{model}: no tokenizer.json, so that plain text cannot be tokenised; put the model's tokenizer.json there "
            "or prompts.safetensors with `tokens`, int32 [prompts, positions], BOS first",
        ),
        (_gone, Exit.UNAVAILABLE, "[subject.native] model: {model}: model directory not found"),
        (
            _not_finite,
            Exit.UNAVAILABLE,
            "{model}: weights of blocks.1.attn.W_O are not finite (NaN or infinite)",
        ),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_bad_input_is_one_sentence_and_costs_nothing_that_is_there(
    finished: Finished, tmp_path: Path, damage: Callable[[Path], list[str]], code: Exit, sentence: str
) -> None:
    run = finished("native").copy(tmp_path / "out")
    model = tmp_path / "native"
    shutil.copytree(run.model, model)
    roles = damage(model)
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


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ('"C:\\models\\mine"', "not TOML: Unescaped '\\' in a string (column "),
        ('"C:\\Users\\me"', "not TOML: Invalid hex value (column "),
        ('"..\\models"', "not TOML: Unescaped '\\' in a string (column "),
        ('"C:\\new\\table"', "allowed: text without the control character '\\n'"),
    ],
)
def test_a_path_of_windows_in_double_quotes_is_told_how_to_be_written(tmp_path: Path, given: str, reason: str) -> None:
    spec = tmp_path / "spec.toml"
    text = PAPER.read_text() + "\n[subject.mine]\nmodel = {}\n"
    spec.write_text(text.replace("= {}\n", f"= {given}\n"))
    said = only_error(cli("plan", "--spec", spec, "--out", tmp_path / "out"))
    assert said.startswith(f"{spec}:{spec.read_text().splitlines().index(f'model = {given}') + 1}: ")
    assert reason in said
    assert said.endswith(
        ". In double quotes a backslash begins an escape: write a path of Windows in single quotes, or with /"
    )
    spec.write_text(text.replace("= {}\n", f"= {given}\n".replace('"', "'")))
    assert read_spec(spec, MEASURES).spec.subject["mine"].model == given.strip('"')
