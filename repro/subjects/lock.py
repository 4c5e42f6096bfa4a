"""The lock beside a spec: which commit of which repository, and which bytes, a subject stands for.

huggingface_hub can ask for a commit, but remembers neither it nor any checksum between runs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from repro.errors import ReproError, unavailable
from repro.files import digest, write_durably
from repro.spec.types import Strict

BRANCH = "main"
"""What is asked for where nothing is pinned yet."""
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileHash(Strict):
    """What a file's bytes are."""

    sha256: Sha256
    """64 hexadecimal digits."""
    size: int = Field(ge=0)
    """Bytes."""

    @classmethod
    def of(cls, path: Path) -> FileHash:
        """Return that of a file."""
        size, sha256 = digest(path)
        return cls(sha256=sha256, size=size)


class Repo(Strict):
    """A repository at one commit."""

    repo: str
    """Its hub name."""
    asked: str = Field(pattern=f"^{BRANCH}$")
    """The branch that was asked for."""
    revision: str = Field(pattern="^[0-9a-f]{40}$")
    """The commit that this was, 40 hexadecimal digits."""
    files: dict[str, FileHash]
    """The files that were taken from it, as the hub holds them."""


class PromptsPin(Strict):
    """Frozen prompts."""

    sha256: Sha256
    """Of the token ids as little-endian int32, row by row."""
    n: int = Field(gt=0)
    """Rows."""
    length: int = Field(gt=0)
    """Tokens per row."""
    recipe: str
    """Any text that identifies what they were made of."""


class Entry(Strict):
    """What is pinned of one subject."""

    repos: dict[str, Repo] = Field(default={})
    """Role -> repository: `model`, `tokenizer` and `datasets/<hub name>`."""
    prompts: PromptsPin | None = None
    wheels: dict[str, FileHash] = Field(default={})
    """Requirement `name==version` -> its wheel."""


class _Content(Strict):
    """The whole file."""

    format: Literal[1]
    subjects: dict[str, dict[str, Any]]
    """Subject -> its entry; each is read where its subject is asked for, so that damage to one stops no other."""


@dataclass(frozen=True)
class Lock:
    """One subject's entry in the lock file of a spec; the file need not exist yet."""

    path: Path
    subject: str

    @classmethod
    def beside(cls, spec: Path, subject: str) -> Lock:
        """Return a subject's entry in the lock of a spec: `<spec stem>.lock.json` in the same directory."""
        return cls(spec.with_name(f"{spec.stem}.lock.json"), subject)

    def entry(self) -> Entry:
        """Return what is pinned of the subject. Raises ReproError (exit 2) if the file is not a lock."""
        try:
            return Entry.model_validate(self._subjects().get(self.subject, {}))
        except ValidationError as error:
            raise self._damaged(_first(error, "subjects", self.subject)) from None

    def repo(self, role: str, repo: str) -> Repo | None:
        """Return the pin of a repository; None if there is none yet, or if it was of another repository."""
        pin = self.entry().repos.get(role)
        return pin if pin is not None and pin.repo == repo else None

    def learn(self, role: str, found: Repo) -> None:
        """Pin a repository, or compare its commit with the pinned one.

        Raises ReproError (exit 4) naming the repository and both commits if they differ.
        Agreement: tests/subjects/test_lock.py.
        """
        pin = self.repo(role, found.repo)
        if pin is None:
            self._update(repos={**self.entry().repos, role: found})
        elif pin.revision != found.revision:
            raise unavailable(f"{role} {found.repo}: the commit is {found.revision}, {self.path} has {pin.revision}")

    def learn_prompts(self, found: PromptsPin) -> None:
        """Pin frozen prompts, or compare them with the pin of the same recipe.

        Raises ReproError (exit 4) naming both hashes.
        """
        pin = self.entry().prompts
        if pin is None or pin.recipe != found.recipe:
            self._update(prompts=found)
        elif pin != found:
            raise unavailable(
                f"prompts of {self.subject}: {_described(found)} where {self.path} has {_described(pin)}; "
                "the data sets gave other rows than before"
            )

    def learn_wheel(self, requirement: str, found: FileHash, again: str) -> None:
        """Pin the wheel of a requirement, or compare it with its pin. again: what to do where they differ.

        Raises ReproError (exit 4) naming both hashes.
        """
        wheels = self.entry().wheels
        if requirement in wheels:
            check_hash(f"wheel of {requirement} ({again})", found, wheels[requirement], str(self.path))
        else:
            self._update(wheels={**wheels, requirement: found})

    def _subjects(self) -> dict[str, dict[str, Any]]:
        try:
            return _Content.model_validate_json(self.path.read_bytes()).subjects
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._damaged(error.strerror or type(error).__name__) from None
        except ValidationError as error:
            raise self._damaged(_first(error)) from None

    def _damaged(self, what: str) -> ReproError:
        return ReproError(f"{self.path}: not a lock: {what}; restore it, or delete it to learn the pins anew")

    def _update(self, **pins: object) -> None:
        """Write pins into the subject's entry; the file is the old one or the new one, whatever happens.

        Raises ReproError (exit 2) if the directory cannot be written.
        """
        entry = self.entry().model_copy(update=pins).model_dump(mode="json", exclude_defaults=True)
        content = {"format": 1, "subjects": {**self._subjects(), self.subject: entry}}
        text = json.dumps(content, indent=1, sort_keys=True) + "\n"
        try:
            write_durably(self.path, text.encode())
        except OSError as error:
            reason = error.strerror or error
            raise ReproError(f"{self.path}: cannot write the lock ({reason}); it belongs beside the spec") from None


def _first(error: ValidationError, *at: str) -> str:
    """Return the first fault with its place in the file."""
    (first, *_) = error.errors()
    return ": ".join(filter(None, (".".join(map(str, (*at, *first["loc"]))), first["msg"])))


def check_hash(what: str, found: FileHash, wanted: FileHash, source: str) -> None:
    """Raise ReproError (exit 4) naming the file and both hashes unless they are the same.

    what: the file, for the message. source: who says `wanted`, for the message.
    """
    if found != wanted:
        raise unavailable(
            f"{what}: sha256 is {found.sha256} ({found.size} bytes), {source} has {wanted.sha256} ({wanted.size} bytes)"
        )


def _described(pin: PromptsPin) -> str:
    return f"sha256 {pin.sha256} ({pin.n} rows of {pin.length})"
