"""What a result depends on: the key under which it is stored, and what changed since another one was computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from repro.measures.base import Context, Measure
from repro.model.folder import tokens_fingerprint
from repro.store.records import State
from repro.subjects.resolve import ResolvedSubject

SHORT = 16


@cache
def _torch_release() -> str:
    """Return major and minor version of the installed torch, looked up once: it takes longer than the rest of a key."""
    return ".".join(version("torch").split(".")[:2])


def key_parts(
    experiment: Measure, context: Context, subject: ResolvedSubject, settings: Mapping[str, str | int]
) -> dict[str, Any]:
    """Return everything that can change a number of this result.

    settings: precision (the experiment's own or the run's), kernels, device and prompts_per_unit. Returns JSON values.
    Agreement: tests/plan/test_plan.py.
    """
    spec = experiment.model_dump(mode="json", exclude={"about", "group", "prompts", "precision", "variant_of"})
    key: dict[str, Any] = {
        "experiment": spec,
        "measure_version": experiment.version,
        "prompts": context.n_prompts,
        "tokens": tokens_fingerprint(subject.tokens[: context.n_prompts]),
        "weights": subject.weights,
        **settings,
        "torch": _torch_release(),
    }
    asked = experiment.needs
    if asked and context.roles.writer:
        key["writer"] = context.roles.writer
        # Whether the scan claims named roles changes no number: figures say what it says now.
        unfound = context.roles.source == "auto" and not context.roles.found
        key["roles"] = context.roles.source + (", not found" if unfound else "")
        if "erasers" in asked:
            key["erasers"] = list(context.roles.erasers)
    if "examples" in asked:
        key["examples"] = [[e.label, list(e.tokens), e.answer, e.other, e.head, e.prompt] for e in context.examples]
    return key


def what_changed(folder: Path, key: Mapping[str, Any]) -> State:
    """Return `absent`, or `stale` and what differs from the latest result of another key.

    folder: the directory of all results of one experiment. Agreement: tests/plan/test_plan.py.
    """
    others = sorted(folder.glob("*/provenance.json"), key=lambda path: path.stat().st_mtime)
    if not others:
        return State("absent", why="never computed")
    try:
        before = dict(json.loads(others[-1].read_text())["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return State("absent", why="never computed with these settings")
    changed = sorted(name for name in {*before, *key} if before.get(name) != key.get(name))
    changes = ", ".join(_change(name, before.get(name), key.get(name)) for name in changed)
    return State("stale", why=f"changed: {changes}")


def _change(name: str, before: object, now: object) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        inner = sorted(key for key in {*before, *now} if before.get(key, "") != now.get(key, ""))
        return ", ".join(f"{key} {before.get(key)} -> {now.get(key)}" for key in inner)
    short = all(isinstance(value, str | int | float | None) and len(str(value)) <= SHORT for value in (before, now))
    return f"{name} {before} -> {now}" if short else name
