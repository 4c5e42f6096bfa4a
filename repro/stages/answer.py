"""Answer: which components take back what others wrote, from the stored shares."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from repro.figures import draw as drawing
from repro.measures.path_shares import PathShares
from repro.scan.twin import Twin, untrained_twins
from repro.stages.paper import Paper, answering

if TYPE_CHECKING:
    from repro.model.decoder import Model


def answer(paper: Paper) -> Paper:
    """Say which components take back what others wrote, from the stored shares, and confirm it by real forwards."""
    item = answering(paper)
    if item is None:
        return paper
    if not item.fresh:
        paper.workspace.say(f"no answer yet: {drawing.lack(item.name, str(item.state))}")
        return paper
    from repro.scan.answer import answered
    from repro.store.result import read_kept

    out = paper.workspace.figures_folder(paper.subject.name)
    tokens = paper.subject.tokens[: item.context.n_prompts, : item.stream.length]

    @cache
    def loaded() -> Model:
        from repro.model.load import load

        return load(paper.subject.folder, item.precision, paper.workspace.settings.device, paper.subject.tokens)

    def model() -> Model:
        paper.workspace.say("confirming what is shown by real forwards")
        return loaded()

    def twins() -> tuple[Twin, ...]:
        paper.workspace.say("scanning untrained twins of the model, on the same prompts")
        assert isinstance(item.experiment, PathShares), "what answers the question is a scan"
        return untrained_twins(loaded(), tokens, item.experiment, say=paper.workspace.say)

    asked = twins if paper.workspace.request.controls else None
    origin = (paper.subject.subject.model, paper.subject.folder.path.name)
    *lines, last = answered(read_kept(item.path), item.path, paper.subject.name, tokens, model, out, asked, origin)
    paper.workspace.say("")
    for line in lines:
        paper.workspace.say(line)
    return replace(paper, verdict=last)


def conclude(paper: Paper) -> Paper:
    """Say the answer, last of all."""
    if paper.verdict:
        paper.workspace.say(paper.verdict)
    return paper
