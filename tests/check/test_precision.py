"""Precision as a choice: its own key, pass and model, said everywhere, and its effect on every number shown."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from repro.check.compare import Row, check
from repro.check.precision import Effect, Pair, effects, spreads, unpaired
from repro.check.precision_report import markdown
from repro.check.published import read_published
from repro.check.report import Heading
from repro.check.report import markdown as report
from repro.measures import MEASURES, Measure
from repro.measures.base import Context, Stream
from repro.measures.batch import Engine
from repro.measures.roles import ExampleTokens, Roles
from repro.plan.key import key_parts
from repro.plan.plan import Plan, Settings
from repro.run import session as compute
from repro.spec.read import read_spec
from repro.store.result import read_summary
from repro.subjects.access import Access
from repro.subjects.resolve import choose
from tests.plan.test_plan import NAMED, NODES, SETTINGS, planned, world
from tests.published_results import agreeing, far_off, put
from tests.runs import PAPER, ROOT, Answer, Run, lasting

Finished = Callable[[str], Run]
EXPERIMENTS: Mapping[str, Measure] = read_spec(PAPER, MEASURES).spec.experiment
PRECISION = {name: str(entry.variant_of) for name, entry in EXPERIMENTS.items() if entry.group == "precision"}
COMMITTED = ROOT / "store" / "committed" / "mini"
BF16 = {"precision": "bf16"}
HEADING = Heading("toy", True, 8, 40, True)

# ------------------------------------------------------------------------------------------------------ keys and passes


def key_now(experiment: Measure, before: dict[str, Any], precision: str) -> dict[str, Any]:
    """The key of an experiment on the bundled subject under the roles and settings of another key."""
    chosen = choose(read_spec(PAPER, MEASURES), "mini", Access(Path(), offline=True))
    found = "not found" not in before.get("roles", "")
    roles = Roles(before["writer"], tuple(before.get("erasers", ())), found, "auto") if "writer" in before else Roles()
    examples = tuple(
        ExampleTokens(label, tuple(tokens), answer, other, "", "", "", head, prompt)
        for label, tokens, answer, other, head, prompt in before.get("examples", ())
    )
    context = Context(chosen.folder.shape, before["prompts"], chosen.tokens.shape[1], replace(roles, examples=examples))
    settings = {name: before[name] for name in ("kernels", "device", "prompts_per_unit")} | {"precision": precision}
    return key_parts(experiment, context, chosen, settings)


@pytest.mark.parametrize("name", sorted(path.name for path in COMMITTED.iterdir()))
def test_results_of_before_keep_their_keys(name: str) -> None:
    before = json.loads((COMMITTED / name / "provenance.json").read_text())["key"]
    before["torch"] = ".".join(version("torch").split(".")[:2])
    assert key_now(EXPERIMENTS[name], before, "float32") == before
    assert key_now(EXPERIMENTS[name], before, "bf16") == before | BF16


def test_a_precision_that_is_the_runs_is_the_same_result_and_another_is_not(tmp_path: Path) -> None:
    here = world(tmp_path, NAMED, nodes=NODES, same=NODES | {"precision": "float32"}, coarse=NODES | BF16)
    plan = planned(here)
    nodes, same, coarse = (plan.item(name) for name in ("nodes", "same", "coarse"))
    assert nodes.path.name == same.path.name != coarse.path.name
    assert (nodes.precision, same.precision, coarse.precision) == ("float32", "float32", "bf16")
    assert coarse.key == {**nodes.key, **BF16}
    whole = planned(here, settings=replace(SETTINGS, precision="bf16"))
    assert whole.item("nodes").path.name == coarse.path.name
    assert whole.item("same").path.name == nodes.path.name


def test_experiments_share_a_pass_where_they_read_the_same_and_the_runs_precision_is_first(tmp_path: Path) -> None:
    here = world(tmp_path, NAMED, coarse=NODES | BF16, nodes=NODES, also=NODES | BF16, x={"measure": "mine_examples"})

    def passes(settings: Settings) -> dict[Stream, list[str]]:
        plan: Plan = planned(here, "coarse", "nodes", "also", "x", settings=settings)
        return {stream: [item.name for item in group] for stream, group in plan.passes(plan.items).items()}

    found = passes(SETTINGS)
    assert found == {
        Stream(16, "float32"): ["nodes", "x"],
        Stream(16, "bf16"): ["coarse", "also"],
    }
    assert list(map(str, found)) == ["16 tokens", "16 tokens in bf16"]
    assert list(passes(replace(SETTINGS, precision="bf16"))) == [Stream(16, "bf16")]


def test_the_plan_says_what_is_in_another_precision(finished: Finished) -> None:
    run = finished("native")
    answer = run.cli("plan", "--only", "paper,precision")
    assert re.search(r"^absent \(never computed\):(\n  .*)*\n  v_patch_bf16 +in bf16  \[", answer.out, re.MULTILINE)
    assert "next: 7 experiments in 1 pass (40 tokens in bf16), " in answer.out
    rows = json.loads(run.cli("plan", "--only", "paper,precision", "--json").out)["items"]
    assert {row["experiment"] for row in rows if row["precision"] == "bf16"} == set(PRECISION)
    assert "float32" not in answer.out


# ------------------------------------------------------------------------------------------------------------- the run


@pytest.fixture(scope="module")
def both(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Answer, list[str]]:
    """The default spec's results and their variants in bf16: the run, what it said, and the precisions loaded."""
    run = finished("native").copy(tmp_path_factory.mktemp("both"))
    loaded: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        whole = compute.load

        def load(folder: Any, precision: str, *rest: Any, **named: Any) -> Any:
            loaded.append(precision)
            return whole(folder, precision, *rest, **named)

        patch.setattr(compute, "load", load)
        answer = run.cli("all", "--only", "paper,variants,precision")
    assert answer.code == 0, answer.text
    return run, answer, loaded


def test_each_precision_is_loaded_once_and_its_pass_is_never_silent(both: tuple[Run, Answer, list[str]]) -> None:
    _, answer, loaded = both
    assert loaded == ["float32", "bf16"]
    passes = [line for line in answer.out.splitlines() if line.startswith("pass over")]
    assert [" in bf16: " in line for line in passes] == [False, True]
    assert all(name in passes[1] for name in PRECISION)
    assert "passes in bf16 " in answer.out


def test_a_result_says_its_precision_and_float32_goes_without_saying(both: tuple[Run, Answer, list[str]]) -> None:
    run, _, _ = both
    for name, base in PRECISION.items():
        assert read_summary(run.result(name)).attrs["precision"] == "bf16"
        assert "precision" not in read_summary(run.result(base)).attrs
        for one, said in ((name, "bf16"), (base, "float32")):
            provenance = json.loads((run.result(one) / "provenance.json").read_text())
            assert provenance["key"]["precision"] == provenance["environment"]["precision"] == said


def test_what_was_there_is_left_as_it_was(both: tuple[Run, Answer, list[str]], finished: Finished) -> None:
    before = lasting(finished("native").store)
    after = lasting(both[0].store)
    assert {name: after[name] for name in before} == before


def test_the_page_shows_every_pair_and_whose_numbers_they_are(both: tuple[Run, Answer, list[str]]) -> None:
    run, answer, _ = both
    assert "precision.md" in answer.out
    page = (run.figures / "precision.md").read_text()
    assert page.startswith(f"# Precision on {run.subject}\n\nSubject: **{run.subject}**, 8 prompts x 40 positions. ")
    assert f"None can be read on {run.subject}" in page
    document = json.loads((run.figures / "precision.json").read_text())
    (effect,) = document["effects"]
    assert document["missing"] == []
    assert {(pair["variant"], pair["base"]) for pair in effect["pairs"]} == set(PRECISION.items())
    assert {line["experiment"] for line in effect["variables"]} == set(PRECISION.values())
    moved = {line["experiment"]: line["largest"] for line in effect["variables"] if line["variable"] in ("pr", "clean")}
    assert all(0 < largest < 1 for largest in moved.values())
    assert all(line["where"] for line in effect["variables"] if line["largest"])


def test_without_results_in_another_precision_there_is_no_page(finished: Finished) -> None:
    assert not (finished("native").figures / "precision.md").exists()


def test_one_model_is_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = planned(world(tmp_path, NAMED, nodes=NODES)).subject
    session = compute.Session(chosen, SETTINGS, 2**30, print)
    monkeypatch.setattr(session, "_loaded", lambda precision: Engine.__new__(Engine))
    first = weakref.ref(session.engine("float32"))
    assert session.engine("float32") is first()
    assert session.engine("bf16") is session.engines["bf16"]
    assert first() is None


# --------------------------------------------------------------------------------------------------------- the effect

PUBLISHED = read_published()
NUMBERS = {number.id: number for number in PUBLISHED.numbers}


def both_of(change: Callable[[dict[str, xr.Dataset]], None] = lambda results: None) -> dict[str, xr.Dataset]:
    """Results that agree with everything published, and their variants in bf16: the same, but for `change`."""
    before, after = agreeing(), agreeing()
    change(after)
    return before | {variant: after[base].assign_attrs(BF16) for variant, base in PRECISION.items()}


def effect_of(results: dict[str, xr.Dataset], own: bool = True) -> Effect:
    def judge(places: Mapping[str, str]) -> list[Row]:
        shown = {name: results[places.get(name, name)] for name in results}
        return check(shown, subject_is_papers=own, same_prompts=own, resamples=50, tables=not places)

    (effect,) = effects(EXPERIMENTS, results, judge({}), judge, own)
    return effect


@pytest.fixture
def plain_headlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published results are made for `check` and lack what headlines read."""
    monkeypatch.setattr("repro.check.precision.headlines", lambda dataset: {})


@pytest.mark.usefixtures("plain_headlines")
def test_where_nothing_differs_every_difference_is_zero() -> None:
    effect = effect_of(both_of())
    assert len(effect.published) > 1000
    assert {line.difference for line in effect.published} == {0.0}
    assert all(line.verdict_before == line.verdict_after for line in effect.published)
    assert {line.largest for line in effect.variables} == {0.0}
    assert {line.where for line in effect.variables} == {""}
    assert "No verdict changes" in markdown([effect], [], HEADING)


@pytest.mark.usefixtures("plain_headlines")
@pytest.mark.parametrize(("lacking", "only"), [("base", "bf16"), ("variant", "float32")])
def test_a_variable_that_one_precision_lacks_is_named(lacking: str, only: str) -> None:
    results = both_of()
    variant, base = next((variant, base) for variant, base in PRECISION.items() if "pr" in results[base])
    name = base if lacking == "base" else variant
    results[name] = results[name].drop_vars("pr")
    (line,) = [s for s in effect_of(results).variables if s.experiment == base and s.variable == "pr"]
    assert (line.values, line.where) == (0, f"stored at {only} only")


@pytest.mark.usefixtures("plain_headlines")
@pytest.mark.parametrize("name", ["erasers_onto_writer", "patched_heads/L2H5", "reference/L0H2/resid_mid2/upper"])
def test_a_number_that_moves_is_found_and_its_verdict_changes(name: str) -> None:
    number = NUMBERS[name]
    effect = effect_of(both_of(lambda results: put(results, PUBLISHED, number, far_off(number))))
    moved = [line for line in effect.published if line.difference]
    assert name in {line.id for line in moved}
    (line,) = [line for line in moved if line.id == name]
    assert line.difference == pytest.approx(2.0)
    assert line.verdict_before == "match" != line.verdict_after
    assert {line.experiment for line in moved} == {number.experiment}
    (spread,) = [s for s in effect.variables if s.experiment == number.experiment and s.variable == number.variable]
    assert spread.largest == pytest.approx(2.0)
    assert all(label in spread.where for dim, label in number.select.items() if dim != "quantile")
    page = markdown([effect], ["lost"], HEADING)
    assert "the store does not hold both sides: lost" in page
    assert "change**" in page


@pytest.mark.usefixtures("plain_headlines")
def test_on_another_subject_nothing_is_set_beside_the_published() -> None:
    effect = effect_of(both_of(), own=False)
    assert {(line.published, line.verdict_before, line.verdict_after) for line in effect.published} == {(None, "", "")}
    page = markdown([effect], [], replace(HEADING, subject_is_papers=False))
    assert "| figure | quantity | float32 | bf16 | difference |" in page
    assert "erdict" not in page


def test_only_a_variant_that_differs_in_precision_alone_and_is_stored_is_compared(tmp_path: Path) -> None:
    here = world(
        tmp_path,
        NAMED,
        nodes=NODES,
        coarse=NODES | BF16 | {"variant_of": "nodes"},
        wide=NODES | BF16 | {"variant_of": "nodes", "quantiles": [0.1, 0.9]},
        absent=NODES | {"precision": "float64", "variant_of": "nodes"},
    )
    declared = here.loaded.spec.experiment
    one = xr.Dataset({"pr": ("site", [1.0])}, {"site": ["a"]}, {"measure": "v"})
    results = {"nodes": one, "coarse": one.assign_attrs(BF16), "wide": one.assign_attrs(BF16)}
    (effect,) = effects(declared, results, [], lambda places: [], False)
    assert effect.pairs == (Pair("nodes", "coarse", "float32", "bf16"),)
    assert unpaired(declared, [effect]) == ["absent"]
    assert effects(declared, {"nodes": one}, [], lambda places: [], False) == []
    # A run in bf16 as a whole: the two are one and the same.
    same = {"nodes": one.assign_attrs(BF16), "coarse": one.assign_attrs(BF16)}
    assert effects(declared, same, [], lambda places: [], False) == []


PAIR = Pair("base", "other", "float32", "bf16")


def spread_of(one: xr.Dataset, other: xr.Dataset, **names: Any) -> Any:
    (found,) = spreads(PAIR, {"base": one, "other": other})
    return found


def test_a_spread_names_the_largest_difference_and_what_is_undefined() -> None:
    one = xr.Dataset({"pr": (("site", "prompt"), [[1.0, 2.0, np.nan], [4.0, np.nan, 6.0]])}, {"site": ["a", "b"]})
    other = one.copy(deep=True)
    other["pr"].values[1] = [4.5, 5.0, 5.0]
    found = spread_of(one, other)
    assert (found.values, found.undefined, found.median, found.largest) == (4, 1, 0.25, 1.0)
    assert (found.where, found.before, found.after) == ("site b, prompt 2", 6.0, 5.0)
    nothing = xr.full_like(one, np.nan)
    assert spread_of(nothing, nothing).median is None


def test_values_that_do_not_belong_together_are_not_compared() -> None:
    one = xr.Dataset({"density": ("x_bin", [1, 2])}, {"x": ("x_bin", [0.0, 1.0])})
    assert spread_of(one, one).values == 2
    assert spread_of(one, one.assign_coords(x=("x_bin", [0.0, 1.1]))).where == "its bins are its own"
    raw = xr.Dataset({"dla": ("prompt", [1.0, 2.0])})
    assert spread_of(raw, raw).values == 2
    assert spread_of(raw, raw.assign_attrs(quarantined=[3])).where == "other prompts are left out"
    texts = xr.Dataset({"clean": ("example", [1.0])}, {"example": ["a"], "first": ("example", ["yes"])})
    assert spread_of(texts, texts.assign_coords(first=("example", ["no"]))).values == 1, "a prediction is a finding"


def test_the_check_says_what_was_computed_in_another_precision() -> None:
    results = agreeing()
    rows = check(results, subject_is_papers=True, same_prompts=True, resamples=50)
    assert "Computed in" not in report(rows, HEADING)
    coarse = results | {"v_patch": results["v_patch"].assign_attrs(BF16)}
    rows = check(coarse, subject_is_papers=True, same_prompts=True, resamples=50)
    assert "**Computed in bf16**: v_patch." in report(rows, HEADING)
    assert {row.precision for row in rows if row.experiment == "v_patch"} == {"bf16"}
