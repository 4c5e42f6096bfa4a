"""What a plan will cost, and that planning, drawing, checking and cleaning need no torch."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from repro import computer
from repro.errors import Exit
from repro.plan import cost as costs
from repro.plan.cost import Cost, flop_of, item_bytes, item_flop
from repro.plan.plan import Item, Plan
from repro.run import loop
from repro.store.claims import Claims
from repro.store.records import State
from tests.plan.test_plan import NAMED, NODES, planned, world
from tests.runs import PAPER, ROOT, Run

Finished = Callable[[str], Run]
BF16 = {"precision": "bf16"}


def plan_flop(plan: Plan) -> float:
    """All that can be computed now."""
    return flop_of(plan.todo)


def pass_flop(item: Item) -> float:
    """One clean pass over five prompts of 16 tokens."""
    return 5 * 16 * item.context.shape.flop_per_token(16)


def predict(plan: Plan, folder: Path, *items: Item) -> Cost:
    """What some experiments will take, at whatever precisions; nothing named: all that can be computed now."""
    return sum(costs.predict(plan, folder, items or plan.todo).values(), Cost())


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
    once = pass_flop(nodes)
    assert item_flop(patch) > item_flop(nodes) > 0
    assert plan_flop(plan) == pytest.approx(once + sum(map(item_flop, plan.items))), "one pass serves all three"
    assert costs.total_cost(plan, tmp_path).endswith("time unknown before a first run")
    costs.remember(tmp_path / "new", plan_flop(plan), 2.0, plan.settings, plan.subject, "float32")
    assert costs.total_cost(plan, tmp_path / "new").endswith("about 2.0 s at this machine's last rate")
    costs.remember(
        tmp_path / "spec.toml", 1.0, 2.0, plan.settings, plan.subject, "float32"
    )  # a file in the place of the folder is no error


def test_what_is_there_already_costs_nothing(tmp_path: Path) -> None:
    plan = planned(world(tmp_path, NAMED, nodes=NODES, patch={"measure": "v_patch"}))
    nodes, patch = (replace(plan.item(name), state=State("partial", 3, 4)) for name in ("nodes", "patch"))
    begun, done = replace(plan, items=(nodes, patch)), replace(nodes, state=State("fresh"))
    assert plan_flop(begun) == pytest.approx(plan_flop(plan) / 4)
    assert predict(begun, tmp_path).size == round(predict(plan, tmp_path).size / 4)
    assert costs.cost_line(done) == ""
    assert costs.lacking(done) == 0
    # The pass is as long as the longest of the experiments that share it still needs.
    uneven = replace(plan, items=(nodes, replace(patch, state=State("partial", 2, 4))))
    once = pass_flop(nodes)
    assert plan_flop(uneven) == pytest.approx(once / 2 + item_flop(nodes) / 4 + item_flop(patch) / 2)
    assert predict(plan, tmp_path, nodes).flop == pytest.approx((once + item_flop(nodes)) / 4)


def test_predicted_and_actual_are_said_in_one_line() -> None:
    known = costs.Cost(71.2e12, 410 * 2**20, 84.0)
    assert costs.cost_comparison(known, 88.0, 395 * 2**20) == (
        "predicted 1 min 24 s, took 1 min 28 s (+5%); 71.2 TFLOP at 810 GFLOP/s; 410 MiB predicted, 395 MiB written"
    )
    unknown = known + costs.Cost(0.0, 0, math.nan)
    assert costs.cost_comparison(unknown, 88.0, 0).startswith(
        "took 1 min 28 s, not predicted: this machine had not run such a model"
    )
    assert costs.cost_comparison(costs.Cost(1e9, 0, 0.2), 0.4, 0).startswith("predicted 0.2 s, took 0.4 s; 1 GFLOP at ")
    assert costs.cost_comparison(costs.Cost(), 0.0, 0).endswith("; 0 FLOP; 0 B predicted, 0 B written")
    assert costs.Cost() + known + known == costs.Cost(142.4e12, 820 * 2**20, 168.0)


def test_a_run_is_predicted_at_the_rate_of_the_last(tmp_path: Path) -> None:
    plan = planned(world(tmp_path, NAMED, nodes=NODES))
    assert math.isnan(predict(plan, tmp_path / "rates").seconds)
    costs.remember(tmp_path / "rates", 2 * plan_flop(plan), 8.0, plan.settings, plan.subject, "float32")
    assert predict(plan, tmp_path / "rates").seconds == pytest.approx(4.0)
    item = plan.item("nodes")
    assert costs.on_disk([item]) == 0
    item.path.joinpath("units").mkdir(parents=True)
    item.path.joinpath("units", "0.json").write_bytes(b"12345")
    assert costs.on_disk([item, replace(item, state=State("waits"), path=Path())]) == 5, "what waits has no place yet"


def test_each_precision_has_a_pass_and_a_rate_of_its_own(tmp_path: Path) -> None:
    plan = planned(world(tmp_path, NAMED, nodes=NODES, patch={"measure": "v_patch"}, coarse=NODES | BF16))
    nodes, coarse = plan.item("nodes"), plan.item("coarse")
    once = pass_flop(nodes)
    assert plan_flop(plan) == pytest.approx(2 * once + sum(map(item_flop, plan.items)))
    assert costs.total_cost(plan, tmp_path).startswith(
        "next: 3 experiments in 2 passes (16 tokens, 16 tokens in bf16), "
    )
    costs.remember(tmp_path / "rates", 3 * (once + item_flop(coarse)), 6.0, plan.settings, plan.subject, "bf16")
    assert predict(plan, tmp_path / "rates", coarse).seconds == pytest.approx(2.0)
    assert math.isnan(predict(plan, tmp_path / "rates", nodes).seconds)
    assert math.isnan(predict(plan, tmp_path / "rates").seconds)
    assert predict(plan, tmp_path).flop == pytest.approx(plan_flop(plan))


@pytest.mark.parametrize("held", [False, True], ids=["alone", "another runner holds a unit"])
def test_a_run_that_waited_for_another_tells_nothing_of_speed(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    remembered: list[str] = []
    run = finished("native").copy(tmp_path)
    monkeypatch.setattr(computer, "remember", lambda *given: remembered.append(given[-1]))
    result = run.result("v_patch")
    (result / "COMMIT").unlink()
    (result / "units" / "000001.json").unlink()
    other = Claims(result / "units")
    if held:
        assert other.take("1")
    monkeypatch.setattr(loop, "time", SimpleNamespace(sleep=lambda seconds: other.drop_all()))
    answer = run.cli("run", "v_patch")
    assert answer.code == Exit.OK, answer.text
    assert "pass over 1 units" in answer.out
    assert (" written" in answer.out, remembered) == ((False, []) if held else (True, ["float32"]))


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
    assert "figures: 1 drawn, 13 unchanged" in found.stdout, found.stdout[-3000:]
