"""The paper on its way through the stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from repro.computer import Computer
from repro.errors import Exit
from repro.figures.draw import Drawn
from repro.plan.plan import Item, Plan
from repro.request import Workspace
from repro.subjects.resolve import ResolvedSubject

if TYPE_CHECKING:
    from repro.check.comparison import Comparison


@dataclass(frozen=True)
class Paper:
    """The paper on its way through the stages: what is known of it so far."""

    workspace: Workspace
    subject: ResolvedSubject
    computer: Computer
    """Keeps the model and the workers between stages."""
    planned: Plan | None = None
    drawn: tuple[Drawn, ...] = ()
    codes: tuple[Exit, ...] = ()
    """Exit codes of what went wrong."""
    compared: Comparison | None = None
    verdict: str = ""
    """The answer in one sentence, which is said last."""

    @property
    def plan(self) -> Plan:
        """Return the plan, with what the store held when it was last looked up."""
        assert self.planned is not None, "planned after it is resolved"
        return self.planned


def stored(workspace: Workspace, announced: bool = True) -> Paper:
    """Return the paper as the store holds it: planned, with nothing computed and nobody asked."""
    subject = workspace.choose(ask=False)
    if announced:
        announce(workspace, subject)
    return Paper(workspace, subject, Computer(workspace, subject), workspace.plan(subject))


def answering(paper: Paper) -> Item | None:
    """Return what the question is answered from: the plan's own scan, else the one in which the roles were found.

    None where the command was asked for neither, and needed none.
    """
    own = next((item for item in paper.plan.items if item.experiment.answers), None)
    if own is not None or not any("erasers" in item.experiment.needs for item in paper.plan.items):
        return own
    whole = paper.workspace.whole_plan(paper.subject)
    return next((item for item in whole.items if "erasers" in item.experiment.finds), None)


def announce(workspace: Workspace, subject: ResolvedSubject) -> None:
    """Say loudly which subject the numbers will be from."""
    path = subject.subject.about or subject.subject.model
    workspace.say(f"subject: {subject.name} ({path})")
    if subject.fallback:
        workspace.say(f"NOT THE PAPER'S SUBJECT: {subject.fallback}; showing {subject.name} instead")
    if subject.notice:
        workspace.say(subject.notice)
