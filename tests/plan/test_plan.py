"""The plan: what is fresh, stale, partial or waiting, and why; what it costs; and that it needs no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repro.errors import Exit, ReproError
from repro.measures import MEASURES
from repro.plan.plan import Plan, Settings, make_plan, select
from repro.request import Request, Workspace
from repro.spec.read import read_spec
from tests.model.test_folder import TL, make
from tests.runs import PAPER, Run, toml
from tests.subjects.test_subjects import write_tokenizer

Finished = Callable[[str], Run]
Entries = dict[str, Any]
SETTINGS = Settings("float32", "torch", "cpu", 4)
RUN: Entries = {"default_subjects": ["toy"], "groups": ["paper"], "paper_subject": "toy"}
NAMED: Entries = {"model": "toy", "writer": "L0H0", "erasers": ["L1H0", "L1H2"]}
NODES: Entries = {"measure": "projection", "of": "nodes", "onto": "$writer"}
EXAMPLE: Entries = {"text": "one two", "answer": "three", "other": "two", "head": "L1H0", "label": "first"}


def world(folder: Path, subject: Entries, **experiments: Entries) -> Workspace:
    """A small spec on a folder model."""
    if not (folder / "toy").exists():
        make(folder / "toy")
    path = folder / "spec.toml"
    tables = {f"experiment.{name}": entries for name, entries in experiments.items()}
    path.write_text(toml({"run": RUN, "subject.toy": subject, **tables, "figure": {}}))
    return Workspace(Request(path), lambda line: None)


def planned(here: Workspace, *names: str, settings: Settings = SETTINGS) -> Plan:
    return make_plan(
        here.loaded, here.choose(ask=False), names or list(here.loaded.spec.experiment), settings, here.store
    )


def refused(action: Callable[[], Any], code: Exit = Exit.USAGE) -> str:
    with pytest.raises(ReproError) as caught:
        action()
    assert caught.value.code == code
    return caught.value.message


def plan_of(run: Run, *options: str | Path, spec: Path = PAPER) -> dict[str, Entries]:
    """`plan --json` by experiment."""
    answer = run.cli("plan", "--json", *options, spec=spec)
    assert answer.code == Exit.OK, answer.text
    return {row["experiment"]: row for row in json.loads(answer.out)["items"]}


# ----------------------------------------------------------------------------------------------------------- selection


def test_nothing_said_is_the_specs_groups_and_their_figures() -> None:
    loaded = read_spec(PAPER, MEASURES)
    experiments, figures = select(loaded, ())
    assert set(experiments) == {
        name for name, entry in loaded.spec.experiment.items() if entry.group in ("roles", "paper", "scan")
    }
    assert len(figures) == 14
    assert select(loaded, ["roles", "paper", "scan"]) == (experiments, figures)


def test_a_figure_pulls_its_experiment_and_an_experiment_its_figures() -> None:
    loaded = read_spec(PAPER, MEASURES)
    assert select(loaded, ["paper_1"]) == (["v_patch"], ["paper_1"])
    assert select(loaded, ["v_patch"]) == (["v_patch"], ["post_3a", "post_3b", "paper_1", "paper_3"])
    assert select(loaded, ["beyond"]) == (["pr_by_position"], ["by_position"])
    assert select(loaded, ["paper_4", "post_5", "dla_scatter"])[0] == ["dla_scatter"]


def test_an_unknown_name_is_refused_with_a_hint() -> None:
    message = refused(lambda: select(read_spec(PAPER, MEASURES), ["post_33"]))
    assert message.startswith(
        "no experiment, figure or group 'post_33'. Did you mean 'post_3b'? Known: writer, erasers, "
    )


# -------------------------------------------------------------------------------------------------------------- states


def test_before_anything_ran_only_the_writer_can_be_looked_for(folders: dict[str, Path], tmp_path: Path) -> None:
    run = Run(folders["native"], tmp_path, None)  # type: ignore[arg-type]
    rows = plan_of(run)
    assert (rows["writer"]["state"], rows["writer"]["why"]) == ("absent", "never computed")
    assert rows["scan"]["state"] == "absent", "it waits for no role"
    others = {name: row for name, row in rows.items() if name not in ("writer", "scan")}
    assert {row["state"] for row in others.values()} == {"waits for roles"}
    assert {row["key"] for row in others.values()} == {None}
    last = run.cli("plan").out.splitlines()[-1]
    assert last.startswith("next: 2 experiments in 1 pass (40 tokens), ")
    assert last.endswith("; 7 more once roles are known")
    assert not list(tmp_path.iterdir()), "planning writes nothing"


def test_what_is_there_is_fresh(finished: Finished) -> None:
    rows = plan_of(finished("native"))
    assert {row["state"] for row in rows.values()} == {"fresh"}
    assert finished("native").cli("plan").out.splitlines()[-1] == "nothing to compute"


def test_what_an_experiment_is_stands_beside_it(finished: Finished) -> None:
    out = finished("native").cli("plan").out
    assert "  v_patch            fresh  the writer taken out of the value input of the erasers' layer" in out


def test_lost_units_make_a_result_partial_and_lost_bytes_make_it_corrupt(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path)
    patch, scatter = run.result("v_patch"), run.result("dla_scatter")
    (patch / "COMMIT").unlink()
    (patch / "units" / "000001.json").unlink()
    (scatter / "COMMIT").write_bytes(b"{}")
    rows = plan_of(run)
    assert (rows["v_patch"]["state"], rows["v_patch"]["why"]) == ("partial 1/2", "")
    assert rows["dla_scatter"]["state"] == "corrupt"
    assert rows["dla_scatter"]["why"].startswith(f"{scatter / 'COMMIT'} is damaged")
    assert {rows[name]["state"] for name in rows if name not in ("v_patch", "dla_scatter")} == {"fresh"}


@pytest.mark.parametrize(
    ("change", "stale", "why"),
    [
        (("title = ", "title = "), set(), ""),
        (('about = "DLA of the writer', 'group = "paper"\nabout = "D'), set(), ""),
        (("prompts = 30", "prompts = 30\ntarget = 'next_token'"), {"dla_scatter"}, "target top2 -> next_token"),
        (("prompts = 30", "prompts = 7"), {"dla_scatter"}, "prompts 8 -> 7, tokens"),
        (("prompts = 30", "prompts = 300"), set(), ""),
        (("prompts_per_unit = 4", "prompts_per_unit = 2"), {"writer", "scan"}, "prompts_per_unit 4 -> 2"),
        (('precision = "float32"', 'precision = "float64"'), {"writer", "scan"}, "precision float32 -> float64"),
    ],
    ids=["nothing", "words", "a field", "fewer prompts", "more than there are", "unit", "precision"],
)
def test_stale_is_what_can_have_other_numbers_and_it_says_why(
    finished: Finished, tmp_path: Path, change: tuple[str, str], stale: set[str], why: str
) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(PAPER.read_text().replace(*change, 1))
    rows = plan_of(finished("native"), spec=spec)
    assert {name for name, row in rows.items() if row["state"] == "stale"} == stale
    for name in stale:
        assert rows[name]["why"] == f"changed: {why}"


@pytest.mark.parametrize(
    ("options", "why"),
    [(["--kernels", "reference"], "kernels torch -> reference"), (["--prompts", "5"], "prompts 8 -> 5, tokens")],
)
def test_options_are_part_of_the_key(finished: Finished, options: list[str], why: str) -> None:
    assert plan_of(finished("native"), *options)["writer"]["why"] == f"changed: {why}"


def test_other_weights_make_another_subject(finished: Finished, tmp_path: Path) -> None:
    run = finished("native")
    model = tmp_path / "native"
    model.mkdir()
    for file in run.model.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "config.json").write_text(json.dumps(json.loads((model / "config.json").read_text()) | {"eps": 1e-4}))
    rows = plan_of(replace(run, model=model))
    assert (rows["writer"]["state"], rows["writer"]["why"]) == ("absent", "never computed")


def test_provenance_that_cannot_be_read_is_no_reason_to_fail(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path)
    for text in ("", "[]", '{"key": 3}'):
        (run.result("writer") / "provenance.json").write_text(text)
        row = plan_of(run, "--kernels", "reference")["writer"]
        assert (row["state"], row["why"]) == ("absent", "never computed with these settings")


# ---------------------------------------------------------------------------------------------------------------- keys


def test_a_key_holds_what_can_change_a_number_and_nothing_else(tmp_path: Path) -> None:
    here = world(tmp_path, NAMED, nodes=NODES)
    item = planned(here).item("nodes")
    assert item.path.parts[-3:-1] == ("toy", "nodes")
    assert len(item.path.name) == 12
    assert set(item.key) == {
        *("experiment", "measure_version", "prompts", "tokens", "weights", "precision", "kernels", "device"),
        *("prompts_per_unit", "torch", "writer", "erasers", "roles"),
    }
    same = planned(
        world(tmp_path, NAMED | {"about": "x"}, nodes=NODES | {"about": "y", "group": "z"}, other=NODES), "nodes"
    )
    assert same.item("nodes").path == item.path
    assert planned(here, settings=replace(SETTINGS, prompts=999)).item("nodes").path == item.path
    others = [
        replace(SETTINGS, precision="float64"),
        replace(SETTINGS, kernels="reference"),
        replace(SETTINGS, device="cuda"),
        replace(SETTINGS, unit=3),
        replace(SETTINGS, prompts=2),
        replace(SETTINGS, kernels="triton"),
        replace(SETTINGS, kernels="triton", products="tf32x3"),
    ]
    elsewhere = replace(SETTINGS, products="tf32x3")
    assert planned(here, settings=elsewhere).item("nodes").path == item.path, "Triton's alone"
    paths = {planned(here, settings=settings).item("nodes").path for settings in others}
    assert len(paths | {item.path}) == 8


def test_a_prompt_that_no_experiment_reads_changes_no_key(tmp_path: Path) -> None:
    """With `prompts = 3`, the fourth prompt may be any."""
    keys = set()
    for last in (1, 2):
        tokens = np.tile(np.arange(16, dtype=np.int32), (4, 1))
        tokens[3, 5] = last
        make(tmp_path / "toy", tokens=tokens)
        keys.add(planned(world(tmp_path, NAMED, nodes=NODES | {"prompts": 3})).item("nodes").path)
    assert len(keys) == 1


# --------------------------------------------------------------------------------------------------------------- roles


def test_named_roles_need_no_experiment_that_finds_them(tmp_path: Path) -> None:
    plan = planned(world(tmp_path, NAMED, nodes=NODES, writer={"measure": "find_writer", "group": "roles"}))
    assert [(item.name, str(item.state)) for item in plan.items] == [("nodes", "absent")]
    assert plan.roles is not None
    assert (plan.roles.writer, plan.roles.layer, plan.roles.source) == ("L0H0", 1, "named")


def test_roles_that_nothing_finds_are_asked_for_by_name(tmp_path: Path) -> None:
    here = world(tmp_path, {"model": "toy"}, nodes=NODES)
    assert refused(lambda: planned(here)) == (
        "[subject.toy] writer: to be found, but no experiment of the spec does so; declare one with "
        'measure = "find_writer", or name the writer'
    )
    here = world(tmp_path, NAMED, dla={"measure": "resampled_dla"})
    assert 'measure = "mine_examples", or name the examples' in refused(lambda: planned(here))


def test_an_experiment_that_needs_roles_pulls_what_finds_them(tmp_path: Path) -> None:
    finders = {"w": {"measure": "find_writer"}, "e": {"measure": "find_erasers"}, "x": {"measure": "mine_examples"}}
    here = world(tmp_path, {"model": "toy"}, nodes=NODES, dla={"measure": "resampled_dla"}, **finders)
    assert [item.name for item in planned(here, "nodes").items] == ["w", "e", "nodes"]
    assert [item.name for item in planned(here, "dla").items] == ["w", "e", "x", "dla"]
    assert [item.name for item in planned(here, "dla").todo] == ["w"]
    assert [item.name for item in planned(here, "w").items] == ["w"]


def test_a_named_writer_leaves_the_erasers_to_be_found(tmp_path: Path) -> None:
    here = world(tmp_path, {"model": "toy", "writer": "L0H3"}, nodes=NODES, e={"measure": "find_erasers"})
    plan = planned(here, "nodes")
    assert [(item.name, str(item.state)) for item in plan.items] == [("e", "absent"), ("nodes", "waits for roles")]
    assert plan.item("e").key["writer"] == "L0H3"


# ---------------------------------------------------------------------------------------- what does not fit the subject


@pytest.mark.parametrize("positions", [[0, 16], [16, -1], [3, -14], [20, 30]])
def test_positions_that_the_prompts_do_not_have_are_refused(tmp_path: Path, positions: list[int]) -> None:
    here = world(tmp_path, NAMED, nodes=NODES | {"positions": positions})
    assert refused(lambda: planned(here)) == (
        f"[experiment.nodes]: positions {positions} do not fit prompts of 16 tokens (positions 0 to 15)"
    )


@pytest.mark.parametrize("positions", [[0, 15], [15, -1], [2, -14], [0, 0]])
def test_positions_that_the_prompts_have_are_taken(tmp_path: Path, positions: list[int]) -> None:
    assert planned(world(tmp_path, NAMED, nodes=NODES | {"positions": positions})).item("nodes").state.kind == "absent"


@pytest.mark.parametrize("layer", [0, 3, -1])
def test_a_layer_that_does_not_read_the_writer_is_refused(tmp_path: Path, layer: int) -> None:
    here = world(tmp_path, NAMED, patch={"measure": "v_patch", "layer": layer})
    assert refused(lambda: planned(here)) == (
        f"[experiment.patch]: layer {layer} cannot be patched: the writer L0H0 is read by layers 1 to 2"
    )


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        ({"answer": "one two"}, Exit.USAGE, "'one two' is 2 tokens of this model; an answer is a single token"),
        ({"text": "one " * 64}, Exit.USAGE, "text of 65 tokens is longer than the model's context of 64"),
    ],
)
def test_an_example_that_does_not_fit_is_named(tmp_path: Path, change: Entries, code: Exit, sentence: str) -> None:
    write_tokenizer(make(tmp_path / "toy", TL) / "tokenizer.json")
    here = world(tmp_path, NAMED | {"examples": [EXAMPLE | change]}, dla={"measure": "resampled_dla"})
    assert refused(lambda: planned(here), code) == f"[subject.toy] example 'first': {sentence}"


def test_examples_as_text_need_a_tokenizer_and_nothing_else_does(tmp_path: Path) -> None:
    here = world(tmp_path, NAMED | {"examples": [EXAMPLE]}, dla={"measure": "resampled_dla"}, nodes=NODES)
    assert refused(lambda: planned(here), Exit.UNAVAILABLE) == (
        "[subject.toy] example 'first': examples given as text need a tokenizer.json in the model's folder"
    )
    assert planned(here, "nodes").item("nodes").state.kind == "absent"


def test_prompts_too_short_to_mine_from_stop_only_what_needs_examples(tmp_path: Path) -> None:
    make(tmp_path / "toy", tokens=np.tile(np.arange(5, dtype=np.int32), (3, 1)))
    finders = {"x": {"measure": "mine_examples"}, "dla": {"measure": "resampled_dla"}}
    here = world(tmp_path, NAMED, nodes=NODES, **finders)
    assert refused(lambda: planned(here, "dla")) == (
        "[experiment.x]: prompts of 5 tokens are too short to mine adversarial examples from; at least 6 are needed, "
        "or name the examples in the spec"
    )
    assert planned(here, "nodes").item("nodes").state.kind == "absent"
