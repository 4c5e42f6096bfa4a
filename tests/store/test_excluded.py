"""Prompts on which the model overflows: left out of every number, told, and the others keep their bits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from repro.errors import Exit, ReproError
from repro.measures import DLAScatter, Measure, MineExamples, Projection, ResampledDLA, VPatch
from repro.measures.reduce import summarise
from repro.measures.roles import ExampleTokens
from repro.model.folder import read_folder
from repro.model.load import _probe
from repro.store.excluded import excluded_prompts, kept, left_out_line
from repro.store.layout import Layout
from repro.store.result import read_raw, read_summary
from tests.runs import PAPER, Answer, Run, cli, notes, tree
from tests.scenes import ROLES, Scene, model, prompts, single_precision
from tests.toys import VOCAB, make_native

EXAMPLES = (
    ExampleTokens("one", (0, 7, 3, 9), 4, 9, "text", " four", " nine"),
    ExampleTokens("two", (0, 5, 8), 2, 3, "other text", " two", " three"),
)

# --------------------------------------------------------------------------------------------- what is left of a result


class Arrays:
    """A result's raw arrays in memory."""

    def __init__(self, declared: Layout, arrays: Mapping[str, np.ndarray]) -> None:
        self.layout, self.arrays = declared, arrays

    def read(self, variable: str, **isel: int | slice) -> np.ndarray:
        """Part of a variable."""
        return self.arrays[variable][tuple(isel.get(dim, slice(None)) for dim in self.layout.variable(variable).dims)]

    def iter_blocks(self, variable: str) -> Iterator[tuple[dict[str, slice], np.ndarray]]:
        """One block for every label of the first labelled dimension."""
        dims = [dim for dim in self.layout.variable(variable).dims if dim in self.layout.coords]
        for index in range(len(self.layout.coords[dims[0]])):
            block = {dim: slice(None) for dim in dims} | {dims[0]: slice(index, index + 1)}
            yield block, self.read(variable, **block)


LEFT_OUT = (1, 3)
MEASURES: list[Measure] = [
    Projection(measure="projection", of="sites", onto="nodes"),
    Projection(measure="projection", of="nodes", onto="$writer", positions=(1, -2)),
    Projection(measure="projection", of="sites", onto="$writer", summarise="by_position"),
    VPatch(measure="v_patch"),
    ResampledDLA(measure="resampled_dla"),
    DLAScatter(measure="dla_scatter"),
    MineExamples(measure="mine_examples", count=3),
]


@pytest.mark.parametrize("experiment", MEASURES, ids=lambda e: f"{e.measure}-{getattr(e, 'summarise', '')}")
def test_a_summary_does_not_see_what_is_left_out(experiment: Measure) -> None:
    # 5 prompts of which two are left out, against the summary of the other three alone.
    shown = Scene(single_precision(model("native")), ROLES["native"], prompts(5, 12), EXAMPLES)
    others = [0, 2, 4]
    alone = replace(shown, tokens=shown.tokens[others])
    context, few = shown.context, alone.context
    once = shown.prepared(experiment)
    declared = experiment.layout(context)
    arrays = {}
    for variable in declared.variables:
        whole = shown.compute(experiment)[variable.name].astype(variable.dtype)
        axis = variable.dims.index("prompt")
        spoilt = np.moveaxis(whole, axis, 0).copy()
        spoilt[list(LEFT_OUT)] = np.nan if whole.dtype.kind == "f" else -1
        arrays[variable.name] = np.moveaxis(spoilt, 0, axis)
    cut = {v.name: np.delete(arrays[v.name], LEFT_OUT, v.dims.index("prompt")) for v in declared.variables}

    def words(token: int) -> str:
        return f"<{token}>"

    ours = summarise(experiment, context, Arrays(declared, arrays), once, words, LEFT_OUT)
    theirs = summarise(experiment, few, Arrays(experiment.layout(few), cut), once, words)
    xr.testing.assert_identical(ours.drop_attrs(), theirs.drop_attrs())
    assert ours.attrs.pop("quarantined") == list(LEFT_OUT)
    assert ours.attrs.pop("n_prompts") == 5
    assert theirs.attrs.pop("n_prompts") == 3
    assert "quarantined" not in theirs.attrs
    if "mined" in ours.attrs:
        mined = [json.loads(dataset.attrs.pop("mined")) for dataset in (ours, theirs)]
        assert [item["prompt"] for item in mined[0]] == [others[item["prompt"]] for item in mined[1]]
    assert str(ours.attrs) == str(theirs.attrs)
    seen = summarise(experiment, context, Arrays(declared, arrays), once, words)
    same = seen.drop_attrs().identical(ours.drop_attrs())
    assert not (same and seen.attrs.get("nan_count") == ours.attrs.get("nan_count")), "the control: NaN would show"


def test_nothing_left_is_one_sentence() -> None:
    shown = Scene(single_precision(model("native")), ROLES["native"], prompts(2, 12))
    experiment = MEASURES[0]
    raw = Arrays(experiment.layout(shown.context), shown.compute(experiment))
    with pytest.raises(ReproError) as caught:
        summarise(experiment, shown.context, raw, {}, str, (0, 1))
    assert caught.value.code == Exit.FAILED
    assert caught.value.message.startswith("the model's activations are not finite on any prompt")


def test_many_prompts_are_told_briefly() -> None:
    assert left_out_line([17]) == "left out: prompt 17, on which the model's activations are not finite"
    assert left_out_line(range(20)).startswith("left out: prompts 0, 1, 2, 3, 4, 5, 6, 7 and 12 more, on which")


# ------------------------------------------------------------------------------------------------ prompts that overflow

BAD_PROMPT, PLACE, BEYOND_MINING = 5, 7, 37


def overflowing(folder: Path) -> tuple[Path, int]:
    """A model whose first MLP overflows on one token id and does nothing unusual on any other; and that id.

    One neuron reads one direction, along which only that token points far enough to pass its threshold, and writes
    values so large that they leave float32.
    """
    make_native(folder, act_fn="relu")
    token = min(set(range(1, VOCAB)) - set(_probe(read_folder(folder)).flatten().tolist()))
    weights = load_torch(folder / "model.safetensors")
    along = torch.tensor([1.0, -1.0] * 16) / 32**0.5
    weights["embed.W_E"][token] = 1000 * along
    weights["blocks.0.ln2.w"][:], weights["blocks.0.ln2.b"][:] = 1, 0
    weights["blocks.0.mlp.W_in"][:, 0], weights["blocks.0.mlp.b_in"][0] = 100 * along, -500
    weights["blocks.0.mlp.W_out"][0] = 3e37 * torch.tensor([1.0, -1.0] * 16)
    save_torch(weights, folder / "model.safetensors")
    put(folder, token, {})
    return folder, token


def put(folder: Path, token: int, places: Mapping[int, int]) -> None:
    """Takes the token out of the prompts, but for some {prompt: position}."""
    tokens = load_file(folder / "prompts.safetensors")["tokens"]
    tokens[tokens == token] = token + 1 if token + 1 < VOCAB else token - 1
    for prompt, position in places.items():
        tokens[prompt, position] = token
    save_file({"tokens": tokens}, folder / "prompts.safetensors")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    return overflowing(tmp_path_factory.mktemp("overflow") / "toy")


def run_with(toy: tuple[Path, int], out: Path, places: Mapping[int, int], *only: str) -> Run:
    """`run` on the toy model under named roles, the token standing at some {prompt: position}."""
    folder = shutil.copytree(toy[0], out / "model")
    put(folder, toy[1], places)
    roles = 'writer = "L0H1"\nerasers = ["L2H0", "L2H3"]\n'
    (out / "experiments.toml").write_text(f'{PAPER.read_text()}\n[subject.toy]\nmodel = "{folder}"\n{roles}')
    return Run(Path("toy"), out, cli("run", *only, "--spec", out / "experiments.toml", "--subject", "toy"))


def again(run: Run, command: str, *arguments: str) -> Answer:
    """Another command on the same run."""
    return run.cli(command, *arguments, spec=run.out / "experiments.toml")


@pytest.fixture(scope="module")
def spoilt(toy: tuple[Path, int], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in which one prompt overflows."""
    return run_with(toy, tmp_path_factory.mktemp("spoilt"), {BAD_PROMPT: PLACE})


@pytest.fixture(scope="module")
def sound(toy: tuple[Path, int], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same where none does."""
    return run_with(toy, tmp_path_factory.mktemp("sound"), {})


def test_a_prompt_that_overflows_is_left_out_and_told(spoilt: Run, sound: Run) -> None:
    assert sound.answer.code == Exit.OK, sound.answer.text
    assert "left out" not in sound.answer.text
    assert spoilt.answer.code == Exit.FAILED, spoilt.answer.text
    line = f"prompt {BAD_PROMPT}: the model's activations are not finite; left out"
    assert spoilt.answer.out.splitlines().count(line) == 1
    assert left_out_line([BAD_PROMPT]) in spoilt.answer.out.splitlines()
    assert "failed" not in spoilt.answer.text
    for path in spoilt.store.glob("*/*"):
        assert (path / "COMMIT").exists()
        assert excluded_prompts(path) == [BAD_PROMPT]
        assert notes(path) == [{}, {"quarantined": [BAD_PROMPT]}]
        assert read_summary(path).attrs["quarantined"] == [BAD_PROMPT]
        for name, values in read_raw(path).data_vars.items():
            row = values.isel(prompt=BAD_PROMPT)
            assert bool(row.isnull().all() if row.dtype.kind == "f" else (row == -1).all()), name
    assert not any("quarantined" in read_summary(path).attrs for path in sound.store.glob("*/*"))


@pytest.mark.parametrize("name", ["examples", "sites_onto_nodes", "nodes_onto_writer", "v_patch", "dla_scatter"])
def test_the_other_prompts_have_the_same_bits(spoilt: Run, sound: Run, name: str) -> None:
    ours, theirs = (read_raw(run.result(name)) for run in (spoilt, sound))
    for variable in theirs.data_vars:
        a, b = (data[variable].drop_isel(prompt=BAD_PROMPT).values for data in (ours, theirs))
        assert a.tobytes() == b.tobytes(), variable
        assert np.isfinite(a).all()
        assert ours[variable].values.tobytes() != theirs[variable].values.tobytes()


def test_reductions_and_intervals_are_over_the_prompts_that_are_there(spoilt: Run) -> None:
    path = spoilt.result("sites_onto_nodes")
    summary, raw = read_summary(path), read_raw(path)
    left = kept(raw, summary.attrs)
    assert left.sizes["prompt"] == 7
    np.testing.assert_allclose(
        summary["pr"].sel(quantile="median"), np.median(left["pr"].values, axis=(2, 3)), rtol=1e-6
    )
    assert not summary["nan_count"].any()
    assert kept(raw, {}).sizes["prompt"] == 8


def test_figures_and_check_say_how_much_there_is(spoilt: Run) -> None:
    assert again(spoilt, "figures", "--only", "post_3a").code == Exit.OK
    assert "PARTIAL 7/8 prompts" in (spoilt.figures / "post_3a.svg").read_text()
    again(spoilt, "check")
    said = f"**PARTIAL 7/8 prompts**: {left_out_line([BAD_PROMPT])}."
    assert said in (spoilt.figures / "check.md").read_text().splitlines()
    assert json.loads((spoilt.figures / "check.json").read_text())["left_out"] == [BAD_PROMPT]


def test_it_stays_told_until_the_prompt_is_gone(spoilt: Run) -> None:
    before = tree(spoilt.store)
    answer = again(spoilt, "run")
    assert answer.code == Exit.FAILED
    assert left_out_line([BAD_PROMPT]) in answer.out.splitlines()
    assert "pass over" not in answer.out
    assert tree(spoilt.store) == before
    without = again(spoilt, "run", "--prompts", str(BAD_PROMPT))
    assert without.code == Exit.OK, without.text
    assert "left out" not in without.text


def test_a_pass_that_ends_before_the_place_keeps_the_prompt(toy: tuple[Path, int], tmp_path: Path) -> None:
    run = run_with(toy, tmp_path, {BAD_PROMPT: BEYOND_MINING}, "examples", "v_patch")
    assert run.answer.code == Exit.FAILED
    assert excluded_prompts(run.result("examples")) == []
    assert excluded_prompts(run.result("v_patch")) == [BAD_PROMPT]


def test_where_every_prompt_overflows_an_experiment_fails_in_one_sentence(
    toy: tuple[Path, int], tmp_path: Path
) -> None:
    run = run_with(toy, tmp_path, dict.fromkeys(range(8), PLACE), "v_patch")
    assert run.answer.code == Exit.FAILED
    assert "v_patch failed: the model's activations are not finite on any prompt, so that there is " in run.answer.out
    assert "Traceback" not in run.answer.text
    assert not (run.result("v_patch") / "COMMIT").exists()
