"""Reduced copies for git: small, the same bytes each time, and stamped where they are drawn."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from repro.keep import keep
from repro.request import Request, Workspace
from repro.store.result import read_summary
from tests.runs import PAPER, Run, cli


def test_kept_copies_are_small_and_serve_figures(tmp_path: Path, finished: Callable[[str], Run]) -> None:
    run = finished("native")
    spec = tmp_path / "experiments.toml"
    shutil.copy(PAPER, spec)
    shutil.copytree(run.out / "store", tmp_path / "store")
    world = Workspace(Request(spec=spec, subject=str(run.model)), lambda line: None)
    kept = keep(world)
    assert {path.name for path in kept} >= {"sites_onto_nodes", "nodes_onto_writer", "v_patch"}
    before = {path: path.read_bytes() for folder in kept for path in folder.iterdir()}
    assert sum(map(len, before.values())) < 2**20
    keep(world)
    assert {path: path.read_bytes() for path in before} == before
    assert read_summary(kept[0]).attrs["subject"] == run.subject
    shutil.rmtree(tmp_path / "store" / run.subject)
    drawn = cli("figures", "--spec", spec, "--subject", run.model, "--only", "paper_1", "--out", tmp_path / "other")
    assert drawn.code == 0, drawn.text
    svg = (tmp_path / "other" / "paper_figures" / "out" / run.subject / "paper_1.svg").read_text()
    assert "COMMITTED" in svg
