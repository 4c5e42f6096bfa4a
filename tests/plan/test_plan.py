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
from repro.files import sealed, write_durably
from repro.measures import MEASURES
from repro.measures.roles import Roles
from repro.plan.cost import cost_line, item_bytes
from repro.plan.plan import Plan, Settings, make_plan, select
from repro.request import Request, Workspace
from repro.scan.record import ScanRecord, save
from repro.spec.read import read_spec
from repro.store.records import FORMAT
from tests.model.test_folder import TL, make
from tests.runs import PAPER, Run, toml
from tests.subjects.test_subjects import write_tokenizer

Finished = Callable[[str], Run]
Entries = dict[str, Any]
SETTINGS = Settings("float32", "torch", "cpu", 4)
RUN: Entries = {"default_subjects": ["toy"], "groups": ["paper"], "paper_subject": "toy"}
NAMED: Entries = {"model": "toy", "writer": "L0H0", "erasers": ["L1H0", "L1H2"]}
SCAN: Entries = {"measure": "path_shares", "decoys": 8}
MINING: Entries = {"measure": "mine_examples"}
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
        name for name, entry in loaded.spec.experiment.items() if entry.group in ("roles", "paper", "answer")
    }
    assert len(figures) == 14
    assert select(loaded, ["roles", "paper", "answer"]) == (experiments, figures)


def test_a_figure_pulls_its_experiment_and_an_experiment_its_figures() -> None:
    loaded = read_spec(PAPER, MEASURES)
    assert select(loaded, ["paper_1"]) == (["v_patch"], ["paper_1"])
    assert select(loaded, ["v_patch"]) == (["v_patch"], ["post_3a", "post_3b", "paper_1", "paper_3"])
    assert select(loaded, ["beyond"]) == (["pr_by_position"], ["by_position"])
    assert select(loaded, ["paper_4", "post_5", "dla_scatter"])[0] == ["dla_scatter"]


def test_an_unknown_name_is_refused_with_a_hint() -> None:
    message = refused(lambda: select(read_spec(PAPER, MEASURES), ["post_33"]))
    assert message.startswith(
        "no experiment, figure or group 'post_33'. Did you mean 'post_3b'? Known: answer, beyond, card, "
    )


# -------------------------------------------------------------------------------------------------------------- states


def test_before_anything_ran_only_the_scan_can_be_computed(folders: dict[str, Path], tmp_path: Path) -> None:
    run = Run(folders["native"], tmp_path, None)  # type: ignore[arg-type]
    rows = plan_of(run)
    assert (rows["scan"]["state"], rows["scan"]["why"]) == ("absent", "never computed")
    others = {name: row for name, row in rows.items() if name != "scan"}
    assert {row["state"] for row in others.values()} == {"waits for roles"}
    assert {row["key"] for row in others.values()} == {None}
    last = run.cli("plan").out.splitlines()[-1]
    assert last.startswith("next: 1 experiment in 1 pass (40 tokens), ")
    assert last.endswith("; 6 more once roles are known")
    assert not list(tmp_path.iterdir()), "planning writes nothing"


def test_what_is_there_is_fresh(finished: Finished) -> None:
    rows = plan_of(finished("native"))
    assert {row["state"] for row in rows.values()} == {"fresh"}
    whole = finished("native")
    assert whole.cli("plan").out.splitlines()[-1] == "nothing to compute"
    *_, last = whole.cli("run", "nodes_onto_writer").out.splitlines()
    assert last == f"stored in {whole.result('nodes_onto_writer').parents[1]}: nodes_onto_writer"


def test_what_an_experiment_is_stands_beside_it(finished: Finished) -> None:
    out = finished("native").cli("plan").out
    assert out.count("fresh:") == 1, "a state is said once"
    assert "  v_patch            the writer taken out of what its erasers read" in out


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
        (("prompts_per_unit = 4", "prompts_per_unit = 2"), {"scan"}, "prompts_per_unit 4 -> 2"),
        (('precision = "float32"', 'precision = "float64"'), {"scan"}, "precision float32 -> float64"),
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
    assert plan_of(finished("native"), *options)["scan"]["why"] == f"changed: {why}"


def test_other_weights_make_another_subject(finished: Finished, tmp_path: Path) -> None:
    run = finished("native")
    model = tmp_path / "native"
    model.mkdir()
    for file in run.model.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "config.json").write_text(json.dumps(json.loads((model / "config.json").read_text()) | {"eps": 1e-4}))
    rows = plan_of(replace(run, model=model))
    assert (rows["scan"]["state"], rows["scan"]["why"]) == ("absent", "never computed")


def test_provenance_that_cannot_be_read_is_no_reason_to_fail(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path)
    for text in ("", "[]", '{"key": 3}'):
        (run.result("scan") / "provenance.json").write_text(text)
        row = plan_of(run, "--kernels", "reference")["scan"]
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


# ---------------------------------------------------------------------------------------------------------------- size


def test_raw_values_beyond_a_bound_are_of_the_first_prompts_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(tmp_path, NAMED, nodes=NODES, all={"measure": "projection", "of": "sites", "onto": "nodes"})
    every = planned(here).item("all")
    assert every.context.n_prompts == 5
    assert "prompts" not in cost_line(every)
    monkeypatch.setattr("repro.plan.plan.RAW_BYTES", item_bytes(every) * 2 // 5)
    monkeypatch.setattr("repro.plan.cost.RAW_BYTES", item_bytes(every) * 2 // 5)
    cut, whole = planned(here).item("all"), planned(here).item("nodes")
    assert (cut.context.n_prompts, cut.key["prompts"]) == (2, 2)
    assert cut.layout is not None
    assert cut.layout.n_prompts == 2
    assert cost_line(cut).endswith(" of the first 2 prompts]")
    assert whole.context.n_prompts == 5, "each experiment by itself"
    monkeypatch.setattr("repro.plan.plan.RAW_BYTES", 1)
    assert planned(here).item("all").context.n_prompts == 1


# --------------------------------------------------------------------------------------------------------------- roles


def test_named_roles_need_no_experiment_that_finds_them(tmp_path: Path) -> None:
    plan = planned(world(tmp_path, NAMED, nodes=NODES, scan=SCAN), "nodes")
    assert [(item.name, str(item.state)) for item in plan.items] == [("nodes", "absent")]
    assert (plan.roles.writer, plan.roles.layers, plan.roles.standing) == ("L0H0", (1,), "named, no scan yet")


def test_a_scan_is_an_experiment_of_its_own_though_roles_are_named(tmp_path: Path) -> None:
    plan = planned(world(tmp_path, NAMED | {"examples": [EXAMPLE]}, nodes=NODES, scan=SCAN, x=MINING))
    assert [item.name for item in plan.items] == ["nodes", "scan"], "what would only find named ones is left out"
    assert "writer" not in plan.item("scan").key


def test_roles_that_nothing_finds_are_asked_for_by_name(tmp_path: Path) -> None:
    here = world(tmp_path, {"model": "toy"}, nodes=NODES)
    assert refused(lambda: planned(here)) == (
        "[subject.toy] writer: to be found, but no experiment of the spec does so; declare one with "
        'measure = "path_shares", or name the writer'
    )
    here = world(tmp_path, NAMED, dla={"measure": "resampled_dla"})
    assert 'measure = "mine_examples", or name the examples' in refused(lambda: planned(here))


def test_an_experiment_that_needs_roles_pulls_what_finds_them(tmp_path: Path) -> None:
    here = world(tmp_path, {"model": "toy"}, nodes=NODES, dla={"measure": "resampled_dla"}, s=SCAN, x=MINING)
    assert [item.name for item in planned(here, "nodes").items] == ["s", "nodes"]
    assert [item.name for item in planned(here, "dla").items] == ["s", "x", "dla"]
    assert [item.name for item in planned(here, "dla").todo] == ["s"]
    assert [item.name for item in planned(here, "s").items] == ["s"]


def test_a_named_writer_leaves_the_erasers_to_be_found(tmp_path: Path) -> None:
    here = world(tmp_path, {"model": "toy", "writer": "L0H3"}, nodes=NODES, s=SCAN, x=MINING)
    plan = planned(here, "nodes")
    assert [(item.name, str(item.state)) for item in plan.items] == [("s", "absent"), ("nodes", "waits for roles")]
    # What needs the writer alone need not wait, and has the same key whatever is found of its erasers.
    mining = planned(here, "x").item("x")
    assert mining.state.kind == "absent"
    assert (mining.key["writer"], mining.key["roles"]) == ("L0H3", "named")


def kept_for(tmp_path: Path, subject: Entries, kept: ScanRecord) -> Plan:
    """The plan where a scan lies in the store, whole, with what is kept of it."""
    here = world(tmp_path, subject, nodes=NODES, s=SCAN, x=MINING)
    scan = planned(here, "s").item("s")
    scan.path.mkdir(parents=True)
    body = {"format": FORMAT, "key": scan.path.name, "copy": True, "files": {}}
    write_durably(scan.path / "COMMIT", sealed(body))
    save(scan.path, kept)
    return planned(here, "nodes", "x")


KEPT = ScanRecord(
    confirmed={},
    asked=frozenset({("L0H3", "")}),
    claimed={"L1H0": ("L2H1", "MLP1"), "L0H3": ("MLP2",), "L0H0": ("L1H0",)},
    erased=("L1H0", "L0H3"),
    candidate=("L0H1", ("L1H1",)),
    strongest={"L0H2": "L2H2"},
)


@pytest.mark.parametrize(
    ("subject", "kept", "roles"),
    [
        ({}, KEPT, Roles("L1H0", ("L2H1", "MLP1"), True, "auto")),
        ({}, replace(KEPT, erased=()), Roles("L0H1", ("L1H1",), False, "auto")),
        ({"writer": "L0H3"}, KEPT, Roles("L0H3", ("MLP2",), True, "auto")),
        ({"writer": "L0H2"}, KEPT, Roles("L0H2", source="auto")),
        ({"writer": "L0H2"}, replace(KEPT, asked=frozenset({("L0H2", "")})), Roles("L0H2", ("L2H2",), False, "auto")),
        ({"writer": "L0H0", "erasers": ["L1H0"]}, KEPT, Roles("L0H0", ("L1H0",), True)),
        ({"writer": "L0H0", "erasers": ["MLP0"]}, KEPT, Roles("L0H0", ("MLP0",), False)),
    ],
    ids=["auto", "candidate", "its erasers", "not confirmed yet", "its strongest", "named, claimed", "not claimed"],
)
def test_roles_are_what_is_kept_of_the_scan(tmp_path: Path, subject: Entries, kept: ScanRecord, roles: Roles) -> None:
    plan = kept_for(tmp_path, {"model": "toy"} | subject, kept)
    assert replace(plan.roles, examples=None) == roles
    item = plan.item("nodes")
    if not roles.erasers:
        assert item.waits
        return
    assert (item.key["writer"], item.key["erasers"]) == (roles.writer, list(roles.erasers))
    # Whether the scan claims named roles changes no number, and no key.
    source = {True: "auto", False: "auto, not found"}[bool(roles.found)] if roles.source == "auto" else "named"
    assert item.key["roles"] == source
    assert plan.item("x").key["roles"] == ("named" if "writer" in subject else source)


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
        ({"text": [1, 61]}, Exit.USAGE, "token id 61 is not one of the model's 61, which are 0 to 60"),
        ({"answer": -1}, Exit.USAGE, "token id -1 is not one of the model's 61, which are 0 to 60"),
        ({"text": []}, Exit.USAGE, "text without a token; give at least one token id"),
    ],
)
def test_an_example_that_does_not_fit_is_named(tmp_path: Path, change: Entries, code: Exit, sentence: str) -> None:
    write_tokenizer(make(tmp_path / "toy", TL) / "tokenizer.json")
    here = world(tmp_path, NAMED | {"examples": [EXAMPLE | change]}, dla={"measure": "resampled_dla"})
    assert refused(lambda: planned(here), code) == f"[subject.toy] example 'first': {sentence}"


def test_examples_may_be_token_ids_with_or_without_a_tokenizer(tmp_path: Path) -> None:
    ids = {"text": [3, 4, 5], "answer": 6, "other": 7}
    here = world(tmp_path, NAMED | {"examples": [EXAMPLE | ids]}, dla={"measure": "resampled_dla"})
    (example,) = planned(here).item("dla").context.examples
    assert (example.tokens[1:], example.answer, example.other) == ((3, 4, 5), 6, 7)
    assert (example.text, example.answer_text) == ("<3><4><5>", "<6>")


def test_examples_as_text_need_a_tokenizer_and_nothing_else_does(tmp_path: Path) -> None:
    here = world(tmp_path, NAMED | {"examples": [EXAMPLE]}, dla={"measure": "resampled_dla"}, nodes=NODES)
    assert refused(lambda: planned(here), Exit.UNAVAILABLE) == (
        "[subject.toy] example 'first': examples given as text need a tokenizer.json in the model's folder"
    )
    assert planned(here, "nodes").item("nodes").state.kind == "absent"


def test_prompts_too_short_to_mine_from_stop_only_what_needs_examples(tmp_path: Path) -> None:
    make(tmp_path / "toy", tokens=np.tile(np.arange(5, dtype=np.int32), (3, 1)))
    finders = {"x": MINING, "dla": {"measure": "resampled_dla"}}
    here = world(tmp_path, NAMED, nodes=NODES, **finders)
    assert refused(lambda: planned(here, "dla")) == (
        "[experiment.x]: prompts of 5 tokens are too short to mine adversarial examples from; at least 6 are needed, "
        "or name the examples in the spec"
    )
    assert planned(here, "nodes").item("nodes").state.kind == "absent"
