"""The lock beside a spec: which commit of which repository, and which bytes, a subject stands for.

huggingface_hub can ask for a commit, but remembers neither it nor any checksum between runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from repro.errors import Exit, ReproError
from repro.files import write_durably

FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class FileHash(NamedTuple):
    """What a file's bytes are."""

    sha256: str
    """64 hexadecimal digits."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Repo:
    """A repository at one commit."""

    repo: str
    """Its hub name."""
    asked: str
    """The revision that was asked for: a branch, a tag or a commit."""
    revision: str
    """The commit that this was, 40 hexadecimal digits."""
    files: Mapping[str, FileHash]
    """The files that were taken from it, as the hub holds them."""


class PromptsPin(NamedTuple):
    """Frozen prompts."""

    sha256: str
    """Of the token ids as little-endian int32, row by row."""
    n: int
    """Rows."""
    length: int
    """Tokens per row."""


@dataclass(frozen=True)
class Lock:
    """The lock file of a spec; it need not exist yet."""

    path: Path

    @classmethod
    def beside(cls, spec: Path) -> Lock:
        """Return the lock of a spec: `<spec stem>.lock.json` in the same directory."""
        return cls(spec.with_name(f"{spec.stem}.lock.json"))

    def subject(self, name: str) -> Pins:
        """Return what the lock knows of one subject."""
        return Pins(self, name)

    def read(self) -> dict[str, Any]:
        """Return subject -> entry. Raises ReproError (exit 2) if the file is not a lock."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise self._damaged(getattr(error, "strerror", None) or type(error).__name__) from None
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"not JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("subjects"), dict):
            raise self._damaged(f'"format": {FORMAT} and "subjects" are expected')
        if not all(isinstance(entry, dict) for entry in data["subjects"].values()):
            raise self._damaged("every subject must be an object")
        return data["subjects"]

    def write(self, subject: str, entry: Mapping[str, Any]) -> None:
        """Replace one subject's entry; the file is the old one or the new one, whatever happens.

        Raises ReproError (exit 2) if the directory cannot be written.
        """
        subjects = {**self.read(), subject: entry}
        text = json.dumps({"format": FORMAT, "subjects": subjects}, indent=1, sort_keys=True) + "\n"
        try:
            write_durably(self.path, text.encode())
        except OSError as error:
            reason = error.strerror or error
            raise ReproError(f"{self.path}: cannot write the lock ({reason}); it belongs beside the spec") from None

    def _damaged(self, what: str) -> ReproError:
        return ReproError(f"{self.path}: not a lock: {what}; restore it, or delete it to learn the pins anew")


@dataclass(frozen=True)
class Pins:
    """One subject's entry in the lock. Roles are `model`, `tokenizer` and `datasets/<hub name>`."""

    lock: Lock
    subject: str

    def repo(self, role: str, repo: str, asked: str) -> Repo | None:
        """Return the pin of a repository; None if there is none yet, or if it was of another repository or revision."""
        entry = self._section("repos").get(role)
        pin = None if entry is None else self._read_repo(role, entry)
        return pin if pin is not None and (pin.repo, pin.asked) == (repo, asked) else None

    def learn(self, role: str, found: Repo) -> None:
        """Pin what was found, or compare it with what is pinned already.

        Raises ReproError (exit 4) naming the repository or file and both commits or hashes if they differ.
        Agreement: tests/subjects/test_lock.py.
        """
        pin = self.repo(role, found.repo, found.asked)
        if pin is not None:
            self._compare(role, pin, found)
            if set(found.files) <= set(pin.files):
                return
            found = replace(found, files={**pin.files, **found.files})
        self._update("repos", {role: to_json(found)})

    def prompts(self) -> PromptsPin | None:
        """Return the pin of the frozen prompts."""
        entry = self._section("prompts")
        if not entry:
            return None
        values: list[Any] = [entry.get(key) for key in PromptsPin._fields]
        pin = PromptsPin(*values)
        if not _is_hash(pin.sha256) or not all(type(value) is int and value > 0 for value in (pin.n, pin.length)):
            raise self._damaged("prompts")
        return pin

    def learn_prompts(self, found: PromptsPin, recipe: str) -> None:
        """Pin frozen prompts, or compare them with the pin of the same recipe (any text that identifies it).

        Raises ReproError (exit 4) naming both hashes.
        """
        pin = self.prompts()
        if pin is not None and self._section("prompts").get("recipe") == recipe:
            if pin != found:
                raise ReproError(
                    f"prompts of {self.subject}: {_describe(found)} where {self.lock.path} has {_describe(pin)}; "
                    "the data sets gave other rows than before",
                    Exit.UNAVAILABLE,
                )
            return
        self._update("prompts", {**found._asdict(), "recipe": recipe})

    def wheel(self, requirement: str) -> FileHash | None:
        """Return the pin of the wheel of a requirement `name==version`; None if there is none yet."""
        try:
            return hashes_from_json(self._section("wheels")).get(requirement)
        except ValueError:
            raise self._damaged("wheels") from None

    def learn_wheel(self, requirement: str, found: FileHash, again: str) -> None:
        """Pin a wheel, or compare it with its pin. again: what to do where they differ.

        Raises ReproError (exit 4) naming both hashes.
        """
        if (pin := self.wheel(requirement)) is None:
            self._update("wheels", hashes_to_json({requirement: found}))
        else:
            check_hash(f"wheel of {requirement} ({again})", found, pin, str(self.lock.path))

    def _compare(self, role: str, pin: Repo, found: Repo) -> None:
        if pin.revision != found.revision:
            raise ReproError(
                f"{role} {found.repo}: the commit is {found.revision}, {self.lock.path} has {pin.revision}",
                Exit.UNAVAILABLE,
            )
        for name, hashes in found.files.items():
            if name in pin.files:
                check_hash(f"{found.repo}: {name}", hashes, pin.files[name], str(self.lock.path))

    def _section(self, name: str) -> Mapping[str, Any]:
        section = self.lock.read().get(self.subject, {}).get(name, {})
        if not isinstance(section, dict):
            raise self._damaged(name)
        return section

    def _update(self, section: str, values: Mapping[str, Any]) -> None:
        entry = self.lock.read().get(self.subject, {})
        self.lock.write(self.subject, {**entry, section: {**entry.get(section, {}), **values}})

    def _read_repo(self, role: str, entry: Any) -> Repo:
        try:
            return from_json(entry)
        except ValueError:
            raise self._damaged(role) from None

    def _damaged(self, what: str) -> ReproError:
        return self.lock._damaged(f"{what} of subject {self.subject} is not what this program writes")


def check_hash(what: str, found: FileHash, wanted: FileHash, source: str) -> None:
    """Raise ReproError (exit 4) naming the file and both hashes unless they are the same.

    what: the file, for the message. source: who says `wanted`, for the message.
    """
    if found.sha256 != wanted.sha256:
        raise ReproError(f"{what}: sha256 is {found.sha256}, {source} has {wanted.sha256}", Exit.UNAVAILABLE)
    if found.size != wanted.size:
        raise ReproError(f"{what}: {found.size} bytes, {source} has {wanted.size}", Exit.UNAVAILABLE)


def from_json(entry: Any) -> Repo:
    """Return a pinned repository from its JSON. Raises ValueError if it is anything else."""
    if not isinstance(entry, dict) or set(entry) != {"repo", "asked", "revision", "files"}:
        raise ValueError("not a repository")
    if not all(isinstance(entry[key], str) for key in ("repo", "asked", "revision")):
        raise ValueError("names are texts")
    if not _COMMIT.fullmatch(entry["revision"]) or not isinstance(entry["files"], dict):
        raise ValueError("a commit has 40 hexadecimal digits")
    return Repo(entry["repo"], entry["asked"], entry["revision"], hashes_from_json(entry["files"]))


def hashes_from_json(entry: Mapping[str, Any]) -> dict[str, FileHash]:
    """Return file name -> hash, from JSON. Raises ValueError if it is anything else."""
    files = {}
    for name, value in entry.items():
        if not isinstance(value, dict) or set(value) != set(FileHash._fields):
            raise ValueError(name)
        found = FileHash(value["sha256"], value["size"])
        if not _is_hash(found.sha256) or type(found.size) is not int or found.size < 0:
            raise ValueError(name)
        files[name] = found
    return files


def hashes_to_json(files: Mapping[str, FileHash]) -> dict[str, Any]:
    """Return the JSON of file name -> hash."""
    return {name: found._asdict() for name, found in files.items()}


def to_json(repo: Repo) -> dict[str, Any]:
    """Return the JSON of a pinned repository."""
    return {
        "repo": repo.repo,
        "asked": repo.asked,
        "revision": repo.revision,
        "files": hashes_to_json(repo.files),
    }


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _describe(pin: PromptsPin) -> str:
    return f"sha256 {pin.sha256} ({pin.n} rows of {pin.length})"
