"""Check: the numbers against the published ones, and variants against what they vary."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from repro.errors import Exit, ReproError
from repro.figures import draw as drawing
from repro.spec.types import HubPrompts
from repro.stages.paper import Paper
from repro.store.excluded import NOTE, kept

if TYPE_CHECKING:
    from repro.check.comparison import Collected


def check(paper: Paper) -> Paper:
    """Compare the numbers with the published ones, and variants with what they vary; write both beside the figures."""
    from repro.check.compare import exit_code
    from repro.check.comparison import compare, write

    comparison = compare(collected(paper))
    out = paper.workspace.figures_folder(paper.subject.name)
    try:
        lines = write(comparison, out)
    except OSError as error:
        raise ReproError(f"{out}: the check cannot be written ({error.strerror})") from None
    for line in lines:
        paper.workspace.say(line)
    if not comparison.heading.subject_is_papers:
        whose = paper.workspace.loaded.spec.run.paper_subject
        paper.workspace.say(f"  published numbers belong to {whose}; {paper.subject.name} is another model")
    code = exit_code(comparison.rows)
    codes = paper.codes if code == Exit.OK else (*paper.codes, code)
    return replace(paper, codes=codes, compared=comparison)


def collected(paper: Paper) -> Collected:
    """Return the committed results of every experiment of the spec, whether or not it was selected now."""
    from repro.check.comparison import Collected
    from repro.check.published import PAPER_PROMPTS
    from repro.check.report import Heading
    from repro.store.result import read_raw, read_summary

    workspace, plan = paper.workspace, paper.workspace.whole_plan(paper.subject)
    experiments = workspace.loaded.spec.experiment
    for item in plan.items:
        item.refuse_damage()
        if item.state.kind == "partial":
            workspace.say(f"  {drawing.lack(item.name, str(item.state))}; it is not compared")
    paths = {item.name: item.path for item in plan.items if item.fresh}
    results = {name: read_summary(paths[name]) for name in experiments if name in paths}
    own = plan.subject.name == workspace.loaded.spec.run.paper_subject
    prompts, (n_prompts, n_positions) = plan.subject.subject.prompts, plan.subject.tokens.shape
    recipe = prompts.model_dump(mode="json") if isinstance(prompts, HubPrompts) else None
    # A prompt that only a variant of precision has lost takes nothing from the others' rows.
    own_precision = [found.attrs for found in results.values() if "precision" not in found.attrs]
    left_out = tuple(sorted({int(prompt) for attrs in own_precision for prompt in attrs.get(NOTE, ())}))
    heading = Heading(
        subject=plan.subject.name,
        subject_is_papers=own,
        n_prompts=min(n_prompts, workspace.settings.prompts or n_prompts),
        n_positions=n_positions,
        same_prompts=own and recipe == PAPER_PROMPTS and not left_out,
        left_out=left_out,
    )
    return Collected(experiments, results, lambda name: kept(read_raw(paths[name]), results[name].attrs), heading)
