"""The stages of a command: plan, run, figures, check. Each takes the previous one's value and can be run alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repro.check.variants import variant_lines, write_variants
from repro.errors import Exit, ReproError
from repro.figures import draw as drawing
from repro.labels import in_precision
from repro.plan.cost import (
    Cost,
    compared,
    cost_line,
    item_bytes,
    item_flop,
    on_disk,
    predict_each,
    remember,
    total_cost,
)
from repro.plan.plan import Item, Plan
from repro.request import World, parse_bytes
from repro.run.cluster import Cluster
from repro.run.watchdog import Watchdog, parse_watchdog
from repro.run.workers import at_hand, refuse
from repro.spec.types import HubPrompts
from repro.store.excluded import NOTE, excluded_prompts, kept, left_out_line
from repro.store.records import COMMIT
from repro.subjects.access import cache_folder
from repro.subjects.resolve import ResolvedSubject

MAX_ROUNDS = 4


def announce(world: World, subject: ResolvedSubject) -> None:
    """Says loudly which subject the numbers will be from."""
    path = subject.subject.about or subject.subject.model
    world.say(f"subject: {subject.name} ({path})")
    if subject.fallback:
        world.say(f"NOT THE PAPER'S SUBJECT: {subject.fallback}; showing {subject.name} instead")


def show_plan(world: World, plan: Plan, about: bool = False) -> None:
    """What is fresh, stale, partial or waiting, and why; and what the rest will cost. about: what each one is, too."""
    width = max((len(item.name) for item in plan.items), default=0)
    for item in plan.items:
        why = f"  ({item.why})" if item.why else ""
        precision = in_precision(item.precision) and f",{in_precision(item.precision)}"
        what = f"  {item.experiment.about}" if about and item.experiment.about else ""
        world.say(f"  {item.name:<{width}}  {item.state}{precision}{why}{cost_line(item)}{what}")
    world.say(total_cost(plan, cache_folder()))


def plan_rows(plan: Plan) -> list[dict[str, Any]]:
    """The plan as data."""
    return [
        {
            "experiment": item.name,
            "about": item.experiment.about,
            "precision": item.precision,
            "state": item.state,
            "why": item.why,
            "key": item.path.name or None,
            "flop": item_flop(item),
            "bytes": None if item.waits else item_bytes(item),
        }
        for item in plan.items
    ]


def run(world: World, subject: ResolvedSubject) -> tuple[Plan, list[Exit]]:
    """Computes everything that is not fresh, roles first; plans anew until nothing waits.

    Returns the last plan and the exit codes of what went wrong.
    """
    request = world.request
    refuse(request.workers, request.scheduler)
    memory = parse_bytes(request.memory)
    watchdog = Watchdog(parse_watchdog(request.watchdog), world.store / "logs")
    plan = world.plan(subject)
    failed: set[str] = set()
    if plan.todo or request.fresh:
        world.check_writable()
        with at_hand(request.workers, request.scheduler, world.settings.device, world.say) as cluster:
            plan, failed = _rounds(world, plan, memory, watchdog, cluster)
    left_out = sorted({prompt for item in plan.items if not item.waits for prompt in excluded_prompts(item.path)})
    if left_out:
        world.say(left_out_line(left_out))
    incomplete = failed or left_out or any(item.waits for item in plan.items)
    return plan, [Exit.FAILED] if incomplete else []


def _rounds(
    world: World, plan: Plan, memory: int, watchdog: Watchdog, cluster: Cluster | None
) -> tuple[Plan, set[str]]:
    """Computes what a plan leaves to do, and plans anew, until nothing is left; returns plan and what has failed."""
    from repro.run.execute import Session, execute

    session = Session(plan.subject, world.settings, memory, world.say, watchdog)
    discarded: set[str] = set()
    failed: set[str] = set()
    costs: dict[str, Cost] = {}
    written = 0
    if world.request.fresh:
        # First the model: one that cannot be had must not cost the results that are there.
        for stream in list(plan.passes(plan.items))[:1]:
            session.engine(stream.precision)
    for _ in range(MAX_ROUNDS):
        if world.request.fresh:
            plan = _discard(world, plan, discarded)
        # Where what finds roles has failed, the experiments that do not need those still run.
        items = [item for item in plan.todo if item.name not in failed]
        items = items or [item for item in plan.ready if item.name not in failed]
        if not items:
            break
        show_plan(world, plan)
        for precision, cost in predict_each(plan, cache_folder(), items).items():
            costs[precision] = costs.get(precision, Cost()) + cost
        before = on_disk(items)
        outcomes = execute(plan, items, session, cluster)
        written += on_disk(items) - before
        failed |= {outcome.name for outcome in outcomes if outcome.error}
        plan = world.plan(plan.subject)
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in session.seconds.items())
    world.say(f"time: {spent}")
    if cluster is None and not watchdog.waited:  # plans are costed with the speed of one process, at all of the work
        took = {precision: session.took(precision) for precision in costs}
        if costs:
            world.say(compared(sum(costs.values(), Cost()), sum(took.values()), written))
        for precision, seconds in took.items():
            remember(cache_folder(), costs[precision].flop, seconds, plan, precision)
    return plan, failed


def _discard(world: World, plan: Plan, done: set[str]) -> Plan:
    """`--fresh`: forgets each result once, so that it is computed again."""
    for item in plan.items:
        if item.name not in done and not item.waits:
            done.add(item.name)
            _remove(item.path)
    return world.plan(plan.subject, [item.name for item in plan.items])


def _remove(path: Path) -> None:
    """Deletes a result, what says that it is whole first: a half-deleted one must not look damaged."""
    if not path.exists():
        return
    try:
        (path / COMMIT).unlink(missing_ok=True)
        shutil.rmtree(path)
    except OSError as error:
        raise ReproError(f"{path}: cannot be removed ({error.strerror})") from None


def source_of(plan: Plan, experiment: str, committed: Path) -> drawing.Source | str:
    """The data of an experiment: its own result, else the copy kept in git, stamped so; else why there is nothing.

    Raises ReproError (exit 5) for an own result that is damaged: another one must not take its place.
    """
    item = next((item for item in plan.items if item.name == experiment), None)
    if item is not None and item.state == "fresh":
        return drawing.Source(item.path)
    if item is not None:
        item.refuse_damage()
    copy = committed / plan.subject.name / experiment
    if (copy / "COMMIT").is_file():
        return drawing.Source(copy, "COMMITTED")
    return drawing.lack(experiment, "" if item is None else item.state)


def draw(world: World, plan: Plan) -> list[drawing.Drawn]:
    """Draws the selected figures from the store."""
    out = world.figures_folder(plan.subject.name)
    wanted = world.selection[1]

    def source(experiment: str) -> drawing.Source | str:
        return source_of(plan, experiment, world.committed)

    try:
        drawn = drawing.draw(world.loaded, wanted, source, out, world.request.fresh)
    except OSError as error:
        raise ReproError(f"{out}: figures cannot be written ({error.strerror})") from None
    new = sum(not item.skipped for item in drawn)
    same = sum(item.skipped == "unchanged" for item in drawn)
    world.say(f"figures: {new} drawn, {same} unchanged, in {out}")
    for item in drawn:
        if item.skipped and item.skipped != "unchanged":
            world.say(f"  {item.name}: {item.skipped}")
    return drawn


def check(world: World, plan: Plan) -> list[Exit]:
    """Compares the numbers with the published ones and writes check.md and check.json beside the figures."""
    from repro.check import compare as checking
    from repro.check.precision import effects, unpaired
    from repro.check.precision_report import write_effects
    from repro.check.published import PAPER_PROMPTS
    from repro.check.report import Heading, summary_line, write_report
    from repro.store.result import read_raw, read_summary

    plan = _widened(world, plan)
    paths = {name: at for name in world.loaded.spec.experiment if (at := _result(world, plan, name)) is not None}
    results = {name: read_summary(path) for name, path in paths.items()}
    own = plan.subject.name == world.loaded.spec.run.paper_subject
    n_prompts, n_positions = plan.subject.tokens.shape
    # A prompt that only a variant of precision has lost takes nothing from the others' rows.
    own_precision = [found.attrs for found in results.values() if "precision" not in found.attrs]
    left_out = tuple(sorted({int(prompt) for attrs in own_precision for prompt in attrs.get(NOTE, ())}))
    heading = Heading(
        subject=plan.subject.name,
        subject_is_papers=own,
        n_prompts=min(n_prompts, world.settings.prompts or n_prompts),
        n_positions=n_positions,
        same_prompts=own and _recipe(plan.subject) == PAPER_PROMPTS and not left_out,
        left_out=left_out,
    )

    def judge(places: Mapping[str, str]) -> list[checking.Row]:
        """The comparison, with the results of some experiments in the place of others'; large tables then in haste."""
        stored = {name: places.get(name, name) for name in results}
        return checking.check(
            {name: results[other] for name, other in stored.items()},
            subject_is_papers=own,
            same_prompts=heading.same_prompts,
            raw=lambda name: kept(read_raw(paths[stored[name]]), results[stored[name]].attrs),
            tables=not places,
        )

    rows = judge({})
    out = world.figures_folder(plan.subject.name)
    try:
        table, _ = write_report(rows, out, heading)
    except OSError as error:
        raise ReproError(f"{out}: the check cannot be written ({error.strerror})") from None
    world.say(f"check: {summary_line(rows)}; {table}")
    declared = world.loaded.spec.experiment
    # What another selection of experiments has left beside this check is not about these results.
    for name in ("variants", "precision"):
        for kind in ("md", "json"):
            (out / f"{name}.{kind}").unlink(missing_ok=True)
    if lines := variant_lines(declared, results):
        world.say(f"variants: {write_variants(lines, out, plan.subject.name)}")
    if found := effects(declared, results, rows, judge, own):
        world.say(f"precision: {write_effects(found, unpaired(declared, found), out, heading)}")
    if not own:
        paper = world.loaded.spec.run.paper_subject
        world.say(f"  published numbers belong to {paper}; {plan.subject.name} is another model")
    code = checking.exit_code(rows)
    return [] if code == Exit.OK else [code]


def _recipe(subject: ResolvedSubject) -> object:
    """The recipe of a subject's prompts from the hub."""
    prompts = subject.subject.prompts
    return prompts.model_dump(mode="json") if isinstance(prompts, HubPrompts) else None


def _widened(world: World, plan: Plan) -> Plan:
    """The plan with all experiments of the spec, where they all fit the subject: at once they are planned sooner."""
    try:
        return world.plan(plan.subject, [*(item.name for item in plan.items), *world.loaded.spec.experiment])
    except ReproError:
        return plan


def _result(world: World, plan: Plan, name: str) -> Path | None:
    """Where an experiment's own committed result lies, whether or not it was selected now."""
    item = _item(world, plan, name)
    if item is not None:
        item.refuse_damage()
        if item.state.startswith("partial"):
            world.say(f"  {drawing.lack(name, item.state)}; it is not compared")
    return item.path if item is not None and item.state == "fresh" else None


def _item(world: World, plan: Plan, name: str) -> Item | None:
    """An experiment in the plan, or in one of its own; nothing where it does not fit or its role is named."""
    item = next((item for item in plan.items if item.name == name), None)
    if item is not None:
        return item
    try:
        named = world.plan(plan.subject, [name]).items
    except ReproError:
        # Declared for other prompts or another model than this subject's: it has no result here.
        return None
    return next((other for other in named if other.name == name), None)


def clean(world: World, plan: Plan, remove: bool) -> list[Path]:
    """Results of the subject that the spec does not use: shown, and with `remove` deleted.

    Unfinished work of the present keys is used. An experiment that waits for roles keeps all it has: which of it will
    be used is not known yet.
    """
    items = [item for name in world.loaded.spec.experiment if (item := _item(world, plan, name)) is not None]
    used, waiting = {item.path for item in items}, {item.name for item in items if item.waits}
    found = [
        path
        for path in sorted((world.store / plan.subject.name).glob("*/*"))
        if path.is_dir() and path not in used and path.parent.name not in waiting
    ]
    for path in found:
        world.say(f"{'removed' if remove else 'would remove'} {path}")
        if remove:
            _remove(path)
    if not found:
        world.say("nothing to remove")
    elif not remove:
        world.say("nothing was removed; say --yes to remove")
    return found


def verify(world: World) -> list[Exit]:
    """Looks for damage in every result of the store."""
    from repro.store.verify import verify as look

    findings = look(world.store) if world.store.is_dir() else []
    for finding in findings:
        world.say(str(finding))
    found = f"{len(findings)} finding{'s' if len(findings) > 1 else ''}" if findings else "nothing damaged"
    world.say(f"verify: {found} in {world.store}")
    return [Exit.CORRUPT] if findings else []


def as_json(value: object) -> str:
    """Machine-readable output of a command."""
    return json.dumps(value, indent=1, sort_keys=True)
