"""What has to be computed, and why: experiments on a subject, and what the store already holds. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from repro.errors import Exit, ReproError, did_you_mean, listing
from repro.labels import FLOAT32
from repro.measures.base import Context, Measure, Stream
from repro.measures.roles import Roles
from repro.plan.key import key_parts, what_changed
from repro.plan.roles import finders, known_roles, left_out, writer_alone
from repro.spec.types import Loaded
from repro.store.layout import Layout, key12, result_path
from repro.store.records import State, status
from repro.subjects.resolve import ResolvedSubject

RAW_BYTES = 2**30
"""Bytes that the raw values of one experiment may take. What would hold more, such as every site on every node of a
model of many layers, takes the first prompts only; its summary and its figures say how many."""


@dataclass(frozen=True)
class Settings:
    """How to compute: everything that may change a number, and nothing else."""

    precision: str
    """Of experiments that name none."""
    kernels: str
    device: str
    unit: int
    prompts: int | None = None
    products: str = "ieee"
    """How Triton multiplies float32."""


@dataclass(frozen=True)
class Item:
    """One experiment on one subject: what it will hold, where, and what is there."""

    name: str
    experiment: Measure
    context: Context
    state: State
    """`waits` (for roles), `absent`, `stale`, `partial`, `corrupt` or `fresh`, and why."""
    key: Mapping[str, Any] = field(default_factory=dict)
    path: Path = Path()
    layout: Layout | None = None
    precision: str = FLOAT32
    """The experiment's own, or the run's."""

    @property
    def waits(self) -> bool:
        """Return whether roles it needs are not known yet."""
        return self.state.kind == "waits"

    @property
    def fresh(self) -> bool:
        """Return whether its result is there."""
        return self.state.kind == "fresh"

    @property
    def stream(self) -> Stream:
        """Return what its pass reads; experiments that read the same share one."""
        return Stream(self.experiment.length(self.context), self.precision)

    def refuse_damage(self) -> None:
        """Raise ReproError (exit 5) if what is there is damaged; `run` repairs it."""
        if self.state.kind == "corrupt":
            damage = f"{self.path} is damaged: {self.state.why}"
            raise ReproError(f"{damage}; `python -m repro run` repairs it", Exit.CORRUPT)

    def looked_up(self) -> Item:
        """Return the item with what the store holds of it now."""
        return self if self.waits else replace(self, state=_state(self.path, self.key))


@dataclass(frozen=True)
class Plan:
    """All chosen experiments on a subject."""

    subject: ResolvedSubject
    settings: Settings
    items: tuple[Item, ...]
    roles: Roles

    @property
    def todo(self) -> list[Item]:
        """Return what is to be computed: everything that neither is there nor waits for roles."""
        return [item for item in self.items if not item.waits and not item.fresh]

    def looked_up(self) -> Plan:
        """Return the same plan with what the store holds now."""
        return replace(self, items=tuple(item.looked_up() for item in self.items))

    def passes(self, items: Iterable[Item]) -> dict[Stream, list[Item]]:
        """Return which of some experiments share a pass: one model after the other, the run's own precision first."""
        found: dict[Stream, list[Item]] = {}
        for item in sorted(
            items, key=lambda item: (item.precision != self.settings.precision, item.precision, item.stream.length)
        ):
            found.setdefault(item.stream, []).append(item)
        return found

    def item(self, name: str) -> Item:
        """Return the item of an experiment."""
        return next(item for item in self.items if item.name == name)


def select(loaded: Loaded, only: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the experiments and figures asked for by names of experiments, figures or groups; none: the spec's.

    A figure pulls its experiment. Raises ReproError (exit 2) for an unknown name.
    """
    spec = loaded.spec
    groups = {experiment.group for experiment in spec.experiment.values()}
    asked = list(only) or list(spec.run.groups)
    experiments: list[str] = []
    figures: list[str] = []
    for name in asked:
        # An experiment before a figure: a figure that shares its experiment's name is one of the experiment's own.
        if name in spec.experiment or name in groups:
            chosen = [key for key, value in spec.experiment.items() if name in (key, value.group)]
            experiments += chosen
            figures += [key for key, value in spec.figure.items() if value.experiment in chosen]
        elif name in spec.figure:
            figures.append(name)
            experiments.append(spec.figure[name].experiment)
        else:
            known = list(dict.fromkeys([*sorted(groups), *spec.experiment, *spec.figure]))
            raise ReproError(
                f"no experiment, figure or group {name!r}.{did_you_mean(name, known)} Known: {listing(known, 40)}"
            )
    return list(dict.fromkeys(experiments)), [name for name in spec.figure if name in figures]


def make_plan(loaded: Loaded, subject: ResolvedSubject, names: Iterable[str], settings: Settings, store: Path) -> Plan:
    """Return the plan for some experiments on a subject: what finds roles that they wait for comes first.

    store: the store's root. Reads only small files; needs no weights beyond their hash and no torch.
    Agreement: tests/plan/test_plan.py.
    """
    return _Planner(loaded, subject, settings, store).plan(list(dict.fromkeys(names)))


class _Planner:
    """Builds items; holds what they share."""

    def __init__(self, loaded: Loaded, subject: ResolvedSubject, settings: Settings, store: Path) -> None:
        self.loaded = loaded
        self.subject = subject
        self.settings = settings
        self.store = store
        n_prompts, n_positions = subject.tokens.shape
        if settings.prompts is not None:
            n_prompts = min(n_prompts, settings.prompts)
        self.base = Context(subject.folder.shape, n_prompts, n_positions)

    def plan(self, chosen: list[str]) -> Plan:
        experiments = self.loaded.spec.experiment
        asked = {role for name in chosen for role in experiments[name].needs}
        roles = known_roles(self.loaded, self.subject, asked, self._result_of)
        missing = {role for role in asked if not roles.knows(role)}
        if missing and not roles.writer:
            missing.add("writer")
        pulled = finders(self.loaded, self.subject, missing)
        items = [
            self.item(name, self._given(experiments[name], roles))
            for name in dict.fromkeys((*pulled, *chosen))
            if not left_out(self.subject, experiments[name])
        ]
        return Plan(self.subject, self.settings, tuple(items), roles)

    def _given(self, experiment: Measure, roles: Roles) -> Roles:
        """Return the roles that an experiment is given: not what only it, or another test of them, can say."""
        if experiment.named_only:
            return Roles(roles.writer, roles.erasers)
        return writer_alone(self.subject, roles) if experiment.finds else roles

    def _result_of(self, name: str, roles: Roles) -> Path | None:
        """Return where the fresh result of an experiment that finds roles lies."""
        item = self.item(name, roles)
        return item.path if item.fresh else None

    def item(self, name: str, roles: Roles) -> Item:
        """Return one experiment: its key and the state of its result."""
        experiment: Measure = self.loaded.spec.experiment[name]
        # What needs no role tells of none: its result is the same whatever they are.
        context = replace(self.base, roles=roles if experiment.needs else Roles()).within(experiment)
        precision = experiment.precision or self.settings.precision
        if not all(roles.knows(role) for role in experiment.needs):
            why = "its roles are not known before the role experiments have run"
            return Item(name, experiment, context, State("waits", why=why), precision=precision)
        try:
            declared = experiment.layout(context)
            # So many prompts that the raw values stay under `RAW_BYTES`, and at least 1.
            if (most := max(1, RAW_BYTES * declared.n_prompts // declared.n_bytes)) < context.n_prompts:
                context = replace(context, n_prompts=most)
                declared = experiment.layout(context)
        except ReproError as error:
            raise error.at(f"[experiment.{name}]") from None
        settings = self.settings
        how = {"precision": precision, "kernels": settings.kernels, "device": settings.device}
        if settings.kernels == "triton":
            how["products"] = settings.products
        key = key_parts(experiment, context, self.subject, {**how, "prompts_per_unit": settings.unit})
        path = result_path(self.store, self.subject.name, name, key12(key))
        return Item(name, experiment, context, _state(path, key), key, path, declared, precision)


def _state(path: Path, key: Mapping[str, Any]) -> State:
    """Return what the store holds under a key: `fresh`, `partial`, `corrupt`, `absent`, or `stale` beside others."""
    found = status(path)
    if found.kind == "committed":
        return State("fresh", found.present, found.total)
    return what_changed(path.parent, key) if found.kind == "absent" else found
