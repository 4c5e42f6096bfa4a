"""Files that can be trusted: durable writes, JSON with a seal, and what a result folder says about itself.

Needs neither zarr nor xarray nor torch, so that planning stays quick.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repro.errors import Exit, ReproError
from repro.layout import DATA, Layout

FORMAT = 1
_SEAL = "~seal"  # sorts behind every other member
SUMMARY, UNITS = f"{DATA}/summary", "units"
MANIFEST, PROVENANCE, COMMIT, ARCHIVE = "manifest.json", "provenance.json", "COMMIT", "summary.zarr.zip"
_SECRET_KEY = re.compile(
    r"(^|[_-])(token|secret|passw(or)?d|api[_-]?key|authorization|cookie|credentials?)$", re.IGNORECASE
)
_SECRET_VALUE = re.compile(r"\b(hf_|ghp_|sk-)[A-Za-z0-9_-]{16,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turns what the operating system says about a write into one sentence about `path`."""
    try:
        yield
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}; what was finished is kept, run again to go on"
        raise ReproError(message, Exit.FAILED) from error


def sync_folder(folder: Path) -> None:
    """Flushes the entries of a folder, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary(path: Path) -> Path:
    """A name beside `path` that nothing else uses and that `is_temporary` recognises."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a killed process may have left a file of that name."""
    return name.startswith(".") and name.endswith(".tmp")


def write_durably(path: Path, content: bytes) -> None:
    """Puts `content` at `path` so that after any crash the old bytes or the new ones are there, never a mixture.

    Temporary file, fsync, rename, fsync of the folder. Raises OSError, leaving no temporary file.
    Agreement: tests/test_faults.py (a kill at every step).
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
    """Flushes every file and folder below and including `folder`."""
    for path in (*folder.rglob("*"), folder):
        sync_folder(path)


def remove(path: Path) -> None:
    """Removes a file for good; nothing if it is not there."""
    if path.exists():
        path.unlink()
        sync_folder(path.parent)


def sha256(content: bytes) -> str:
    """Digest of bytes, as hex digits."""
    return hashlib.sha256(content).hexdigest()


def digest(path: Path) -> list[Any]:
    """[size in bytes, sha256] of a file, read in pieces."""
    with path.open("rb") as handle:
        return [path.stat().st_size, hashlib.file_digest(handle, "sha256").hexdigest()]


def digest_or_none(path: Path) -> list[Any] | None:
    """`digest`, or None for what is not a readable plain file."""
    try:
        return digest(path) if path.is_file() and not path.is_symlink() else None
    except OSError:
        return None


def sealed(body: Mapping[str, Any]) -> bytes:
    """JSON whose last member is the sha256 of the whole text, its own digits counted as zeros.

    The same body always gives the same bytes; `unseal` is the inverse.
    """
    text = (json.dumps({**body, _SEAL: "0" * 64}, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    return text[:-68] + sha256(text).encode() + text[-4:]


def unseal(content: bytes) -> dict[str, Any]:
    """Body of sealed JSON. Raises ValueError if a single bit differs from what `sealed` wrote."""
    if sha256(content[:-68] + b"0" * 64 + content[-4:]).encode() != content[-68:-4]:
        raise ValueError("its checksum does not fit its content")
    body: dict[str, Any] = json.loads(content)
    del body[_SEAL]
    return body


def load(path: Path) -> dict[str, Any] | None:
    """Body of the sealed file at `path`; None if there is no such file.

    Raises ReproError (exit 5) if it is torn, altered or unreadable.
    """
    try:
        return unseal(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ReproError(f"{path} is damaged: {error}", Exit.CORRUPT) from error


def unit_name(i: int) -> str:
    """File name of the record of unit i."""
    return f"{i:06d}.json"


def load_manifest(path: Path) -> tuple[Layout, dict[str, Any]] | None:
    """Layout and body of a result's manifest; None where there is no result. Raises ReproError (exit 5) if damaged."""
    body = load(path / MANIFEST)
    if body is None:
        return None
    if body.get("format") != FORMAT:
        raise ReproError(
            f"{path} was written in format {body.get('format')}; this version reads {FORMAT}", Exit.CORRUPT
        )
    return Layout.from_json(body["layout"]), body


def load_record(path: Path, layout: Layout, manifest: Mapping[str, Any], i: int) -> dict[str, Any] | None:
    """Record of unit i; None if there is none. Raises ReproError (exit 5) if it is damaged or belongs elsewhere."""
    file = path / UNITS / unit_name(i)
    record = load(file)
    if record is None:
        return None
    prompts = layout.prompts(manifest["unit"], i)
    expected = {"format": FORMAT, "key": manifest["key"], "unit": i, "prompts": [prompts.start, prompts.stop]}
    expected["environment"] = manifest["environment"]
    for name, value in expected.items():
        if record.get(name) != value:
            raise ReproError(f"{file} is the record of another unit: {name} is {record.get(name)!r}", Exit.CORRUPT)
    files = {v.name: layout.chunk_file(v, i) for v in layout.variables}
    if {name: entry["file"] for name, entry in record["variables"].items()} != files:
        raise ReproError(f"{file} is the record of other variables: {sorted(record['variables'])}", Exit.CORRUPT)
    return record


def unit_present(path: Path, layout: Layout, manifest: Mapping[str, Any], i: int) -> bool:
    """Whether unit i has a whole record and files of the recorded sizes (a quick look that hashes nothing)."""
    try:
        record = load_record(path, layout, manifest, i)
    except ReproError:
        return False
    return record is not None and all(
        _size(path / entry["file"]) == entry["digest"][0] for entry in record["variables"].values()
    )


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return -1


def load_commit(path: Path) -> dict[str, Any] | None:
    """Body of COMMIT; None if the result is not committed. Raises ReproError (exit 5) if damaged."""
    body = load(path / COMMIT)
    if body is not None and body.get("format") != FORMAT:
        raise ReproError(
            f"{path} was written in format {body.get('format')}; this version reads {FORMAT}", Exit.CORRUPT
        )
    return body


def status(path: Path) -> str:
    """What a result folder holds: "absent", "partial k/n", "committed" or "corrupt: why".

    path: `store/<subject>/<experiment>/<key>`. Quick: reads JSON and file sizes, no array (`verify` reads every byte).
    Agreement: tests/test_store.py.
    """
    path = Path(path)
    try:
        commit = load_commit(path)
        if commit is not None:
            for name, (size, _) in commit["files"].items():
                if _size(path / name) != size:
                    return f"corrupt: {name} is missing or has another size"
        found = load_manifest(path)
        if found is None:
            return "absent" if commit is None else "committed" if commit.get("copy") else "corrupt: no manifest"
        layout, manifest = found
        n_units = layout.n_units(manifest["unit"])
        present = sum(unit_present(path, layout, manifest, i) for i in range(n_units))
        if commit is None:
            return f"partial {present}/{n_units}"
        return "committed" if present == n_units else f"corrupt: {n_units - present} of {n_units} units are damaged"
    except ReproError as error:
        return f"corrupt: {error}"


def checked_commit(path: Path, prefix: tuple[str, ...]) -> dict[str, Any]:
    """Body of COMMIT, once the files under `prefix` have been found to be what it says."""
    commit = load_commit(path)
    if commit is None:
        message = f"{path} is not committed ({status(path)}): `python -m repro run` finishes it"
        raise ReproError(message, Exit.CORRUPT)
    check_files(path, {name: digest for name, digest in commit["files"].items() if name.startswith(prefix)})
    return commit


def check_files(path: Path, files: Mapping[str, Any]) -> None:
    """Raises ReproError (exit 5) for the first file that does not have its digest."""
    for name, expected in files.items():
        if digest_or_none(path / name) != expected:
            raise ReproError(f"{path / name} is damaged or missing: see `python -m repro verify`", Exit.CORRUPT)


def plain(value: Any) -> Any:
    """A value as plain JSON: numpy scalars and arrays as numbers and lists, what looks like a secret as "[removed]".

    Raises ReproError (exit 1) naming what JSON cannot hold.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        hidden = {key for key, item in value.items() if isinstance(item, str) and _SECRET_KEY.search(str(key))}
        return {str(key): "[removed]" if key in hidden else plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return _SECRET_VALUE.sub("[removed]", value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ReproError(f"{value!r} cannot be kept as JSON", Exit.FAILED)
