"""Which subject is at hand: a name, a folder or a hub name becomes a local folder with prompts. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from repro.errors import AbsentError, Exit, ReproError, plain, words_of
from repro.labels import did_you_mean, heads, layer_of, listing
from repro.model.folder import Folder, read_folder, read_prompts, weights_fingerprint
from repro.process import deaf
from repro.spec.types import NAME, RESERVED_SUBJECTS, Loaded, Subject
from repro.subjects.access import Access, cache_folder

_LONGEST = 1000
"""Characters of a path that are shown."""


@dataclass(frozen=True)
class ResolvedSubject:
    """A subject that can be had: its declaration, its folder, its prompts."""

    name: str
    subject: Subject
    folder: Folder
    fallback: str = ""
    """Why another subject than the first was taken; empty if it was the first."""

    @cached_property
    def tokens(self) -> np.ndarray:
        """The frozen prompts: int32 [prompt, position]."""
        return read_prompts(self.folder)

    @cached_property
    def weights(self) -> str:
        """Fingerprint of the model's files."""
        return weights_fingerprint(self.folder)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The subject's tokenizer, or one that shows token ids."""
        return Tokenizer(self.folder.tokenizer, self.folder.shape.d_vocab)


class Tokenizer:
    """Texts and token ids of a subject; without a tokenizer.json, ids stand for themselves.

    d_vocab: ids that a text gives must be below it.
    """

    def __init__(self, path: Path | None, d_vocab: int) -> None:
        self._path = path
        self._d_vocab = d_vocab

    @cached_property
    def _inner(self) -> Any:
        if self._path is None:
            return None
        import tokenizers

        with self._readable(), deaf():
            inner = tokenizers.Tokenizer.from_file(str(self._path))
            # What a file says of batches is not for texts that are taken as they are.
            inner.no_truncation()
            inner.no_padding()
        return inner

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # the library raises bare Exception, and its panics are not even that
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ReproError(f"{self._path}: unreadable tokenizer ({words_of(error)})", Exit.UNAVAILABLE) from None

    def decode(self, *ids: int) -> str:
        """The text of token ids; `‹id›` for each where there is no tokenizer."""
        if self._inner is None:
            return "".join(f"‹{token}›" for token in ids)  # noqa: RUF001 - marks that no text has
        with self._readable():
            return self._inner.decode(list(ids), skip_special_tokens=False)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without BOS."""
        if self._inner is None:
            raise ReproError("examples given as text need a tokenizer.json in the model's folder", Exit.UNAVAILABLE)
        with self._readable():
            ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        outside = next((token for token in ids if token >= self._d_vocab), None)
        if outside is not None:
            raise ReproError(
                f"{self._path}: gives token id {outside} for {plain(repr(text), 80)}, outside the vocabulary of "
                f"{self._d_vocab}",
                Exit.UNAVAILABLE,
            )
        return ids

    def single(self, text: str) -> int:
        """The id of a text that is one token."""
        ids = self.encode(text)
        if len(ids) != 1:
            raise ReproError(f"{text!r} is {len(ids)} tokens of this model; an answer is a single token")
        return ids[0]


def choose(loaded: Loaded, name: str | None, access: Access) -> ResolvedSubject:
    """The subject named, or the first of the spec's default subjects that can be had.

    name: a declared subject, a model folder, or a hub name; nothing: the defaults in order, and falling back is told in
    `ResolvedSubject.fallback`. Raises ReproError: exit 2 for an unknown name, exit 4 if the subject cannot be had.
    Agreement: tests/subjects/test_subjects.py.
    """
    if name is not None:
        return _named(loaded, name, access)
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
        return _at_hand(loaded, _label(path.resolve().name, declared), Subject(model=str(path.resolve())), access)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _at_hand(loaded, _label(name.split("/")[1], declared), Subject(model=name), access)
    raise ReproError(
        f"--subject {plain(name, _LONGEST)}: no such subject.{did_you_mean(name, declared)} Declared: "
        f"{listing(list(declared))}; a model folder or a hub name (owner/name) is also allowed"
    )


def _label(name: str, declared: Mapping[str, Subject]) -> str:
    """What an undeclared subject is called: never as a declared one, whose published numbers or copies are not its."""
    if name in declared or name in RESERVED_SUBJECTS:
        name = f"other-{name}"
    return name if NAME.fullmatch(name) else "other"


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
        raise AbsentError(f"[subject.{name}] model: {plain(str(here), _LONGEST)}: no such model folder")
    from repro.subjects.hub_subject import fetch_subject

    return fetch_subject(loaded, name, subject, access)


def _path(folder: Path, given: str, where: str) -> Path:
    """A path as given, from a folder or from the user's home; ReproError if the system could not even look there."""
    try:
        path = folder / Path(given).expanduser()
        path.is_dir()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ReproError(f"{where}: {plain(given, _LONGEST)} is no path here ({reason})", Exit.UNAVAILABLE) from None
    return path


def _check_roles(chosen: ResolvedSubject) -> None:
    """Named roles must exist in this model."""
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
    """The mined positions stored by `mine_examples`."""
    return list(json.loads(str(attrs["mined"])))


def listed(loaded: Loaded) -> list[dict[str, str]]:
    """The declared subjects and whether each can be had without asking anyone."""
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
