"""Resolve a subject: a name, a directory or a hub name becomes a local model directory with prompts. No torch here."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from repro.errors import AbsentError, Exit, ReproError, did_you_mean, listing, plain
from repro.labels import heads, layer_of
from repro.model.folder import Folder, read_folder, read_prompts, read_shape, tokens_fingerprint, weights_fingerprint
from repro.spec.types import HubPrompts, Loaded, Subject
from repro.subjects.access import Access, cache_folder
from repro.subjects.given import refuse_no_directory
from repro.subjects.tokenizer import Tokenizer

_LONGEST = 1000
"""Characters of a path that are shown."""
_LONGEST_WORD = 48
_DIGITS = 8
"""Of the digest in the name of a subject that is not declared."""


@dataclass(frozen=True)
class ResolvedSubject:
    """A subject that can be had: its declaration, its directory, its prompts."""

    name: str
    subject: Subject
    folder: Folder
    fallback: str = ""
    """Why another subject than the first was taken; empty if it was the first."""

    @cached_property
    def tokens(self) -> np.ndarray:
        """Return the frozen prompts: int32 [prompt, position]."""
        return read_prompts(self.folder)

    @cached_property
    def weights(self) -> str:
        """Return the fingerprint of the model's files."""
        return weights_fingerprint(self.folder)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Return the subject's tokenizer, or one that shows token ids."""
        return Tokenizer(self.folder.tokenizer, self.folder.shape.d_vocab)


def choose(loaded: Loaded, name: str | None, access: Access) -> ResolvedSubject:
    """Return the subject named, or the first of the spec's default subjects that can be had.

    name: a declared subject, a model folder, or a hub name; nothing: the defaults in order, and falling back is told in
    `ResolvedSubject.fallback`. Raises ReproError: exit 2 for an unknown name, exit 4 if the subject cannot be had.
    Agreement: tests/subjects/test_subjects.py.
    """
    if name is not None:
        try:
            return _named(loaded, name, access)
        except ReproError as error:
            # What failed may be a part of it, such as its tokenizer's repository: the subject asked for is named, too.
            raise error if name in error.message else error.at(f"--subject {plain(name, _LONGEST)}") from None
    reasons: list[str] = []
    for candidate in loaded.spec.run.default_subjects:
        try:
            found = _at_hand(loaded, candidate, loaded.spec.subject[candidate], access)
        except AbsentError as error:
            reasons.append(f"{candidate} cannot be had here ({error.message})")
            continue
        return ResolvedSubject(found.name, found.subject, found.folder, "; ".join(reasons))
    raise ReproError("; ".join(reasons) or "the spec names no default subject", Exit.UNAVAILABLE)


def _named(loaded: Loaded, name: str, access: Access) -> ResolvedSubject:
    declared = loaded.spec.subject
    if name in declared:
        return _at_hand(loaded, name, declared[name], access)
    path = _path(Path(), name, "--subject")
    if path.is_dir():
        return _undeclared(_at_hand(loaded, path.resolve().name, Subject(model=str(path.resolve())), access))
    refuse_no_directory(name, path)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _undeclared(_at_hand(loaded, name.split("/")[1], Subject(model=name), access))
    raise ReproError(
        f"--subject {plain(name, _LONGEST)}: no such subject.{did_you_mean(name, declared)} Declared: "
        f"{listing(list(declared))}; a model folder or a hub name (owner/name) is also allowed"
    )


def _undeclared(chosen: ResolvedSubject) -> ResolvedSubject:
    """Return a subject that no spec declares under a name of its own: that of its directory and a digest.

    The digest is of the model's files and the prompts. Two directories of one name never share results or figures, nor
    does one pass for a declared subject, and a directory that is moved or copied keeps its results.
    """
    content = hashlib.sha256((chosen.weights + tokens_fingerprint(chosen.tokens)).encode()).hexdigest()
    word = re.sub(r"[^A-Za-z0-9_.-]+", "-", chosen.name).strip("-._")[:_LONGEST_WORD] or "model"
    named = replace(chosen, name=f"{word}-{content[:_DIGITS]}")
    vars(named).update(tokens=chosen.tokens, weights=chosen.weights)  # cached: large files are hashed once
    return named


def _at_hand(loaded: Loaded, name: str, subject: Subject, access: Access) -> ResolvedSubject:
    folder = _local(loaded, name, subject, access)
    chosen = ResolvedSubject(name, subject, folder)
    _check_roles(chosen)
    return chosen


def _local(loaded: Loaded, name: str, subject: Subject, access: Access) -> Folder:
    here = _path(loaded.folder, subject.model, f"[subject.{name}] model")
    prompts = None
    if isinstance(subject.prompts, str):
        prompts = _path(loaded.folder, subject.prompts, f"[subject.{name}] prompts")
    if here.is_dir():
        return read_folder(here, prompts)
    if subject.model.count("/") != 1 or subject.model.startswith((".", "/", "~")):
        raise AbsentError(f"[subject.{name}] model: {plain(str(here), _LONGEST)}: model directory not found")
    return fetch_subject(loaded, name, subject, access)


def fetch_subject(loaded: Loaded, name: str, subject: Subject, access: Access) -> Folder:
    """Return the directory and frozen prompts of a subject on the hub, pinned in `<spec stem>.lock.json`.

    Raises ReproError: exit 4 in one sentence if model or prompts cannot be had, exit 2 if there are no prompts.
    Agreement: tests/subjects/test_hub_paper.py.
    """
    from repro.subjects.hub import fetch_model
    from repro.subjects.lock import Lock
    from repro.subjects.prompts import freeze_prompts

    lock = Lock.beside(loaded.path).subject(name)
    offline = access.offline or not access.ask
    model = fetch_model(subject.model, tokenizer=subject.tokenizer, cache=access.cache, lock=lock, offline=offline)
    if isinstance(subject.prompts, str):
        return read_folder(model, loaded.folder / subject.prompts)
    if not isinstance(subject.prompts, HubPrompts):
        return read_folder(model)
    d_vocab = read_shape(model).d_vocab
    prompts = freeze_prompts(subject.prompts, d_vocab=d_vocab, cache=access.cache, lock=lock, offline=offline)
    return read_folder(model, prompts)


def _path(folder: Path, given: str, where: str) -> Path:
    """Return a path as given, from a directory or from the user's home; ReproError if the system cannot look there."""
    try:
        path = folder / Path(given).expanduser()
        path.is_dir()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ReproError(f"{where}: {plain(given, _LONGEST)} is not a path here ({reason})", Exit.UNAVAILABLE) from None
    return path


def _check_roles(chosen: ResolvedSubject) -> None:
    """Raise ReproError unless the named roles exist in this model."""
    shape, subject = chosen.folder.shape, chosen.subject
    known = heads(shape.n_layers, shape.n_heads)
    named = [] if subject.writer == "auto" else [("writer", subject.writer)]
    named += [] if isinstance(subject.erasers, str) else [("erasers", head) for head in subject.erasers]
    named += [] if isinstance(subject.examples, str) else [("examples head", item.head) for item in subject.examples]
    for key, head in named:
        if head not in known:
            raise ReproError(
                f"[subject.{chosen.name}] {key}: unknown head {head!r}; {chosen.folder.path.name} has layers 0 to "
                f"{shape.n_layers - 1} with {shape.n_heads} heads each (L0H0 to {known[-1]})"
            )
    if subject.writer != "auto" and layer_of(subject.writer) == shape.n_layers - 1:
        raise ReproError(f"[subject.{chosen.name}] writer: {subject.writer} is in the last layer; nothing can erase it")


def mined_from(attrs: dict[str, object]) -> list[dict[str, object]]:
    """Return the mined positions stored by `mine_examples`."""
    return list(json.loads(str(attrs["mined"])))


def listed(loaded: Loaded) -> list[dict[str, str]]:
    """Return the declared subjects and whether each can be had without asking anyone."""
    rows = []
    for name, subject in loaded.spec.subject.items():
        try:
            _at_hand(loaded, name, subject, Access(cache_folder(), offline=True, ask=False))
            state = "here"
        except ReproError as error:
            state = "not here" if error.code == Exit.UNAVAILABLE else "unfit"
        rows.append(
            {"name": name, "state": state, "writer": subject.writer, "model": subject.model, "about": subject.about}
        )
    return rows
