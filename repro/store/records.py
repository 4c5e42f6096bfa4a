"""What a result directory says about itself: manifest, records of units, commit.

Needs neither zarr nor xarray nor torch, so that planning stays quick.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.errors import Exit, ReproError
from repro.files import digest_or_none, load
from repro.store.layout import DATA, Layout

FORMAT = 1
SUMMARY, UNITS = f"{DATA}/summary", "units"
MANIFEST, PROVENANCE, COMMIT, ARCHIVE = "manifest.json", "provenance.json", "COMMIT", "summary.zarr.zip"
ROLES = "roles.json"
"""Beside a committed scan: what follows from it, sealed. No part of the result, which it may be made from again."""
_SECRET_KEY = re.compile(
    r"(^|[_-])(token|secret|passw(or)?d|api[_-]?key|authorization|cookie|credentials?)$", re.IGNORECASE
)
_SECRET_VALUE = re.compile(r"\b(hf_|ghp_|sk-)[A-Za-z0-9_-]{16,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


def unit_name(i: int) -> str:
    """Return the file name of the record of unit i."""
    return f"{i:06d}.json"


def load_manifest(path: Path) -> tuple[Layout, dict[str, Any]] | None:
    """Return layout and body of a result's manifest, None without one. Raises ReproError (exit 5) if damaged."""
    body = _body(path, MANIFEST)
    return None if body is None else (Layout.from_json(body["layout"]), body)


def load_commit(path: Path) -> dict[str, Any] | None:
    """Return the body of COMMIT; None if nothing is committed. Raises ReproError (exit 5) if damaged."""
    return _body(path, COMMIT)


def _body(path: Path, file: str) -> dict[str, Any] | None:
    body = load(path / file)
    if body is not None and body.get("format") != FORMAT:
        written = f"{path} was written in format {body.get('format')}"
        raise ReproError(f"{written}; this version reads {FORMAT}", Exit.CORRUPT)
    return body


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
    """Return whether unit i has a whole record and files of the recorded sizes (a quick look that hashes nothing)."""
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


@dataclass(frozen=True)
class State:
    """What there is of a result."""

    kind: str
    """`absent`, `partial`, `committed` or `corrupt`; in a plan also `waits`, `stale`, and `fresh` for committed."""
    present: int = 0
    """Units that are recorded."""
    total: int = 0
    """Units in all, where that is known."""
    why: str = ""
    """What is wrong or has changed, in words."""

    def __str__(self) -> str:
        if self.kind == "waits":
            return "waits for roles"
        return f"partial {self.present}/{self.total}" if self.kind == "partial" else self.kind


def status(path: Path) -> State:
    """Return what a result directory holds: `absent`, `partial`, `committed` or `corrupt`.

    path: `store/<subject>/<experiment>/<key>`. Quick: reads JSON and file sizes, no array (`verify` reads every byte).
    Agreement: tests/store/test_store.py.
    """
    path = Path(path)
    try:
        commit = load_commit(path)
        if commit is not None:
            for name, (size, _) in commit["files"].items():
                if _size(path / name) != size:
                    return State("corrupt", why=f"{name} is missing or has another size")
        found = load_manifest(path)
        if found is None and commit is not None:
            return State("committed") if commit.get("copy") else State("corrupt", why="no manifest")
        if found is None:
            return State("absent")
        layout, manifest = found
        total = layout.n_units(manifest["unit"])
        present = sum(unit_present(path, layout, manifest, i) for i in range(total))
        if commit is None:
            return State("partial", present, total)
        damaged = f"{total - present} of {total} units are damaged"
        return State("committed", present, total) if present == total else State("corrupt", present, total, damaged)
    except ReproError as error:
        return State("corrupt", why=str(error))


def checked_commit(path: Path, prefix: tuple[str, ...]) -> dict[str, Any]:
    """Return the body of COMMIT, once the files under `prefix` have been found to be what it says."""
    commit = load_commit(path)
    if commit is None:
        message = f"{path} is not committed ({status(path)}): `python -m repro run` finishes it"
        raise ReproError(message, Exit.CORRUPT)
    check_files(path, {name: digest for name, digest in commit["files"].items() if name.startswith(prefix)})
    return commit


def check_files(path: Path, files: Mapping[str, Any]) -> None:
    """Raise ReproError (exit 5) for the first file that does not have its checksum."""
    for name, expected in files.items():
        if digest_or_none(path / name) != expected:
            raise ReproError(f"{path / name} is damaged or missing: see `python -m repro verify`", Exit.CORRUPT)


def plain(value: Any) -> Any:
    """Return a value as plain JSON: numpy numbers and arrays as Python's, what looks like a secret as "[removed]".

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
