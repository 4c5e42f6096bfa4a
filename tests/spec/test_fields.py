"""Every field of the spec is read: flipping it changes a number, a plan, a figure or a listing.

A field without a witness here fails, so that no field can be declared and then forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import xarray as xr
from safetensors.numpy import save_file

from repro.check.variants import variant_pairs
from repro.figures import draw as drawing
from repro.figures.draw import Source
from repro.plan.plan import Plan, make_plan, select
from repro.request import Request, Workspace
from repro.spec.types import Figure, Spec
from repro.store.result import read_summary
from repro.subjects import prompts as hub_prompts
from repro.subjects.access import Access
from repro.subjects.resolve import choose, fetch_subject, listed
from tests.model.test_folder import make
from tests.runs import cli, toml
from tests.spec.test_spec import spec_types
from tests.subjects.test_subjects import write_tokenizer

Entries = dict[str, Any]

# ------------------------------------------------------------------------------------------------ experiments: numbers

PROJECTION: Entries = {"measure": "projection", "of": "sites", "onto": "$writer"}
PATCH: Entries = {"measure": "v_patch"}
RESAMPLED: Entries = {"measure": "resampled_dla"}
SCATTER: Entries = {"measure": "dla_scatter"}
EXAMPLES: Entries = {"measure": "mine_examples"}
PATHS: Entries = {"measure": "path_shares", "stride": 5, "decoys": 8}
ROLES: Entries = {"measure": "role_shares", "stride": 5, "decoys": 8}

CARD: Entries = {"measure": "dla_card", "targets": 4, "count": 3}

COMMON: list[tuple[str, object]] = [("prompts", 5), ("precision", "bf16")]
BANDED: list[tuple[str, object]] = [("quantiles", [0.1, 0.9])]
WINDOWED: list[tuple[str, object]] = [("positions", [3, -2])]

# (type, the experiment before, field, its other value). What is found must differ in more than the field's own echo.
FLIPS: list[tuple[str, Entries, str, object]] = [
    *(("Projection", PROJECTION, *flip) for flip in (*COMMON, *BANDED, *WINDOWED)),
    ("Projection", PROJECTION, "of", "nodes"),
    ("Projection", PROJECTION, "onto", "nodes"),
    ("Projection", PROJECTION, "onto", "MLP1"),
    ("Projection", PROJECTION, "summarise", "by_position"),
    ("Projection", PROJECTION | {"summarise": "by_position"}, "positions", [3, -2]),
    *(("VPatch", PATCH, *flip) for flip in (*COMMON, *BANDED, *WINDOWED)),
    ("VPatch", PATCH | {"layer": 1}, "layer", 2),
    ("VPatch", PATCH, "scale", "recomputed"),
    *(("ResampledDLA", RESAMPLED, *flip) for flip in (*COMMON, *BANDED)),
    ("ResampledDLA", RESAMPLED, "resample", "last_position"),
    *(("DLAScatter", SCATTER, *flip) for flip in (*COMMON, *WINDOWED)),
    ("DLAScatter", SCATTER, "target", "next_token"),
    ("DLAScatter", SCATTER, "v_composition", "same_position"),
    *(("MineExamples", EXAMPLES, *flip) for flip in (*COMMON, *BANDED)),
    ("MineExamples", EXAMPLES, "count", 2),
    *(("PathShares", PATHS, *flip) for flip in COMMON),
    ("PathShares", PATHS, "stride", 3),
    ("PathShares", PATHS, "decoys", 9),
    ("PathShares", PATHS, "seed", 1),
    *(("RoleShares", ROLES, *flip) for flip in COMMON),
    ("RoleShares", ROLES, "stride", 3),
    ("RoleShares", ROLES, "decoys", 9),
    ("RoleShares", ROLES, "seed", 1),
    *(("DLACard", CARD, *flip) for flip in COMMON),
    ("DLACard", CARD, "writers", ["L0H1", "MLP1"]),
    ("DLACard", CARD, "count", 2),
    ("DLACard", CARD, "targets", 5),
    ("DLACard", CARD, "tokens", 20),
]
EXPERIMENT_TYPES = {flip[0] for flip in FLIPS}


def _names() -> dict[str, str]:
    """JSON of an experiment -> its name, each different experiment once."""
    whole = [json.dumps(entry, sort_keys=True) for _, base, key, to in FLIPS for entry in (base, base | {key: to})]
    return {text: f"e{index}" for index, text in enumerate(dict.fromkeys(whole))}


NAMES = _names()


@pytest.fixture(scope="module")
def results(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the result of every experiment of `FLIPS` lies."""
    out = tmp_path_factory.mktemp("fields")
    experiments = {f"experiment.{name}": json.loads(text) | {"group": "fields"} for text, name in NAMES.items()}
    spec = out / "fields.toml"
    spec.write_text(
        toml(
            {
                "run": {"default_subjects": ["named"], "groups": ["fields"], "paper_subject": "named"},
                "subject.named": {"model": str(folders["native"]), "writer": "L0H0", "erasers": ["L1H0", "MLP2"]},
                **experiments,
                "figure": {},
            }
        )
    )
    answer = cli("run", "--spec", spec)
    assert answer.code == 0, answer.text
    found = {path.parent.name: path for path in (out / "store").glob("*/*/*")}
    assert set(found) == set(NAMES.values())
    return found


def numbers(path: Path, *echoes: str) -> tuple[xr.Dataset, Entries]:
    """A summary, and those of its attributes that are findings."""
    summary = read_summary(path)
    told = {"experiment", "provenance", *echoes}
    return summary.drop_attrs(), {key: value for key, value in summary.attrs.items() if key not in told}


@pytest.mark.parametrize(
    ("base", "key", "to"), [flip[1:] for flip in FLIPS], ids=[f"{kind}.{key}" for kind, _, key, _ in FLIPS]
)
def test_a_field_of_an_experiment_changes_what_is_found(
    results: dict[str, Path], base: Entries, key: str, to: object
) -> None:
    echoes = (key, "n_prompts") if key == "prompts" else (key,)
    (before, told), (after, then) = (
        numbers(results[NAMES[json.dumps(entry, sort_keys=True)]], *echoes) for entry in (base, base | {key: to})
    )
    assert not before.identical(after) or told != then


def test_an_experiment_said_twice_is_found_twice_alike(results: dict[str, Path]) -> None:
    """The control: where nothing is flipped nothing differs."""
    path = next(iter(results.values()))
    (before, told), (after, then) = numbers(path), numbers(path)
    assert before.identical(after)
    assert told == then


# ---------------------------------------------------------------------------------------- the rest: plans and listings

RUN: Entries = {"default_subjects": ["toy"], "groups": ["paper"], "paper_subject": "other"}
EXAMPLE: Entries = {"text": "one two", "answer": "three", "other": "two", "head": "L1H0", "label": "first"}
SUBJECT: Entries = {"model": "toy", "writer": "L0H0", "erasers": ["L1H0", "L1H2"], "examples": [EXAMPLE]}
SOURCE: Entries = {"dataset": "owner/data", "rows": 3, "kind": "text"}
TEXTS: Entries = {"text": ["one.txt"], "rows": 2, "length": 3}
RECIPE: Entries = {"sources": [SOURCE], "length": 8, "seed": 1, "buffer": 2}
NODES: Entries = {"measure": "resampled_dla", "about": "what it is"}
FIGURE: Entries = {
    "chart": "patched_heads",
    "experiment": "patch",
    "title": "Patched $writer",
    "labels": {"post": "3b", "paper": "3"},
}


def spec_of(folder: Path, **changes: Entries) -> Workspace:
    """A world on a small spec; changes: the entries of `run`, `subject`, `nodes` that differ."""
    if not (folder / "toy").exists():
        write_tokenizer(make(folder / "toy") / "tokenizer.json")
        write_tokenizer(
            make(folder / "twin", tokens=np.tile(np.arange(1, 17, dtype=np.int32), (5, 1))) / "tokenizer.json"
        )
        weights = (folder / "twin" / "model.safetensors").read_bytes()
        (folder / "twin" / "model.safetensors").write_bytes(weights[:-1] + b"x")
        save_file({"tokens": np.tile(np.arange(2, 11, dtype=np.int32), (7, 1))}, folder / "mine.safetensors")
        (folder / "one.txt").write_text("one two three two three three one one")
        (folder / "two.txt").write_text("three two one")
    path = folder / "spec.toml"
    tables = {
        "run": RUN | changes.get("run", {}),
        "subject.toy": SUBJECT | changes.get("subject", {}),
        "subject.other": SUBJECT | {"model": "twin"},
        "subject.far": {"model": "owner/name", "prompts": RECIPE | changes.get("recipe", {}), **changes.get("far", {})},
        "subject.texts": {"model": "toy", "prompts": TEXTS | changes.get("texts", {})},
        "experiment.nodes": NODES | changes.get("nodes", {}),
        "experiment.also": {"measure": "v_patch"},
        "experiment.further": {"measure": "v_patch", "group": "beyond"},
        "variant.other": {"of": "also", "scale": "recomputed"} | changes.get("variant", {}),
        "figure": {},
    }
    path.write_text(toml(tables))
    return Workspace(Request(path), lambda line: None)


def plan_of(world: Workspace) -> Plan:
    chosen = world.choose(ask=False)
    return make_plan(world.loaded, chosen, ["nodes"], world.settings, world.store)


def key_of(world: Workspace) -> object:
    return plan_of(world).items[0].path


def list_of(world: Workspace) -> object:
    return listed(world.loaded)


def selection_of(world: Workspace) -> object:
    return select(world.loaded, ())


def recipe_of(world: Workspace) -> object:
    """What names the file of frozen prompts."""
    recipe = world.loaded.spec.subject["far"].prompts
    assert isinstance(recipe, hub_prompts.HubPrompts)
    return hub_prompts._canonical(recipe)


def fetched_of(world: Workspace) -> object:
    """What is asked of the hub for a model that lies there."""
    asked: list[object] = []

    def fetch(name: str, **wish: object) -> Path:
        asked.append((name, wish["tokenizer"]))
        return world.loaded.folder / "toy"

    with mock.patch("repro.subjects.hub.fetch_model", fetch):
        fetch_subject(world.loaded, "far", world.loaded.spec.subject["far"], Access(world.loaded.folder / "cache"))
    return asked


def texts_of(world: Workspace) -> object:
    """The tokens of prompts that are plain text."""
    chosen = choose(world.loaded, "texts", Access(world.loaded.folder / "cache", offline=True))
    return chosen.tokens.tolist()


def examples_of(world: Workspace) -> object:
    return plan_of(world).roles.examples


def listing_of(world: Workspace) -> object:
    return cli("plan", "--spec", world.request.spec).out


def variants_of(world: Workspace) -> object:
    return variant_pairs(world.loaded.spec.experiment)


def experiments_of(world: Workspace) -> object:
    return world.loaded.spec.experiment


def verdict_of(world: Workspace) -> object:
    return cli("check", "--spec", world.request.spec).out


def example(**change: str) -> Entries:
    return {"subject": {"examples": [EXAMPLE | change]}}


PLANNED: dict[str, tuple[Entries, Callable[[Workspace], object]]] = {
    "Run.default_subjects": ({"run": {"default_subjects": ["other"]}}, lambda world: world.choose(ask=False).name),
    "Run.groups": ({"run": {"groups": ["beyond"]}}, selection_of),
    "Run.prompts_per_unit": ({"run": {"prompts_per_unit": 3}}, key_of),
    "Run.precision": ({"run": {"precision": "float64"}}, key_of),
    "Run.paper_subject": ({"run": {"paper_subject": "toy"}}, verdict_of),
    "Subject.model": ({"subject": {"model": "twin"}}, lambda world: plan_of(world).items[0].key["weights"]),
    "Subject.prompts": (
        {"subject": {"prompts": "mine.safetensors"}},
        lambda world: plan_of(world).items[0].key["tokens"],
    ),
    "Subject.tokenizer": ({"far": {"tokenizer": "owner/words"}}, fetched_of),
    "Subject.writer": ({"subject": {"writer": "L0H3"}}, key_of),
    "Subject.erasers": ({"subject": {"erasers": ["L1H0"]}}, key_of),
    "Subject.examples": (example(text="two two"), key_of),
    "Subject.about": ({"subject": {"about": "a toy"}}, list_of),
    "Example.text": (example(text="two two"), key_of),
    "Example.answer": (example(answer="one"), key_of),
    "Example.other": (example(other="one"), key_of),
    "Example.head": (example(head="L2H1"), key_of),
    "Example.label": (example(label="second"), examples_of),
    "HubPrompts.sources": ({"recipe": {"sources": [SOURCE, SOURCE]}}, recipe_of),
    "HubPrompts.length": ({"recipe": {"length": 9}}, recipe_of),
    "HubPrompts.seed": ({"recipe": {"seed": 2}}, recipe_of),
    "HubPrompts.buffer": ({"recipe": {"buffer": 3}}, recipe_of),
    "TextPrompts.text": ({"texts": {"text": ["two.txt"]}}, texts_of),
    "TextPrompts.rows": ({"texts": {"rows": 1}}, texts_of),
    "TextPrompts.length": ({"texts": {"length": 2}}, texts_of),
    "HubSource.dataset": ({"recipe": {"sources": [SOURCE | {"dataset": "owner/more"}]}}, recipe_of),
    "HubSource.rows": ({"recipe": {"sources": [SOURCE | {"rows": 4}]}}, recipe_of),
    "HubSource.kind": ({"recipe": {"sources": [SOURCE | {"kind": "code"}]}}, recipe_of),
    "Variant.of": ({"variant": {"of": ["also", "further"]}}, experiments_of),
    "Variant.group": ({"variant": {"group": "beyond"}}, experiments_of),
    "Variant.about": ({"variant": {"about": "otherwise"}}, experiments_of),
    **{f"{kind}.group": ({"nodes": {"group": "beyond"}}, selection_of) for kind in EXPERIMENT_TYPES},
    **{f"{kind}.about": ({"nodes": {"about": "something else"}}, listing_of) for kind in EXPERIMENT_TYPES},
    **{f"{kind}.variant_of": ({"nodes": {"variant_of": "also"}}, variants_of) for kind in EXPERIMENT_TYPES},
    **{f"{kind}.measure": ({"nodes": {"measure": "v_patch"}}, key_of) for kind in EXPERIMENT_TYPES},
}


@pytest.mark.parametrize(
    "field", [name for name in PLANNED if not name.startswith(tuple(EXPERIMENT_TYPES - {"VPatch"}))]
)
def test_a_field_changes_the_plan_or_a_listing(tmp_path: Path, field: str) -> None:
    changes, observe = PLANNED[field]
    before = observe(spec_of(tmp_path))
    assert observe(spec_of(tmp_path)) == before, "the control: the same spec says the same"
    assert observe(spec_of(tmp_path, **changes)) != before


# --------------------------------------------------------------------------------------------------- figures: the chart

DRAWN: dict[str, Entries] = {
    "Figure.chart": {"chart": "patched_sites"},
    "Figure.experiment": {"experiment": "other"},
    "Figure.title": {"title": "Another title"},
    "Figure.labels": {"labels": {}},
    "Figure.options": {"options": {"heads": "erasers"}},
    "Labels.post": {"labels": {"post": "9", "paper": "3"}},
    "Labels.paper": {"labels": {"post": "3b", "paper": "9"}},
}


@pytest.fixture
def charted(results: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Entries], str]:
    """The chart of a figure entry as text, without rendering it."""
    sources = {
        "patch": results[NAMES[json.dumps(PATCH, sort_keys=True)]],
        "other": results[NAMES[json.dumps(PATCH | {"scale": "recomputed"}, sort_keys=True)]],
    }
    charts: list[str] = []

    def keep(chart: Any, out: Path, name: str) -> tuple[Path, ...]:
        charts.append(json.dumps(chart, sort_keys=True))
        return ()

    monkeypatch.setattr(drawing, "_save", keep)

    def draw(entries: Entries) -> str:
        figure = Figure.model_validate(entries)
        drawing._render("figure", figure, Source(sources[figure.experiment]), tmp_path, "toy")
        return charts[-1]

    return draw


@pytest.mark.parametrize("field", list(DRAWN))
def test_a_field_of_a_figure_changes_the_chart(charted: Callable[[Entries], str], field: str) -> None:
    before = charted(FIGURE)
    assert charted(FIGURE) == before
    assert charted(FIGURE | DRAWN[field]) != before


# -------------------------------------------------------------------------------------------------------- no field left


def test_every_field_has_a_witness() -> None:
    declared = {
        f"{kind.__name__}.{name}" for kind in spec_types() if not issubclass(kind, Spec) for name in kind.model_fields
    }
    seen = {f"{kind}.{key}" for kind, _, key, _ in FLIPS} | set(PLANNED) | set(DRAWN)
    assert declared == seen
