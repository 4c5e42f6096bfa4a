"""Report: one page of the subject, from what the store holds."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from repro.errors import ReproError
from repro.stages.check import collected
from repro.stages.paper import Paper, answering

if TYPE_CHECKING:
    from repro.report.material import Material


def report(paper: Paper) -> Paper:
    """Write the page of the subject from what the store holds: `report.html` beside the figures."""
    from repro.report.build import write_report

    workspace = paper.workspace
    out = workspace.figures_folder(paper.subject.name)
    try:
        path = write_report(_material(paper), out, workspace.say)
    except OSError as error:
        raise ReproError(f"{out}: the page cannot be written ({error.strerror})") from None
    workspace.say(f"report: {path}")
    return paper


def _material(paper: Paper) -> Material:
    """Return what the page is made of: the comparison and the scan as the store has them now."""
    from repro.check.comparison import compare
    from repro.report.material import Material
    from repro.scan.answer import kept_answer
    from repro.store.result import read_kept

    workspace, plan = paper.workspace, paper.workspace.whole_plan(paper.subject)
    n_prompts, n_positions = paper.subject.tokens.shape
    item = answering(paper)
    item = None if item is None or not item.fresh else item

    return Material(
        loaded=workspace.loaded,
        subject=paper.subject.name,
        about=paper.subject.subject.about or paper.subject.subject.model,
        fallback=paper.subject.fallback,
        n_prompts=min(n_prompts, workspace.settings.prompts or n_prompts),
        n_positions=n_positions,
        source=partial(workspace.source, plan),
        comparison=paper.compared or compare(collected(paper)),
        scan="" if item is None else item.name,
        raw=None if item is None else partial(read_kept, item.path),
        answer=None if item is None else kept_answer(workspace.figures_folder(paper.subject.name), item.path.name),
        fresh=workspace.request.fresh,
    )
