"""Resolve: the subject, and its roles where the spec names none."""

from __future__ import annotations

from repro.computer import Computer
from repro.plan.roles import role_experiments
from repro.request import Workspace
from repro.stages.paper import Paper, announce


def resolve(workspace: Workspace, find: bool = True) -> Paper:
    """Return the subject, its roles found by small plans of their own: the scan, then what needs a writer.

    find: whether what finds roles may be computed, and the hub be asked; otherwise what is stored counts.
    """
    subject = workspace.choose(ask=find)
    announce(workspace, subject)
    paper = Paper(workspace, subject, Computer(workspace, subject))
    if find:
        for together in role_experiments(workspace.loaded, subject, workspace.selection[0]):
            paper.computer.settle(paper.computer.compute(workspace.plan(subject, together)))
    return paper
