"""Draw: the selected figures, from the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from repro.errors import ReproError
from repro.figures import draw as drawing
from repro.plan.plan import Plan
from repro.stages.paper import Paper


def source_of(plan: Plan, experiment: str, committed: Path) -> drawing.Source | str:
    """Return an experiment's data: its own result, else the copy kept in git, stamped so; else why there is none.

    Raises ReproError (exit 5) for an own result that is damaged: another one must not take its place.
    """
    item = next((item for item in plan.items if item.name == experiment), None)
    if item is not None and item.fresh:
        return drawing.Source(item.path, roles=plan.roles.attrs())
    if item is not None:
        item.refuse_damage()
    copy = committed / plan.subject.name / experiment
    if (copy / "COMMIT").is_file():
        return drawing.Source(copy, "COMMITTED")
    return drawing.lack(experiment, "" if item is None else str(item.state))


def draw(paper: Paper) -> Paper:
    """Draw the selected figures from the store."""
    workspace, plan = paper.workspace, paper.plan
    out = workspace.figures_folder(plan.subject.name)
    wanted = workspace.selection[1]

    def source(experiment: str) -> drawing.Source | str:
        return source_of(plan, experiment, workspace.committed)

    try:
        drawn = drawing.draw(workspace.loaded, wanted, source, out, workspace.request.fresh, workspace.say)
    except OSError as error:
        raise ReproError(f"{out}: figures cannot be written ({error.strerror})") from None
    new = sum(not item.skipped for item in drawn)
    same = sum(item.skipped == "unchanged" for item in drawn)
    workspace.say(f"figures: {new} drawn, {same} unchanged, in {out}")
    for item in drawn:
        if item.skipped and item.skipped != "unchanged":
            workspace.say(f"  {item.name}: {item.skipped}")
    return replace(paper, drawn=tuple(drawn))
