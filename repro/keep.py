"""`python -m repro.keep SUBJECT`: copies the reduced results of a subject to store/committed/, to be kept in git."""

from __future__ import annotations

import sys
from pathlib import Path

from repro.options import Request
from repro.request import Workspace
from repro.store.committed import commit_reduced


def keep(workspace: Workspace) -> list[Path]:
    """Copy every fresh result of the default groups; return the copies' folders.

    Agreement: tests/store/test_keep.py.
    """
    plan = workspace.plan(workspace.choose(ask=False))
    kept = []
    for item in plan.items:
        if item.fresh:
            destination = workspace.committed / plan.subject.name / item.name
            commit_reduced(item.path, destination)
            kept.append(destination)
    return kept


if __name__ == "__main__":
    for folder in keep(Workspace(Request(subject=sys.argv[1]), print)):
        print(folder)
