"""Files that can be trusted: durable writes, checksums, and JSON with a seal.

Needs neither zarr nor xarray nor torch, so that planning stays quick.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repro.errors import Exit, ReproError

_SEAL = "~seal"  # sorts behind every other member


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a write into one sentence about `path`."""
    try:
        yield
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}; what was finished is kept, run again to go on"
        raise ReproError(message, Exit.FAILED) from error


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary(path: Path) -> Path:
    """Return a name beside `path` that nothing else uses and that `is_temporary` recognises."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def is_temporary(name: str) -> bool:
    """Return whether a killed process may have left a file of that name."""
    return name.startswith(".") and name.endswith(".tmp")


def write_durably(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that after any crash the old bytes or the new ones are there, never a mixture.

    Temporary file, fsync, rename, fsync of the folder. Raises OSError, leaving no temporary file.
    Agreement: tests/run/test_faults.py (a kill at every step).
    """
    temp = temporary(path)
    handle = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        temp.replace(path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below and including `folder`."""
    for path in (*folder.rglob("*"), folder):
        sync_folder(path)


def remove(path: Path) -> None:
    """Remove a file for good; nothing if it is not there."""
    if path.exists():
        path.unlink()
        sync_folder(path.parent)


def sha256(content: bytes) -> str:
    """Digest of bytes, as hex digits."""
    return hashlib.sha256(content).hexdigest()


def digest(path: Path) -> list[Any]:
    """Return [size in bytes, sha256] of a file, read in pieces."""
    with path.open("rb") as handle:
        return [path.stat().st_size, hashlib.file_digest(handle, "sha256").hexdigest()]


def digest_or_none(path: Path) -> list[Any] | None:
    """Return `digest`, or None for what is not a readable plain file."""
    try:
        return digest(path) if path.is_file() and not path.is_symlink() else None
    except OSError:
        return None


def sealed(body: Mapping[str, Any]) -> bytes:
    """Return JSON whose last member is the sha256 of the whole text, its own digits counted as zeros.

    The same body always gives the same bytes; `unseal` is the inverse.
    """
    text = (json.dumps({**body, _SEAL: "0" * 64}, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    return text[:-68] + sha256(text).encode() + text[-4:]


def unseal(content: bytes) -> dict[str, Any]:
    """Return the body of sealed JSON. Raises ValueError if a single bit differs from what `sealed` wrote."""
    if sha256(content[:-68] + b"0" * 64 + content[-4:]).encode() != content[-68:-4]:
        raise ValueError("its checksum does not fit its content")
    body: dict[str, Any] = json.loads(content)
    del body[_SEAL]
    return body


def load(path: Path) -> dict[str, Any] | None:
    """Return the body of the sealed file at `path`; None if there is no such file.

    Raises ReproError (exit 5) if it is torn, altered or unreadable.
    """
    try:
        return unseal(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ReproError(f"{path} is damaged: {error}", Exit.CORRUPT) from error


def write_json(path: Path, document: Any) -> None:
    """Write a document as JSON, which has no NaN and no infinity: null stands in their place."""
    text = json.dumps(_finite(document), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
