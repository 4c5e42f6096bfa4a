"""Run: compute what is not there."""

from __future__ import annotations

from dataclasses import replace

from repro.errors import Exit
from repro.stages.paper import Paper
from repro.store.excluded import excluded_prompts, left_out_line


def run(paper: Paper) -> Paper:
    """Compute everything that is not there, and say what is left out or failed.

    Named roles are put to the test here, in the pass of everything else: what came of it is known to the plan from now.
    """
    computer = paper.computer
    try:
        made = computer.compute(paper.plan)
        computer.settle(made)
    finally:
        computer.close()
    if any(item.experiment.named_only for item in made.items):
        made = replace(made, roles=paper.workspace.plan(paper.subject).roles)
    left_out = sorted({prompt for item in made.items if not item.waits for prompt in excluded_prompts(item.path)})
    if left_out:
        paper.workspace.say(left_out_line(left_out))
    incomplete = computer.failed or left_out or any(item.waits for item in made.items)
    return replace(paper, planned=made, codes=(*paper.codes, Exit.FAILED) if incomplete else paper.codes)
