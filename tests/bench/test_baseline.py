"""The baseline computes the runner's numbers, so that comparing their speed is honest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from repro.bench import baseline
from repro.bench import end_to_end as endtoend
from repro.plan.plan import Plan
from repro.request import Request, Workspace
from repro.run.execute import execute
from repro.run.session import Session
from repro.store.result import read_summary

SPEC = Path(__file__).parents[2] / "experiments.toml"
SHAPE = {"d_model": 32, "n_layers": 4, "d_mlp": 64, "d_head": 8, "n_heads": 8, "n_ctx": 48, "d_vocab": 101}
PROMPTS = 5
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Any, Path]:
    """The default spec run on a tiny model of the paper's kind; the library's model of the same weights; the spec."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endtoend, "SHAPE", SHAPE)
        spec = endtoend.make_subject(tmp_path_factory.mktemp("shape"), SPEC, prompts=PROMPTS)
    world = Workspace(Request(spec=spec, subject="shape", only="paper"), lambda line: None)
    plan = world.plan(world.choose(ask=False))
    assert execute(plan, plan.todo, Session(plan.subject, world.settings, 2**31, lambda line: None)) == {}
    return plan, baseline.library_model(plan.subject.folder), spec


def difference(ours: xr.Dataset, theirs: xr.Dataset) -> float:
    """The largest deviation over all variables of the baseline, relative to values above 1."""
    worst = 0.0
    for name, expected in theirs.data_vars.items():
        found = ours[name].sel({dim: expected[dim] for dim in expected.dims})
        off = abs(found - expected) / np.maximum(abs(expected), 1)
        assert not off.isnull().any(), name
        worst = max(worst, float(off.max()))
    return worst


@pytest.mark.parametrize("name", baseline.EXPERIMENTS)
def test_the_numbers_are_the_runners(name: str, run: tuple[Plan, Any, Path]) -> None:
    plan, bridge, _ = run
    item = plan.item(name)
    theirs = baseline.measure(bridge, item, torch.from_numpy(plan.subject.tokens.astype(np.int64)))
    assert theirs.data_vars
    assert difference(read_summary(item.path), theirs) < TOLERANCE


@pytest.mark.parametrize("name", baseline.EXPERIMENTS)
def test_other_prompts_are_seen(name: str, run: tuple[Plan, Any, Path]) -> None:
    plan, bridge, _ = run
    item = plan.item(name)
    moved = torch.from_numpy(np.roll(plan.subject.tokens.astype(np.int64), 1, axis=1))
    assert difference(read_summary(item.path), baseline.measure(bridge, item, moved)) > 10 * TOLERANCE


def test_a_patch_of_another_writer_is_seen(run: tuple[Plan, Any, Path]) -> None:
    plan, bridge, _ = run
    item = plan.item("v_patch")
    other = replace(item.context, roles=replace(item.context.roles, writer="L0H3"))
    tokens = torch.from_numpy(plan.subject.tokens.astype(np.int64))
    theirs = baseline.measure(bridge, replace(item, context=other), tokens)
    assert difference(read_summary(item.path), theirs) > 10 * TOLERANCE


def test_a_child_times_every_experiment(run: tuple[Plan, Any, Path]) -> None:
    row = baseline.child(run[2], 3)
    assert row["prompts"] == 3
    assert list(row["experiment_s"]) == [item.name for item in run[0].items]
    assert row["baseline_s"] == pytest.approx(sum(row["experiment_s"].values()))
    assert row["left_out"] == []
    assert row["peak_bytes"] > row["peak_above_weights_bytes"] >= 0
