"""What has to be computed, and why: experiments on a subject, and what the store already holds. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from repro.errors import Exit, ReproError
from repro.labels import FLOAT32, did_you_mean, listing
from repro.measures.declare import MINED_POSITIONS, Context, Stream, layout, needs
from repro.measures.roles import ExampleTokens, Roles
from repro.plan.key import key_parts, what_changed
from repro.spec.types import Common, Example, FindErasers, FindWriter, Loaded, MineExamples, Windowed
from repro.store.layout import Layout, key12, result_path
from repro.store.records import status
from repro.subjects.resolve import ResolvedSubject, mined_from

WAITS = "waits for roles"
ROLE_MEASURES = {"find_writer": "writer", "find_erasers": "erasers", "mine_examples": "examples"}


@dataclass(frozen=True)
class Settings:
    """How to compute: everything that may change a number, and nothing else."""

    precision: str
    """Of experiments that name none."""
    kernels: str
    device: str
    unit: int
    prompts: int | None = None


@dataclass(frozen=True)
class Item:
    """One experiment on one subject: what it will hold, where, and what is there."""

    name: str
    experiment: Common
    context: Context
    state: str
    """`fresh`, `absent`, `stale`, `partial k/n`, `corrupt`, or `waits for roles`."""
    why: str = ""
    key: Mapping[str, Any] = field(default_factory=dict)
    path: Path = Path()
    layout: Layout | None = None
    precision: str = FLOAT32
    """The experiment's own, or the run's."""

    @property
    def waits(self) -> bool:
        """Whether roles it needs are not known yet."""
        return self.state == WAITS

    def refuse_damage(self) -> None:
        """Raises ReproError (exit 5) if what is there is damaged; `run` mends it."""
        if self.state == "corrupt":
            raise ReproError(f"{self.path} is damaged: {self.why}; `python -m repro run` mends it", Exit.CORRUPT)

    @property
    def length(self) -> int:
        """Tokens per prompt that its pass reads: all, or the first few for mining."""
        if isinstance(self.experiment, MineExamples):
            return min(MINED_POSITIONS[1] + 2, self.context.n_positions)
        return self.context.n_positions

    @property
    def stream(self) -> Stream:
        """What its pass reads; experiments that read the same share one."""
        return Stream(self.length, self.precision)


@dataclass(frozen=True)
class Plan:
    """All chosen experiments on a subject."""

    subject: ResolvedSubject
    settings: Settings
    items: tuple[Item, ...]
    roles: Roles | None
    examples: tuple[ExampleTokens, ...]

    @property
    def ready(self) -> list[Item]:
        """What could be computed now: everything that neither is there nor waits."""
        return [item for item in self.items if not item.waits and item.state != "fresh"]

    @property
    def todo(self) -> list[Item]:
        """What to compute next: while something waits for roles, what finds them, so that one pass serves the rest."""
        finders = [item for item in self.ready if isinstance(item.experiment, FindWriter | FindErasers | MineExamples)]
        return finders if finders and any(item.waits for item in self.items) else self.ready

    def passes(self, items: Iterable[Item]) -> dict[Stream, list[Item]]:
        """Which of some experiments share a pass: one model after the other, the run's own precision first."""
        found: dict[Stream, list[Item]] = {}
        for item in sorted(
            items, key=lambda item: (item.precision != self.settings.precision, item.precision, item.length)
        ):
            found.setdefault(item.stream, []).append(item)
        return found

    def item(self, name: str) -> Item:
        """The item of an experiment."""
        return next(item for item in self.items if item.name == name)


def select(loaded: Loaded, only: Sequence[str]) -> tuple[list[str], list[str]]:
    """The experiments and figures asked for: names of experiments, figures or groups; nothing: the spec's groups.

    A figure pulls its experiment. Raises ReproError (exit 2) for an unknown name.
    """
    spec = loaded.spec
    groups = {experiment.group for experiment in spec.experiment.values()}
    asked = list(only) or list(spec.run.groups)
    experiments: list[str] = []
    figures: list[str] = []
    for name in asked:
        if name in spec.figure:
            figures.append(name)
            experiments.append(spec.figure[name].experiment)
        elif name in spec.experiment or name in groups:
            chosen = [key for key, value in spec.experiment.items() if name in (key, value.group)]
            experiments += chosen
            figures += [key for key, value in spec.figure.items() if value.experiment in chosen]
        else:
            known = [*spec.experiment, *spec.figure, *sorted(groups)]
            raise ReproError(
                f"no experiment, figure or group {name!r}.{did_you_mean(name, known)} Known: {listing(known, 40)}"
            )
    return list(dict.fromkeys(experiments)), [name for name in spec.figure if name in figures]


def make_plan(loaded: Loaded, subject: ResolvedSubject, names: Iterable[str], settings: Settings, store: Path) -> Plan:
    """The plan for some experiments on a subject: role experiments that they wait for come first.

    store: the store's root. Reads only small files; needs no weights beyond their hash and no torch.
    Agreement: tests/plan/test_plan.py.
    """
    spec = loaded.spec
    chosen = list(dict.fromkeys(names))
    n_prompts, n_positions = subject.tokens.shape
    if settings.prompts is not None:
        n_prompts = min(n_prompts, settings.prompts)
    base = Context(subject.folder.shape, n_prompts, n_positions)
    builder = _Builder(loaded, subject, settings, store)
    # Roles that nothing asked for are not looked up: a spec need not declare what it does not use.
    asked = {need for name in chosen for need in needs(spec.experiment[name])}
    roles = builder.roles(base, asked) if asked else Known()
    examples = builder.examples(base, roles) if "examples" in asked else None
    missing = {need for name in chosen for need in needs(spec.experiment[name]) if not _known(need, roles, examples)}
    if missing & {"erasers", "examples"}:
        missing.add("writer")
    # A role experiment that would only repeat what the spec names is left out.
    pulled = [name for name in builder.role_experiments if builder.role_experiments[name] in missing]
    wanted = [*pulled, *(name for name in chosen if name not in pulled)]
    context = replace(base, roles=roles.complete, examples=examples or ())
    items = []
    for name in wanted:
        role = builder.role_experiments.get(name)
        if role is not None and builder.named(role):
            continue
        items.append(builder.item(name, replace(context, roles=roles.partial) if role else context, roles, examples))
    return Plan(subject, settings, tuple(items), roles.complete, examples or ())


@dataclass(frozen=True)
class Known:
    """Roles as far as they are known: the writer may be known before its erasers."""

    writer: str | None = None
    writer_found: bool = True
    complete: Roles | None = None

    @property
    def partial(self) -> Roles | None:
        """Roles for experiments that need only the writer."""
        if self.complete is not None:
            return self.complete
        if self.writer is None:
            return None
        return Roles(self.writer, (), self.writer_found, "auto")


def _known(need: str, roles: Known, examples: tuple[ExampleTokens, ...] | None) -> bool:
    if need == "writer":
        return roles.writer is not None
    return roles.complete is not None if need == "erasers" else examples is not None


class _Builder:
    """Builds items; holds what they share."""

    def __init__(self, loaded: Loaded, subject: ResolvedSubject, settings: Settings, store: Path) -> None:
        self.loaded = loaded
        self.subject = subject
        self.settings = settings
        self.store = store
        self.role_experiments = {
            name: ROLE_MEASURES[experiment.measure]
            for name, experiment in loaded.spec.experiment.items()
            if experiment.measure in ROLE_MEASURES
        }

    def named(self, role: str) -> bool:
        """Whether the spec names this role itself."""
        return getattr(self.subject.subject, role) != "auto"

    def roles(self, base: Context, asked: Collection[str]) -> Known:
        """Writer and, if asked for, erasers: from the spec or from stored evidence."""
        declared = self.subject.subject
        if declared.writer != "auto" and not isinstance(declared.erasers, str):
            roles = Roles(declared.writer, declared.erasers)
            return Known(roles.writer, True, roles)
        if declared.writer != "auto":
            known = Known(declared.writer)
        else:
            attrs = self._evidence("writer", base)
            if attrs is None:
                return Known()
            known = Known(str(attrs["writer"]), bool(attrs["found"]))
        attrs = self._evidence("erasers", replace(base, roles=known.partial)) if "erasers" in asked else None
        if attrs is None:
            return known
        roles = Roles(str(known.writer), tuple(attrs["erasers"]), bool(attrs["found"]), "auto")
        return Known(known.writer, known.writer_found, roles)

    def examples(self, base: Context, roles: Known) -> tuple[ExampleTokens, ...] | None:
        """The adversarial prompts, tokenised; nothing while they are not mined yet."""
        declared = self.subject.subject.examples
        if not isinstance(declared, str):
            return tuple(self._named(item) for item in declared)
        if roles.writer is None:
            return None
        attrs = self._evidence("examples", replace(base, roles=roles.partial))
        return None if attrs is None else tuple(self._mined(item) for item in mined_from(attrs))

    def _named(self, item: Example) -> ExampleTokens:
        tokenizer, n_ctx = self.subject.tokenizer, self.subject.folder.shape.n_ctx
        try:
            tokens = (int(self.subject.tokens[0, 0]), *tokenizer.encode(item.text))
            if len(tokens) > n_ctx:
                raise ReproError(f"text of {len(tokens)} tokens is longer than the model's context of {n_ctx}")
            answer, other = tokenizer.single(item.answer), tokenizer.single(item.other)
        except ReproError as error:
            raise error.at(f"[subject.{self.subject.name}] example {item.label!r}") from None
        return ExampleTokens(item.label, tokens, answer, other, item.text, item.answer, item.other, item.head)

    def _mined(self, item: Mapping[str, Any]) -> ExampleTokens:
        decode = self.subject.tokenizer.decode
        row = self.subject.tokens[item["prompt"], : item["position"] + 1].tolist()
        answer = decode(item["first"])
        return ExampleTokens(
            label=f"{answer.strip() or answer!r} (prompt {item['prompt']})",
            tokens=tuple(row),
            answer=item["first"],
            other=item["second"],
            text=decode(*row[1:]),
            answer_text=answer,
            other_text=decode(item["second"]),
            prompt=item["prompt"],
            right=item["right"],
        )

    def _evidence(self, role: str, context: Context) -> dict[str, Any] | None:
        """The stored outcome of a role experiment, if it is there and fresh."""
        for name, kind in self.role_experiments.items():
            if kind == role:
                item = self.item(name, context, None, None)
                if item.state != "fresh":
                    return None
                from repro.store.result import read_summary

                return dict(read_summary(item.path).attrs)
        measure = next(measure for measure, kind in ROLE_MEASURES.items() if kind == role)
        raise ReproError(
            f"[subject.{self.subject.name}] {role}: to be found, but no experiment of the spec does so; declare one "
            f'with measure = "{measure}", or name the {role}'
        )

    def item(
        self, name: str, context: Context, roles: Known | None, examples: tuple[ExampleTokens, ...] | None
    ) -> Item:
        """One experiment: its key and the state of its result."""
        experiment = self.loaded.spec.experiment[name]
        context = context.within(experiment)
        precision = experiment.precision or self.settings.precision
        if roles is not None and not all(_known(need, roles, examples) for need in needs(experiment)):
            why = "its roles are not known before the role experiments have run"
            return Item(name, experiment, context, WAITS, why, precision=precision)
        try:
            declared = layout(experiment, context)
        except ReproError as error:
            raise error.at(f"[experiment.{name}]") from None
        if isinstance(experiment, Windowed) and experiment.positions is not None:
            first, last = experiment.positions
            end = last if last >= 0 else context.n_positions + last
            if not first <= end < context.n_positions:
                raise ReproError(
                    f"[experiment.{name}] positions: [{first}, {last}] does not fit prompts of {context.n_positions} "
                    f"tokens (positions 0 to {context.n_positions - 1})"
                )
        settings = self.settings
        how = {"precision": precision, "kernels": settings.kernels, "device": settings.device}
        key = key_parts(experiment, context, self.subject, {**how, "prompts_per_unit": settings.unit})
        path = result_path(self.store, self.subject.name, name, key12(key))
        state, _, why = str(status(path)).partition(": ")
        if state == "committed":
            state = "fresh"
        elif state == "absent":
            state, why = what_changed(path.parent, key)
        return Item(name, experiment, context, state, why, key, path, declared, precision)
