"""What a plan will cost: FLOP, bytes, and seconds at the rate this machine has shown; and afterwards what it took."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path

from repro.plan.plan import RAW_BYTES, Item, Plan, Settings
from repro.progress import duration
from repro.subjects.resolve import ResolvedSubject

RATES = "rates.json"
_THOUSANDS = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0}
_POWERS = {"Gi": 30, "Mi": 20, "Ki": 10, "": 0}


@dataclass(frozen=True)
class Cost:
    """What computing something is predicted to take."""

    flop: float = 0.0
    size: int = 0
    """Bytes of raw results, before compression."""
    seconds: float = 0.0
    """Of passes and reductions; NaN where this machine has not shown its rate yet."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flop + other.flop, self.size + other.size, self.seconds + other.seconds)


def item_flop(item: Item) -> float:
    """Return the FLOP of an experiment beyond the pass it shares: projections, and what its measure adds."""
    shape, tokens, asked = item.context.shape, item.context.n_prompts * item.stream.length, item.experiment.asks
    rows = (2 * shape.n_layers + 1 if asked.sites_on_nodes else 0) + len(asked.directions)
    heads = shape.n_layers * shape.n_heads
    projections = 2.0 * tokens * heads * shape.d_model * (shape.d_head + rows) if rows else 0.0
    return projections + item.experiment.extra_flop(item.context)


def item_bytes(item: Item) -> int:
    """Return the bytes of raw results before compression."""
    return 0 if item.layout is None else item.layout.n_bytes


def lacking(item: Item) -> float:
    """Return the share of an experiment that is still to be computed, in units: less than 1 where it was begun."""
    if item.fresh:
        return 0.0
    return 1 - item.state.present / item.state.total if item.state.kind == "partial" else 1.0


def flop_of(items: Sequence[Item]) -> float:
    """Return the FLOP of what some experiments lack: one pass for all that read the same, and what each adds.

    A pass is clean, its unembedding excluded.
    """
    passes = 0.0
    for stream in {item.stream for item in items}:
        group = [item for item in items if item.stream == stream]
        most = max(group, key=lambda item: item.context.n_prompts * lacking(item))
        tokens = most.context.n_prompts * stream.length
        passes += tokens * most.context.shape.flop_per_token(stream.length) * lacking(most)
    return passes + sum(item_flop(item) * lacking(item) for item in items)


def predict(plan: Plan, folder: Path, items: Sequence[Item]) -> dict[str, Cost]:
    """Return what computing some of a plan's experiments will take, by precision, as each has a rate of its own.

    folder: the directory where `remember` keeps this machine's rates. Agreement: tests/plan/test_costs.py.
    """
    costs, rates = {}, _rates(folder)
    for precision in dict.fromkeys(item.precision for item in items):
        group = [item for item in items if item.precision == precision]
        flop, rate = flop_of(group), rates.get(_name(plan.settings, plan.subject, precision))
        size = sum(item_bytes(item) * lacking(item) for item in group)
        costs[precision] = Cost(flop, round(size), flop / rate if rate else nan)
    return costs


def cost_comparison(predicted: Cost, seconds: float, written: int) -> str:
    """Return predicted against actual cost in one line, for after a run.

    seconds: what its passes and reductions took; written: bytes that it added to the store, compressed.
    Agreement: tests/plan/test_costs.py.
    """
    took = f"took {duration(seconds)}"
    if isnan(predicted.seconds):
        time = f"{took}, not predicted: this machine had not run such a model before"
    else:
        off = f" ({seconds / predicted.seconds - 1:+.0%})" if predicted.seconds >= 1 else ""
        time = f"predicted {duration(predicted.seconds)}, {took}{off}"
    rate = f" at {in_flop(predicted.flop / seconds, 2)}/s" if seconds > 0 else ""
    sizes = f"{in_bytes(predicted.size)} predicted, {in_bytes(written)} written"
    return f"{time}; {in_flop(predicted.flop)}{rate}; {sizes}"


def in_flop(flop: float, digits: int = 3) -> str:
    """Return a number of operations in the unit that suits it: `81 GFLOP`, `1.34 TFLOP`."""
    unit = next((unit for unit in ("P", "T", "G", "M", "k") if flop >= _THOUSANDS[unit]), "")
    rounded = float(f"{flop / _THOUSANDS[unit]:.{digits}g}")
    return f"{rounded:g} {unit}FLOP"


def in_bytes(size: float) -> str:
    """Return a size in the unit that suits it: `4.2 MiB`, `12 KiB`."""
    unit = next((unit for unit in ("Gi", "Mi", "Ki") if size >= 2 ** _POWERS[unit]), "")
    scaled = size / 2 ** _POWERS[unit]
    return f"{scaled:.1f} {unit}B" if unit and scaled < 10 else f"{scaled:.0f} {unit}B"


def on_disk(items: Iterable[Item]) -> int:
    """Return the bytes that some experiments' results take in the store now."""
    directories = [item.path for item in items if not item.waits]
    return sum(file.stat().st_size for path in directories for file in path.rglob("*") if file.is_file())


def cost_line(item: Item) -> str:
    """Return what is left of an experiment's own cost, for `plan`; nothing where nothing is to be done."""
    if item.fresh:
        return ""
    if item.waits:
        return f"  [at most {in_flop(item_flop(item))}]"
    share, size = lacking(item), item_bytes(item)
    # Of more prompts the raw values would take more than is allowed.
    prompts = item.context.n_prompts
    cut = f" of the first {prompts} prompts" if size * (prompts + 1) > RAW_BYTES * prompts else ""
    return f"  [{in_flop(item_flop(item) * share)}, {in_bytes(size * share)}{cut}]"


def total_cost(plan: Plan, folder: Path) -> str:
    """Return the plan's cost in one line, with seconds where this machine's rate is known."""
    todo = plan.todo
    if not todo:
        waiting = [item.name for item in plan.items if item.waits]
        return f"nothing to compute; waiting: {', '.join(waiting)}" if waiting else "nothing to compute"
    cost = sum(predict(plan, folder, todo).values(), Cost())
    streams = list(map(str, plan.passes(todo)))
    seconds = "time unknown before a first run"
    if not isnan(cost.seconds):
        seconds = f"about {duration(cost.seconds)} at this machine's last rate"
    later = sum(item.waits for item in plan.items)
    more = f"; {later} more once roles are known" if later else ""
    passes = f"{len(streams)} pass{'es' if len(streams) > 1 else ''} ({', '.join(streams)})"
    experiments = f"{len(todo)} experiment{'s' if len(todo) > 1 else ''}"
    return f"next: {experiments} in {passes}, {in_flop(cost.flop)}, {in_bytes(cost.size)}, {seconds}{more}"


def remember(
    folder: Path, flop: float, seconds: float, settings: Settings, subject: ResolvedSubject, precision: str
) -> None:
    """Keep the rate of a run at a precision, for later predictions; not worth an error if the disk refuses."""
    if seconds < 1 or flop <= 0:
        return
    rates = _rates(folder) | {_name(settings, subject, precision): flop / seconds}
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


def _name(settings: Settings, subject: ResolvedSubject, precision: str) -> str:
    return f"{settings.device} {settings.kernels} {precision} d_model {subject.folder.shape.d_model}"
