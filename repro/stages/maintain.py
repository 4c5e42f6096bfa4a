"""What is done to a store by hand: results removed that the spec no longer uses, damage looked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from repro.computer import remove_result
from repro.errors import ReproError
from repro.files import load
from repro.plan.plan import Plan
from repro.request import Workspace
from repro.stages.paper import Paper
from repro.store.records import PROVENANCE

if TYPE_CHECKING:
    from repro.store.verify import Finding


def _is_own(plan: Plan, path: Path) -> bool:
    """Return whether a result says that it is of the plan's subject: another spec may give the same name to another."""
    try:
        origin = load(path / PROVENANCE) or {}
    except ReproError:
        return False
    same = (
        origin.get("model") == plan.subject.subject.model
        or origin.get("key", {}).get("weights") == plan.subject.weights
    )
    return bool(origin.get("subject") == plan.subject.name and same)


def clean(paper: Paper, remove: bool) -> list[Path]:
    """Show the subject's results that the spec does not use, and with `remove` delete them.

    Unfinished work of the present keys is used. An experiment that waits for roles keeps all it has: which of it will
    be used is not known yet.
    """
    workspace, plan = paper.workspace, paper.plan
    items = workspace.whole_plan(plan.subject).items
    used, waiting = {item.path for item in items}, {item.name for item in items if item.waits}
    found = [
        path
        for path in sorted((workspace.store / plan.subject.name).glob("*/*"))
        if path.is_dir() and path not in used and path.parent.name not in waiting and _is_own(plan, path)
    ]
    for path in found:
        workspace.say(f"{'removed' if remove else 'would remove'} {path}")
        if remove:
            remove_result(path)
    if not found:
        workspace.say("nothing to remove")
    elif not remove:
        workspace.say("nothing was removed; say --yes to remove")
    return found


def verify(workspace: Workspace) -> list[Finding]:
    """Look for damage in every result of the store, and say what was found."""
    from repro.store.verify import verify as look

    findings = look(workspace.store) if workspace.store.is_dir() else []
    for finding in findings:
        workspace.say(str(finding))
    found = f"{len(findings)} finding{'s' if len(findings) > 1 else ''}" if findings else "nothing damaged"
    workspace.say(f"verify: {found} in {workspace.store}")
    return findings
