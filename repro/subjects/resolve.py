"""Resolve a subject: a name, a directory or a hub name becomes a local model directory with prompts. No torch here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from repro.errors import AbsentError, Exit, ReproError, did_you_mean, listing
from repro.labels import heads, nodes
from repro.model.folder import (
    PROMPTS,
    Folder,
    read_folder,
    read_prompts,
    read_shape,
    tokens_fingerprint,
    weights_fingerprint,
)
from repro.spec.types import HubPrompts, Loaded, Subject, TextPrompts
from repro.subjects.access import Access, cache_folder
from repro.subjects.given import refuse_no_directory, shown_path
from repro.subjects.lock import Lock
from repro.subjects.pypi import PREFIX, fetch_wheel, requirement
from repro.subjects.text import freeze_text
from repro.subjects.tokenizer import Tokenizer

SAMPLE_ROWS = 30
"""Documents of the bundled sample that a model without prompts is given."""
_PATHS = (".", "/", "~")
"""What a path begins with that is certainly one."""
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
    notice: str = ""
    """What was given as prompts to a model that has none, or in place of its own; empty if its own were taken."""

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


def choose(loaded: Loaded, name: str | None, access: Access, text: Sequence[Path] = ()) -> ResolvedSubject:
    """Return the subject named, or the first of the spec's default subjects that can be had.

    name: a declared subject, a model directory, a hub name, or pypi:NAME==VERSION; nothing: the defaults in order, and
    falling back is told in `ResolvedSubject.fallback`. text: files of plain text in place of the subject's prompts.
    Raises ReproError: exit 2 for an unknown name, exit 4 if the subject cannot be had.
    Agreement: tests/subjects/test_subjects.py.
    """
    if name is not None:
        try:
            label, subject = _named(loaded, name)
            found = _at_hand(loaded, label, subject, access, text)
            return found if text or name in loaded.spec.subject else _undeclared(found)
        except ReproError as error:
            # What failed may be a part of it, such as its tokenizer's repository: the subject asked for is named, too.
            raise error if name in error.message else error.at(f"--subject {shown_path(name)}") from None
    reasons: list[str] = []
    for candidate in loaded.spec.run.default_subjects:
        try:
            found = _at_hand(loaded, candidate, loaded.spec.subject[candidate], access, text)
        except AbsentError as error:
            reasons.append(f"{candidate} cannot be had here ({error.message})")
            continue
        return replace(found, fallback="; ".join(reasons))
    raise ReproError("; ".join(reasons) or "the spec names no default subject", Exit.UNAVAILABLE)


def _named(loaded: Loaded, name: str) -> tuple[str, Subject]:
    """Return a subject's name and declaration; what is not declared gets a name of its own."""
    declared = loaded.spec.subject
    if name in declared:
        return name, declared[name]
    path = _path(Path(), name, "--subject")
    if path.is_dir():
        return path.resolve().name, Subject(model=str(path.resolve()))
    if name.startswith(PREFIX):
        return "-".join(requirement(name)), Subject(model=name)
    refuse_no_directory(name, path)
    if _may_be_hub_name(name):
        return name.split("/")[1], Subject(model=name)
    if name.startswith(_PATHS):
        raise ReproError(f"--subject {shown_path(name)}: there is no such directory; give one that holds a model")
    raise ReproError(
        f"--subject {shown_path(name)}: no such subject.{did_you_mean(name, declared)} Declared: "
        f"{listing(list(declared))}; a model folder or a hub name (owner/name) is also allowed"
    )


def _may_be_hub_name(given: str) -> bool:
    return given.count("/") == 1 and not given.startswith(_PATHS)


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


def _at_hand(loaded: Loaded, name: str, subject: Subject, access: Access, text: Sequence[Path] = ()) -> ResolvedSubject:
    label = name
    if text:
        # Another name: results, copies in git and published numbers are those of the subject's own prompts.
        label = f"{name}-text"
        files = tuple(str(path.absolute()) for path in text)
        subject = subject.model_copy(update={"prompts": TextPrompts(text=files)})
    folder, notice = _local(loaded, name, subject, access, "--text" if text else f"[subject.{name}] prompts")
    chosen = ResolvedSubject(label, subject, folder, notice=notice)
    _check_roles(chosen)
    return _undeclared(chosen) if text else chosen


def _local(loaded: Loaded, name: str, subject: Subject, access: Access, where: str) -> tuple[Folder, str]:
    """Return the model's directory with its prompts, and what is to be said of them. where: what names the prompts."""
    here = _path(loaded.folder, subject.model, f"[subject.{name}] model")
    given = subject.prompts
    prompts = _path(loaded.folder, given, where) if isinstance(given, str) else None
    model = here if here.is_dir() else fetch_subject(loaded, name, subject, access)
    if isinstance(given, HubPrompts) and model is not here:
        from repro.subjects.prompts import freeze_prompts

        d_vocab, lock = read_shape(model).d_vocab, Lock.beside(loaded.path, name)
        return read_folder(model, freeze_prompts(given, d_vocab=d_vocab, access=access, lock=lock)), ""
    lacking = given is None and not (model / PROMPTS).is_file()
    recipe = TextPrompts(text="sample", rows=SAMPLE_ROWS) if lacking else given
    if isinstance(recipe, TextPrompts):
        frozen, about = freeze_text(recipe, model, loaded.folder, access.cache, where)
        said = f"NO PROMPTS OF ITS OWN: {name} is given {about}" if lacking else f"prompts: {about}"
        return read_folder(model, frozen), said
    return read_folder(model, prompts), ""


def fetch_subject(loaded: Loaded, name: str, subject: Subject, access: Access) -> Path:
    """Return the directory of a model that is not a directory here, pinned in `<spec stem>.lock.json`.

    Raises ReproError: exit 4 in one sentence if the model cannot be had.
    Agreement: tests/subjects/test_hub_paper.py, tests/subjects/test_pypi.py.
    """
    lock = Lock.beside(loaded.path, name)
    if subject.model.startswith(PREFIX):
        return fetch_wheel(subject.model, access=access, lock=lock)
    if not _may_be_hub_name(subject.model):
        shown = shown_path(str(loaded.folder / Path(subject.model).expanduser()))
        raise AbsentError(f"[subject.{name}] model: {shown}: model directory not found")
    from repro.subjects.hub import fetch_model

    return fetch_model(subject.model, tokenizer=subject.tokenizer, access=access, lock=lock)


def _path(folder: Path, given: str, where: str) -> Path:
    """Return a path as given, from a directory or from the user's home; ReproError if the system cannot look there."""
    try:
        path = folder / Path(given).expanduser()
        path.is_dir()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ReproError(f"{where}: {shown_path(given)} is not a path here ({reason})", Exit.UNAVAILABLE) from None
    return path


def _check_roles(chosen: ResolvedSubject) -> None:
    """Raise ReproError unless the named roles exist in this model."""
    shape, subject = chosen.folder.shape, chosen.subject
    known, all_heads = nodes(shape.n_layers, shape.n_heads), heads(shape.n_layers, shape.n_heads)
    named = [] if subject.writer == "auto" else [("writer", subject.writer, known)]
    named += [] if isinstance(subject.erasers, str) else [("erasers", label, known) for label in subject.erasers]
    examples = [] if isinstance(subject.examples, str) else list(subject.examples)
    named += [("examples head", item.head, all_heads) for item in examples]
    for key, label, allowed in named:
        if label not in allowed:
            kind, mlps = ("head", "") if allowed is all_heads else ("node", f", and MLP0 to {known[-1]}")
            raise ReproError(
                f"[subject.{chosen.name}] {key}: unknown {kind} {label!r}; {chosen.folder.path.name} has layers 0 to "
                f"{shape.n_layers - 1} with {shape.n_heads} heads each (L0H0 to {all_heads[-1]}{mlps})"
            )
    if subject.writer == known[-1]:
        raise ReproError(f"[subject.{chosen.name}] writer: {subject.writer} is the last to write; nothing can erase it")


def listed(loaded: Loaded) -> list[dict[str, str]]:
    """Return the declared subjects and whether each can be had without asking anyone."""
    rows = []
    for name, subject in loaded.spec.subject.items():
        try:
            _at_hand(loaded, name, subject, Access(cache_folder(), offline=True))
            state = "here"
        except ReproError as error:
            state = "not here" if error.code == Exit.UNAVAILABLE else "unfit"
        rows.append(
            {"name": name, "state": state, "writer": subject.writer, "model": subject.model, "about": subject.about}
        )
    return rows
