"""What a plan will cost, and that planning, drawing, checking and cleaning need no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from repro import costs
from repro.costs import item_bytes, item_flop, pass_flop, plan_flop
from tests.runs import PAPER, ROOT, Run
from tests.test_plan import NAMED, NODES, planned, world

Finished = Callable[[str], Run]


def test_costs_are_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    here = world(
        tmp_path, NAMED, nodes=NODES, patch={"measure": "v_patch"}, dla={"measure": "dla_scatter", "prompts": 2}
    )
    plan = planned(here)
    nodes, patch, scatter = (plan.item(name) for name in ("nodes", "patch", "dla"))
    # 15 nodes but the writer, and the erasers' sum; two runs of 7 sites and of 4 heads; the writer and two answers.
    assert item_bytes(nodes) == 4 * 15 * 5 * 16
    assert item_bytes(patch) == 4 * 2 * (7 + 4) * 5 * 16
    assert item_bytes(scatter) == 4 * 3 * 2 * 16
    once = pass_flop(nodes.context.shape, 5, 16)
    assert item_flop(patch) > item_flop(nodes) > 0
    assert plan_flop(plan) == pytest.approx(once + sum(map(item_flop, plan.items))), "one pass serves all three"
    assert costs.total_cost(plan, tmp_path).endswith("time unknown before a first run")
    costs.remember(tmp_path / "new", plan_flop(plan), 2.0, plan)
    assert costs.total_cost(plan, tmp_path / "new").endswith("about 2 s at this machine's last rate")
    costs.remember(tmp_path / "spec.toml", 1.0, 2.0, plan)  # a file in the place of the folder is no error


def test_twice_the_prompts_cost_twice(tmp_path: Path) -> None:
    plans = [planned(world(tmp_path, NAMED, nodes=NODES | {"prompts": count})) for count in (2, 4)]
    assert plan_flop(plans[1]) == 2 * plan_flop(plans[0])


NO_TORCH = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "transformer_lens", "triton"):
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Blocker())
from repro.__main__ import main
import json
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    assert code == 0, (arguments, code)
    print("done", arguments[0])
"""


def test_only_running_needs_torch(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path)
    (run.figures / "post_1_top.svg").unlink()
    spec, out = ["--spec", str(PAPER)], ["--out", str(tmp_path)]
    subject = ["--subject", str(run.model)]
    commands = [
        ["--help"],
        ["plan", *spec, *out, *subject],
        ["figures", *spec, *out, *subject],
        ["check", *spec, *out, *subject],
        ["subjects", *spec],
        ["verify", *spec, *out],
        ["clean", *spec, *out, *subject],
    ]
    found = subprocess.run(
        [sys.executable, "-c", NO_TORCH, json.dumps(commands)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("done ") == len(commands)
    assert "figures: 1 drawn, 13 unchanged" in found.stdout
