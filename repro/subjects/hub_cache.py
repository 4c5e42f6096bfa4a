"""The cache of fetched models: what a folder says of itself, and who may write to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from repro.errors import Exit, ReproError, unavailable
from repro.files import sealed, unseal
from repro.model.folder import sha256
from repro.subjects.lock import FileHash, Repo, from_json, hashes_from_json, hashes_to_json, to_json

RECORD = "hub.json"
"""What a folder of the cache says of itself; a folder under its final name is complete."""


@dataclass(frozen=True)
class Record:
    """Where a folder of the cache came from and what lies in it."""

    model: Repo
    tokenizer: Repo | None
    stored: dict[str, FileHash]


def hash_of(path: Path) -> FileHash:
    """A file's hash and size."""
    return FileHash(sha256(path), path.stat().st_size)


def read_record(path: Path) -> Record:
    """A folder's record. Raises ReproError (exit 4) if it is none, or differs in a single bit from what was written."""
    try:
        data = unseal(path.read_bytes())
        theirs = None if data["tokenizer"] is None else from_json(data["tokenizer"])
        return Record(from_json(data["model"]), theirs, hashes_from_json(data["stored"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise unavailable(f"{path}: damaged; delete {path.parent} to fetch it again") from None


def record_bytes(record: Record) -> bytes:
    """A record as it lies on disk."""
    theirs = None if record.tokenizer is None else to_json(record.tokenizer)
    data = {"model": to_json(record.model), "tokenizer": theirs, "stored": hashes_to_json(record.stored)}
    return sealed(data)


@contextmanager
def alone(folder: Path, what: str, timeout: float) -> Iterator[None]:
    """Keeps other processes from fetching the same thing at the same time."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=timeout):
            yield
    except Timeout:
        raise unavailable(f"another process is fetching {what}; run again when it is done") from None


@contextmanager
def writing(cache: Path) -> Iterator[None]:
    """Turns what the operating system says about the cache into one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ReproError(
            f"{error.filename or cache}: {reason}; what was downloaded is kept, run again to go on", Exit.UNAVAILABLE
        ) from error
