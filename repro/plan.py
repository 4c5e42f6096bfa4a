"""What has to be computed, and why: experiments on a subject, their keys, and what the store already holds. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from repro.declare import MEASURE_VERSIONS, MINED_POSITIONS, Context, layout, needs
from repro.errors import Exit, ReproError
from repro.folder import tokens_fingerprint
from repro.layout import Layout
from repro.names import did_you_mean, listing
from repro.records import status
from repro.roles import ExampleTokens, Roles
from repro.spec import Common, FindErasers, FindWriter, Loaded, MineExamples
from repro.subjects import Chosen, mined_from

WAITS = "waits for roles"


@dataclass(frozen=True)
class Settings:
    """How to compute: everything that may change a number, and nothing else."""

    precision: str
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

    @property
    def waits(self) -> bool:
        """Whether roles it needs are not known yet."""
        return self.state == WAITS

    @property
    def length(self) -> int:
        """Tokens per prompt that its pass reads: all, or the first few for mining."""
        if isinstance(self.experiment, MineExamples):
            return min(MINED_POSITIONS[1] + 2, self.context.n_positions)
        return self.context.n_positions


@dataclass(frozen=True)
class Plan:
    """All chosen experiments on a subject."""

    subject: Chosen
    settings: Settings
    items: tuple[Item, ...]
    roles: Roles | None
    examples: tuple[ExampleTokens, ...]

    @property
    def todo(self) -> list[Item]:
        """What to compute next: while something waits for roles, only what finds them, so that one pass serves the rest."""
        ready = [item for item in self.items if not item.waits and item.state != "fresh"]
        finders = [item for item in ready if isinstance(item.experiment, FindWriter | FindErasers | MineExamples)]
        return finders if any(item.waits for item in self.items) else ready

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
                f"--only {name}: no such experiment, figure or group.{did_you_mean(name, known)}"
                f" Known: {listing(known, 40)}"
            )
    return list(dict.fromkeys(experiments)), [name for name in spec.figure if name in figures]


def make_plan(loaded: Loaded, subject: Chosen, names: Iterable[str], settings: Settings, store: Path) -> Plan:
    """The plan for some experiments on a subject: role experiments that they wait for come first.

    store: the store's root. Reads only small files; needs no weights beyond their hash and no torch.
    Agreement: tests/test_plan.py.
    """
    spec = loaded.spec
    chosen = list(dict.fromkeys(names))
    n_prompts, n_positions = subject.tokens.shape
    if settings.prompts is not None:
        n_prompts = min(n_prompts, settings.prompts)
    base = Context(subject.folder.shape, n_prompts, n_positions)
    builder = _Builder(loaded, subject, settings, store)
    roles = builder.roles(base)
    examples = builder.examples(base, roles)
    missing = {need for name in chosen for need in needs(spec.experiment[name]) if not _known(need, roles, examples)}
    if missing & {"erasers", "examples"}:
        missing.add("writer")
    # A role experiment that would only repeat what the spec names is left out, unless it was asked for alone.
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

    def __init__(self, loaded: Loaded, subject: Chosen, settings: Settings, store: Path) -> None:
        self.loaded = loaded
        self.subject = subject
        self.settings = settings
        self.store = store
        kinds = {"find_writer": "writer", "find_erasers": "erasers", "mine_examples": "examples"}
        self.role_experiments = {
            name: kinds[experiment.measure]
            for name, experiment in loaded.spec.experiment.items()
            if experiment.measure in kinds
        }

    def named(self, role: str) -> bool:
        """Whether the spec names this role itself."""
        return getattr(self.subject.subject, role) != "auto"

    def roles(self, base: Context) -> Known:
        """Writer and erasers, from the spec or from stored evidence."""
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
        attrs = self._evidence("erasers", replace(base, roles=known.partial))
        if attrs is None:
            return known
        roles = Roles(str(known.writer), tuple(attrs["erasers"]), bool(attrs["found"]), "auto")
        return Known(known.writer, known.writer_found, roles)

    def examples(self, base: Context, roles: Known) -> tuple[ExampleTokens, ...] | None:
        """The adversarial prompts, tokenised; nothing while they are not mined yet."""
        declared, tokenizer = self.subject.subject.examples, self.subject.tokenizer
        bos = int(self.subject.tokens[0, 0])
        if not isinstance(declared, str):
            return tuple(
                ExampleTokens(
                    label=item.label,
                    tokens=(bos, *tokenizer.encode(item.text)),
                    answer=tokenizer.single(item.answer),
                    other=tokenizer.single(item.other),
                    text=item.text,
                    answer_text=item.answer,
                    other_text=item.other,
                    head=item.head,
                )
                for item in declared
            )
        if roles.writer is None:
            return None
        attrs = self._evidence("examples", replace(base, roles=roles.partial))
        return None if attrs is None else tuple(self._mined(item) for item in mined_from(attrs))

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
        )

    def _evidence(self, role: str, context: Context) -> dict[str, Any] | None:
        """The stored outcome of a role experiment, if it is there and fresh."""
        for name, kind in self.role_experiments.items():
            if kind == role:
                item = self.item(name, context, None, None)
                if item.state != "fresh":
                    return None
                from repro.store import read_summary

                return dict(read_summary(item.path).attrs)
        raise ReproError(
            f"subject {self.subject.name!r} leaves its {role} to be found, but the spec declares no experiment that finds "
            f'them; declare one with measure = "{ {"writer": "find_writer", "erasers": "find_erasers"}.get(role, "mine_examples") }"'
        )

    def item(
        self, name: str, context: Context, roles: Known | None, examples: tuple[ExampleTokens, ...] | None
    ) -> Item:
        """One experiment: its key and the state of its result."""
        experiment = self.loaded.spec.experiment[name]
        context = context.within(experiment)
        if roles is not None and not all(_known(need, roles, examples) for need in needs(experiment)):
            return Item(
                name, experiment, context, WAITS, "its roles are not known before the role experiments have run"
            )
        try:
            declared = layout(experiment, context)
        except ReproError as error:
            raise error.at(f"[experiment.{name}]") from None
        if experiment.positions is not None and experiment.positions[1] >= context.n_positions:
            raise ReproError(
                f"[experiment.{name}] positions: {list(experiment.positions)} reaches beyond the prompts' "
                f"{context.n_positions} positions (0 to {context.n_positions - 1})"
            )
        key = self._key(experiment, context)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        path = self.store / self.subject.name / name / digest
        found = status(path)
        if found == "committed":
            return Item(name, experiment, context, "fresh", "", key, path, declared)
        if found == "absent":
            state, why = self._why(path.parent, key)
        else:
            state, why = found.split(":")[0], found
        return Item(name, experiment, context, state, why, key, path, declared)

    def _key(self, experiment: Common, context: Context) -> dict[str, Any]:
        """Everything that can change a number of this result."""
        spec = experiment.model_dump(mode="json", exclude={"about", "group", "prompts"})
        key: dict[str, Any] = {
            "experiment": spec,
            "measure_version": MEASURE_VERSIONS[spec["measure"]],
            "prompts": context.n_prompts,
            "tokens": tokens_fingerprint(self.subject.tokens[: context.n_prompts]),
            "weights": self.subject.weights,
            "precision": self.settings.precision,
            "kernels": self.settings.kernels,
            "device": self.settings.device,
            "prompts_per_unit": self.settings.unit,
            "torch": _major_minor("torch"),
        }
        asked = needs(experiment)
        if asked and context.roles is not None:
            key["writer"] = context.roles.writer
            if "erasers" in asked:
                key["erasers"] = list(context.roles.erasers)
        if "examples" in asked:
            key["examples"] = [[list(e.tokens), e.answer, e.other, e.head, e.prompt] for e in context.examples]
        return key

    def _why(self, folder: Path, key: Mapping[str, Any]) -> tuple[str, str]:
        """`absent`, or `stale` and what differs from the latest result of another key."""
        others = sorted(folder.glob("*/provenance.json"), key=lambda path: path.stat().st_mtime)
        if not others:
            return "absent", "never computed"
        try:
            before = json.loads(others[-1].read_text())["key"]
        except (OSError, ValueError, KeyError, TypeError):
            return "absent", "never computed with these settings"
        changed = sorted(name for name in {*before, *key} if before.get(name) != key.get(name))
        return "stale", "changed: " + ", ".join(_change(name, before.get(name), key.get(name)) for name in changed)


def _change(name: str, before: object, now: object) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        inner = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        return ", ".join(f"{key} {before.get(key)} -> {now.get(key)}" for key in inner)
    short = all(isinstance(value, str | int | float | None) and len(str(value)) <= 16 for value in (before, now))
    return f"{name} {before} -> {now}" if short else name


def _major_minor(package: str) -> str:
    try:
        return ".".join(version(package).split(".")[:2])
    except PackageNotFoundError:
        raise ReproError(f"{package} is not installed", Exit.FAILED) from None
