"""Draw: the selected figures, from the store."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from repro.errors import ReproError
from repro.figures import draw as drawing
from repro.stages.paper import Paper


def draw(paper: Paper) -> Paper:
    """Draw the selected figures from the store."""
    workspace, plan = paper.workspace, paper.plan
    out = workspace.figures_folder(plan.subject.name)
    source, fresh = partial(workspace.source, plan), workspace.request.fresh
    try:
        drawn = drawing.draw(workspace.loaded, workspace.selection[1], source, out, fresh, workspace.say)
    except OSError as error:
        raise ReproError(f"{out}: figures cannot be written ({error.strerror})") from None
    new = sum(not item.skipped for item in drawn)
    same = sum(item.skipped == "unchanged" for item in drawn)
    workspace.say(f"figures: {new} drawn, {same} unchanged, in {out}")
    for item in drawn:
        if item.skipped and item.skipped != "unchanged":
            workspace.say(f"  {item.name}: {item.skipped}")
    return replace(paper, drawn=tuple(drawn))
