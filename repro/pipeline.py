"""The stages of a command, in order: resolve, plan, run, draw, check, answer, report, conclude.

Each takes the previous one's value.
`python -m repro all` is exactly these; other commands stop early.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.computer import Computer, remove_result
from repro.errors import Exit, ReproError
from repro.figures import draw as drawing
from repro.files import load
from repro.labels import in_precision
from repro.plan.cost import cost_line, item_bytes, item_flop, total_cost
from repro.plan.plan import Item, Plan
from repro.plan.roles import role_experiments
from repro.request import Workspace
from repro.spec.types import HubPrompts
from repro.store.excluded import NOTE, excluded_prompts, kept, left_out_line
from repro.store.records import PROVENANCE
from repro.subjects.access import cache_folder
from repro.subjects.resolve import ResolvedSubject

if TYPE_CHECKING:
    import xarray as xr

    from repro.check.comparison import Collected, Comparison
    from repro.model.forward import Model
    from repro.report.material import Material
    from repro.store.verify import Finding


@dataclass(frozen=True)
class Paper:
    """The paper on its way through the stages: what is known of it so far."""

    workspace: Workspace
    subject: ResolvedSubject
    computer: Computer
    """Keeps the model and the workers between stages."""
    planned: Plan | None = None
    drawn: tuple[drawing.Drawn, ...] = ()
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


def resolve(workspace: Workspace, find: bool = True) -> Paper:
    """Return the subject, its roles found by small plans of their own: the writer, then what needs one.

    find: whether what finds roles may be computed, and the hub be asked; otherwise what is stored counts.
    """
    subject = workspace.choose(ask=find)
    announce(workspace, subject)
    paper = Paper(workspace, subject, Computer(workspace, subject))
    if find:
        names = role_experiments(workspace.loaded, subject, workspace.selection[0])
        first = [name for name in names if workspace.loaded.spec.experiment[name].finds == "writer"]
        for together in (first, [name for name in names if name not in first]):
            if together:
                paper.computer.compute(workspace.plan(subject, together))
    return paper


def plan(paper: Paper, about: bool = False) -> Paper:
    """Plan the whole selection, once, and show it: about each experiment, too, if asked for."""
    made = paper.workspace.plan(paper.subject)
    show_plan(paper.workspace, made, about)
    return replace(paper, planned=made)


def run(paper: Paper) -> Paper:
    """Compute everything that is not there, and say what is left out or failed."""
    computer = paper.computer
    try:
        made = computer.compute(paper.plan)
    finally:
        computer.close()
    left_out = sorted({prompt for item in made.items if not item.waits for prompt in excluded_prompts(item.path)})
    if left_out:
        paper.workspace.say(left_out_line(left_out))
    incomplete = computer.failed or left_out or any(item.waits for item in made.items)
    return replace(paper, planned=made, codes=(*paper.codes, Exit.FAILED) if incomplete else paper.codes)


def source_of(plan: Plan, experiment: str, committed: Path) -> drawing.Source | str:
    """Return an experiment's data: its own result, else the copy kept in git, stamped so; else why there is none.

    Raises ReproError (exit 5) for an own result that is damaged: another one must not take its place.
    """
    item = next((item for item in plan.items if item.name == experiment), None)
    if item is not None and item.fresh:
        return drawing.Source(item.path)
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


def check(paper: Paper) -> Paper:
    """Compare the numbers with the published ones, and variants with what they vary; write both beside the figures."""
    from repro.check.compare import exit_code
    from repro.check.comparison import compare, write

    comparison = compare(_collected(paper))
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


def _collected(paper: Paper) -> Collected:
    """Return the committed results of every experiment of the spec, whether or not it was selected now."""
    from repro.check.comparison import Collected
    from repro.check.published import PAPER_PROMPTS
    from repro.check.report import Heading
    from repro.store.result import read_raw, read_summary

    workspace, plan = paper.workspace, _widened(paper.workspace, paper.plan)
    experiments = workspace.loaded.spec.experiment
    paths = {name: at for name in experiments if (at := _result(workspace, plan, name)) is not None}
    results = {name: read_summary(path) for name, path in paths.items()}
    own = plan.subject.name == workspace.loaded.spec.run.paper_subject
    n_prompts, n_positions = plan.subject.tokens.shape
    # A prompt that only a variant of precision has lost takes nothing from the others' rows.
    own_precision = [found.attrs for found in results.values() if "precision" not in found.attrs]
    left_out = tuple(sorted({int(prompt) for attrs in own_precision for prompt in attrs.get(NOTE, ())}))
    heading = Heading(
        subject=plan.subject.name,
        subject_is_papers=own,
        n_prompts=min(n_prompts, workspace.settings.prompts or n_prompts),
        n_positions=n_positions,
        same_prompts=own and _recipe(plan.subject) == PAPER_PROMPTS and not left_out,
        left_out=left_out,
    )
    return Collected(experiments, results, lambda name: kept(read_raw(paths[name]), results[name].attrs), heading)


def _recipe(subject: ResolvedSubject) -> object:
    """Return the recipe of a subject's prompts from the hub."""
    prompts = subject.subject.prompts
    return prompts.model_dump(mode="json") if isinstance(prompts, HubPrompts) else None


def _widened(workspace: Workspace, plan: Plan) -> Plan:
    """Return the plan with all experiments of the spec, if all fit the subject: planned together they are quicker."""
    try:
        return workspace.plan(plan.subject, [*(item.name for item in plan.items), *workspace.loaded.spec.experiment])
    except ReproError:
        return plan


def _result(workspace: Workspace, plan: Plan, name: str) -> Path | None:
    """Return where an experiment's own committed result lies, whether or not it was selected now."""
    item = _item(workspace, plan, name)
    if item is not None:
        item.refuse_damage()
        if item.state.kind == "partial":
            workspace.say(f"  {drawing.lack(name, str(item.state))}; it is not compared")
    return item.path if item is not None and item.fresh else None


def _item(workspace: Workspace, plan: Plan, name: str) -> Item | None:
    """Return an experiment in the plan, or in one of its own; nothing where it does not fit or its role is named."""
    item = next((item for item in plan.items if item.name == name), None)
    if item is not None:
        return item
    try:
        named = workspace.plan(plan.subject, [name]).items
    except ReproError:
        # Declared for other prompts or another model than this subject's: it has no result here.
        return None
    return next((other for other in named if other.name == name), None)


def stored(workspace: Workspace, announced: bool = True) -> Paper:
    """Return the paper as the store holds it: planned, with nothing computed and nobody asked."""
    subject = workspace.choose(ask=False)
    if announced:
        announce(workspace, subject)
    return Paper(workspace, subject, Computer(workspace, subject), workspace.plan(subject))


def answer(paper: Paper) -> Paper:
    """Say which components take back what others wrote, from the stored shares, and confirm it by real forwards."""
    item = next((item for item in paper.plan.items if item.experiment.answers), None)
    if item is None:
        return paper
    if not item.fresh:
        paper.workspace.say(f"no answer yet: {drawing.lack(item.name, str(item.state))}")
        return paper
    from repro.scan.answer import answered
    from repro.store.result import read_raw, read_summary

    out = paper.workspace.figures_folder(paper.subject.name)
    summary = read_summary(item.path)
    raw = kept(read_raw(item.path), summary.attrs).load().assign_attrs(summary.attrs)
    tokens = paper.subject.tokens[: item.context.n_prompts, : item.stream.length]

    def model() -> Model:
        from repro.model.load import load

        paper.workspace.say("confirming what is shown by real forwards")
        return load(paper.subject.folder, item.precision, paper.workspace.settings.device)

    paper.workspace.say("")
    *lines, last = answered(raw, item.path.name, paper.subject.name, tokens, model, out)
    for line in lines:
        paper.workspace.say(line)
    return replace(paper, verdict=last)


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
    from repro.store.result import read_raw, read_summary

    workspace, plan = paper.workspace, _widened(paper.workspace, paper.plan)
    n_prompts, n_positions = paper.subject.tokens.shape
    item = next((item for item in plan.items if item.experiment.answers and item.fresh), None)

    def raw(path: Path) -> xr.Dataset:
        summary = read_summary(path)
        return kept(read_raw(path), summary.attrs).load().assign_attrs(summary.attrs)

    return Material(
        loaded=workspace.loaded,
        subject=paper.subject.name,
        about=paper.subject.subject.about or paper.subject.subject.model,
        fallback=paper.subject.fallback,
        n_prompts=min(n_prompts, workspace.settings.prompts or n_prompts),
        n_positions=n_positions,
        source=lambda name: source_of(plan, name, workspace.committed),
        comparison=paper.compared or compare(_collected(paper)),
        scan="" if item is None else item.name,
        raw=None if item is None else lambda: raw(item.path),
        answer=None if item is None else kept_answer(workspace.figures_folder(paper.subject.name), item.path.name),
        fresh=workspace.request.fresh,
    )


def conclude(paper: Paper) -> Paper:
    """Say the answer, last of all."""
    if paper.verdict:
        paper.workspace.say(paper.verdict)
    return paper


STAGES: tuple[Callable[..., Paper], ...] = (resolve, plan, run, draw, check, answer, report, conclude)


def announce(workspace: Workspace, subject: ResolvedSubject) -> None:
    """Say loudly which subject the numbers will be from."""
    path = subject.subject.about or subject.subject.model
    workspace.say(f"subject: {subject.name} ({path})")
    if subject.fallback:
        workspace.say(f"NOT THE PAPER'S SUBJECT: {subject.fallback}; showing {subject.name} instead")
    if subject.notice:
        workspace.say(subject.notice)


def show_plan(workspace: Workspace, plan: Plan, about: bool = False) -> None:
    """Say what is fresh, stale, partial or waiting, why, and what the rest will cost; each state is said once.

    about: what each experiment is, too.
    """
    width = max((len(item.name) for item in plan.items), default=0)
    states: dict[str, list[Item]] = {}
    for item in plan.items:
        why = f" ({item.state.why})" if item.state.why else ""
        states.setdefault(f"{item.state}{why}", []).append(item)
    for state, items in states.items():
        if not about and all(item.fresh for item in items):
            workspace.say(f"{state}: {', '.join(item.name + in_precision(item.precision) for item in items)}")
            continue
        workspace.say(f"{state}:")
        for item in items:
            what = f"  {item.experiment.about}" if about and item.experiment.about else ""
            line = f"  {item.name:<{width}}{in_precision(item.precision)}{cost_line(item)}{what}"
            workspace.say(line.rstrip())
    workspace.say(total_cost(plan, cache_folder()))


def plan_rows(plan: Plan) -> list[dict[str, Any]]:
    """Return the plan as data."""
    return [
        {
            "experiment": item.name,
            "about": item.experiment.about,
            "precision": item.precision,
            "state": str(item.state),
            "why": item.state.why,
            "key": item.path.name or None,
            "flop": item_flop(item),
            "bytes": None if item.waits else item_bytes(item),
        }
        for item in plan.items
    ]


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
    items = [item for name in workspace.loaded.spec.experiment if (item := _item(workspace, plan, name)) is not None]
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


def as_json(value: object) -> str:
    """Return the machine-readable output of a command."""
    return json.dumps(value, indent=1, sort_keys=True)
