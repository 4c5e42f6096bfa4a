"""Plan: what is fresh, stale, partial or waiting, why, and what the rest will cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from repro.labels import in_precision
from repro.plan.cost import cost_line, item_bytes, item_flop, total_cost
from repro.plan.plan import Item, Plan
from repro.request import Workspace
from repro.stages.paper import Paper
from repro.subjects.access import cache_folder


def plan(paper: Paper, about: bool = False) -> Paper:
    """Plan the whole selection, once, and show it: about each experiment, too, if asked for."""
    made = paper.workspace.plan(paper.subject)
    show_plan(paper.workspace, made, about)
    return replace(paper, planned=made)


def show_plan(workspace: Workspace, plan: Plan, about: bool = False) -> None:
    """Say what is fresh, stale, partial or waiting, why, and what the rest will cost; each state is said once.

    about: what each experiment is, too.
    """
    width = max((len(item.name) for item in plan.items), default=0)
    states: dict[str, list[Item]] = {}
    for item in plan.items:
        why = f" ({item.state.why})" if item.state.why else ""
        states.setdefault(f"{item.state}{why}", []).append(item)
    for state, items in states.items():
        if not about and all(item.fresh for item in items):
            workspace.say(f"{state}: {', '.join(item.name + in_precision(item.precision) for item in items)}")
            continue
        workspace.say(f"{state}:")
        for item in items:
            what = f"  {item.experiment.about}" if about and item.experiment.about else ""
            line = f"  {item.name:<{width}}{in_precision(item.precision)}{cost_line(item)}{what}"
            workspace.say(line.rstrip())
    workspace.say(total_cost(plan, cache_folder()))


def show_stored(workspace: Workspace, plan: Plan) -> None:
    """Say where the results lie that are whole, and what is not."""
    whole = [item for item in plan.items if item.fresh]
    if whole:
        names = ", ".join(item.name + in_precision(item.precision) for item in whole)
        workspace.say(f"stored in {whole[0].path.parents[1]}: {names}")
    if len(whole) < len(plan.items):
        show_plan(workspace, replace(plan, items=tuple(item for item in plan.items if not item.fresh)))


def plan_rows(plan: Plan) -> list[dict[str, Any]]:
    """Return the plan as data."""
    return [
        {
            "experiment": item.name,
            "about": item.experiment.about,
            "precision": item.precision,
            "state": str(item.state),
            "why": item.state.why,
            "key": item.path.name or None,
            "flop": item_flop(item),
            "bytes": None if item.waits else item_bytes(item),
        }
        for item in plan.items
    ]
