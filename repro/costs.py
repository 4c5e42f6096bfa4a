"""What a plan will cost: FLOP, bytes, and seconds at the rate this machine has shown."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

from repro.declare import mined_positions, patched_layer, wanted
from repro.folder import Shape
from repro.plan import Item, Plan
from repro.spec import DLAScatter, MineExamples, VPatch

RATES = "rates.json"


def pass_flop(shape: Shape, prompts: int, length: int) -> float:
    """FLOP of one clean pass, unembedding excluded."""
    return prompts * length * shape.flop_per_token(length)


def item_flop(item: Item) -> float:
    """FLOP of an experiment beyond the pass it shares: projections, patched tail, unembedding."""
    shape, tokens = item.context.shape, item.context.n_prompts * item.length
    heads = shape.n_layers * shape.n_heads
    asked = wanted(item.experiment)
    rows = (2 * shape.n_layers + 1 if asked.sites_on_nodes else 0) + len(asked.directions)
    flop = 2.0 * tokens * heads * shape.d_model * (shape.d_head + rows) if rows else 0.0
    if isinstance(item.experiment, VPatch):
        # While the layer is not known yet, the most it can be.
        layers = shape.n_layers - (1 if item.waits else patched_layer(item.experiment, item.context))
        flop += pass_flop(shape, item.context.n_prompts, item.length) * layers / shape.n_layers
    if isinstance(item.experiment, DLAScatter):
        flop += 2.0 * tokens * shape.d_model * shape.d_vocab
    if isinstance(item.experiment, MineExamples):
        flop += 2.0 * item.context.n_prompts * len(mined_positions(item.context)) * shape.d_model * shape.d_vocab
    return flop


def item_bytes(item: Item) -> int:
    """Bytes of raw results before compression."""
    if item.layout is None:
        return 0
    return sum(4 * prod(item.layout.shape(variable)) for variable in item.layout.variables)


def plan_flop(plan: Plan) -> float:
    """FLOP of everything that can be computed now: one pass per length, and what each experiment adds."""
    todo = plan.todo
    passes = sum(
        pass_flop(todo[0].context.shape, max(item.context.n_prompts for item in todo if item.length == length), length)
        for length in {item.length for item in todo}
    )
    return passes + sum(item_flop(item) for item in todo)


def cost_line(item: Item) -> str:
    """An experiment's own cost, for `plan`; nothing where nothing is to be done."""
    if item.state == "fresh":
        return ""
    if item.waits:
        return f"  [at most {item_flop(item) / 1e12:.3f} TFLOP]"
    return f"  [{item_flop(item) / 1e12:.3f} TFLOP, {item_bytes(item) / 2**20:.0f} MiB]"


def total_cost(plan: Plan, folder: Path) -> str:
    """The plan's cost in one line, with seconds where this machine's rate is known."""
    todo = plan.todo
    if not todo:
        waiting = [item.name for item in plan.items if item.waits]
        return f"nothing to compute; waiting: {', '.join(waiting)}" if waiting else "nothing to compute"
    flop, size = plan_flop(plan), sum(item_bytes(item) for item in todo)
    lengths = sorted({item.length for item in todo})
    rate = _rates(folder).get(_name(plan))
    seconds = f"about {flop / rate:.0f} s at this machine's last rate" if rate else "time unknown before a first run"
    later = sum(item.waits for item in plan.items)
    more = f"; {later} more once roles are known" if later else ""
    passes = f"{len(lengths)} pass{'es' if len(lengths) > 1 else ''} ({', '.join(f'{n} tokens' for n in lengths)})"
    return (
        f"next: {len(todo)} experiments in {passes}, {flop / 1e12:.2f} TFLOP, {size / 2**20:.0f} MiB, {seconds}{more}"
    )


def remember(folder: Path, flop: float, seconds: float, plan: Plan) -> None:
    """Keeps the rate of a run, for later predictions; not worth an error if the disk refuses."""
    if seconds < 1 or flop <= 0:
        return
    rates = _rates(folder) | {_name(plan): flop / seconds}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RATES).write_text(json.dumps(rates, indent=1, sort_keys=True))
    except OSError:
        return


def _rates(folder: Path) -> dict[str, float]:
    try:
        found = json.loads((folder / RATES).read_text())
    except (OSError, ValueError):
        return {}
    return {key: float(value) for key, value in found.items() if isinstance(value, int | float) and value > 0}


def _name(plan: Plan) -> str:
    settings, shape = plan.settings, plan.subject.folder.shape
    return f"{settings.device} {settings.kernels} {settings.precision} d_model {shape.d_model}"
