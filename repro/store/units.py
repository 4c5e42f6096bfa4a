"""The protocol of a result: claim a unit, write its chunks, record it, and commit when every unit is recorded.

Knows bytes only: what a chunk means is the business of repro/store/result.py.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from repro import files
from repro.errors import Exit, ReproError
from repro.store import records
from repro.store.claims import Claims
from repro.store.layout import Layout

Chunk = tuple[str, bytes, int]
"""One variable of one unit: its path in the result directory, its encoded bytes, and how many of its values are NaN."""


def create(
    path: Path, layout: Layout, unit: int, provenance: dict[str, Any], write_template: Callable[[Path], None]
) -> None:
    """Write arrays without chunks, labels, provenance and, last, the manifest; repair what of it is missing."""
    if files.load(path / records.PROVENANCE) is None:
        files.write_durably(path / records.PROVENANCE, files.sealed(provenance))
    if records.load_manifest(path) is not None:
        return
    built = files.temporary(path / records.DATA)
    write_template(built)
    digests = {}
    for file in sorted(built.rglob("*")):
        target = path / records.DATA / file.relative_to(built)
        if file.is_file():
            files.write_durably(target, file.read_bytes())
            digests[target.relative_to(path).as_posix()] = files.digest(file)
        else:
            target.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(built)
    files.sync_tree(path)
    # A new directory's name lies in the one above it: key, experiment and subject.
    for folder in list(path.parents)[:3]:
        files.sync_folder(folder)
    environment = provenance.get("environment", {})
    body = {"format": records.FORMAT, "key": path.name, "unit": unit, "layout": layout.to_json(), "files": digests}
    files.write_durably(path / records.MANIFEST, files.sealed({**body, "environment": environment}))


class Units:
    """The units of one result: which are recorded, who works on which, and the commit of them all.

    path: the result directory; manifest: the body of its manifest.json. Agreement: tests/run/test_faults.py.
    """

    def __init__(self, path: Path, layout: Layout, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.layout = layout
        self.unit: int = manifest["unit"]
        self._manifest = manifest
        self._units = path / records.UNITS
        self._claims = Claims(self._units)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back every claim that is still held."""
        with contextlib.suppress(OSError):
            self._claims.drop_all()

    @property
    def n_units(self) -> int:
        """Return the number of units."""
        return self.layout.n_units(self.unit)

    @property
    def committed(self) -> bool:
        """Return whether the result is finished: every unit verified, the summary written, COMMIT in place."""
        return records.load_commit(self.path) is not None

    def unit_slice(self, i: int) -> slice:
        """Return the prompts of unit i."""
        return self.layout.prompts(self.unit, i)

    def has(self, i: int) -> bool:
        """Return whether unit i has a whole record, and files of the recorded sizes."""
        return records.unit_present(self.path, self.layout, self._manifest, i)

    def missing(self) -> list[int]:
        """Return the units without a valid record."""
        return [i for i in range(self.n_units) if not self.has(i)]

    def record(self, i: int) -> dict[str, Any] | None:
        """Return what is recorded of unit i (prompts, checksums, NaN counts, environment, notes); None if not valid."""
        return records.load_record(self.path, self.layout, self._manifest, i) if self.has(i) else None

    def claim(self, i: int) -> bool:
        """Claim unit i for this runner; False if it is done or another living runner has it.

        A claim ends with `write_unit`, `release`, `close`, or with the process, however that ends.
        """
        self.unit_slice(i)
        with files.disk(self.path):
            if self.has(i) or not self._claims.take(str(i)):
                return False
            if self.has(i):  # written by whoever held it until just now
                self._claims.drop(str(i))
                return False
            return True

    def release(self, i: int) -> None:
        """Give unit i back, if this worker has it."""
        with contextlib.suppress(OSError):
            self._claims.drop(str(i))

    def _put(self, i: int, chunks: Mapping[str, Chunk], notes: dict[str, Any]) -> bool:
        """Claim unit i, write its chunks, read them back, record it; return False if it is done."""
        if not self.claim(i):
            if self.has(i):
                return False
            raise ReproError(f"{self.path}: unit {i} is held by another runner", Exit.FAILED)
        try:
            with files.disk(self.path):
                self._write(i, chunks, notes)
        finally:
            self.release(i)
        return True

    def _write(self, i: int, chunks: Mapping[str, Chunk], notes: dict[str, Any]) -> None:
        """Write chunks into place, read them back, then write the record, which alone says that they count."""
        files.remove(self._units / records.unit_name(i))
        entries = {}
        for name, (file, content, nan) in chunks.items():
            path = self.path / file
            files.write_durably(path, content)
            if path.read_bytes() != content:
                raise ReproError(f"{path} reads back differently from what was written: check the disk", Exit.FAILED)
            entries[name] = {"file": file, "digest": [len(content), files.sha256(content)], "nan": nan}
        prompts = self.unit_slice(i)
        body = {
            "format": records.FORMAT,
            "key": self._manifest["key"],
            "unit": i,
            "prompts": [prompts.start, prompts.stop],
            "variables": entries,
            "environment": self._manifest["environment"],
            "notes": notes,
        }
        files.write_durably(self._units / records.unit_name(i), files.sealed(body))

    def _commit(self, write_summary: Callable[[Path], None]) -> None:
        """Verify every unit against its bytes, have the summary written to a fresh directory, and write COMMIT last."""
        with files.disk(self.path):
            if self.committed:
                return
            with self._claims.turn("commit"):
                if self.committed:  # by whoever held it until just now
                    return
                self._check_units()
                self._sweep()
                built = files.temporary(self.path / records.SUMMARY)
                write_summary(built)
                files.sync_tree(built)
                target = self.path / records.SUMMARY
                if target.exists():
                    shutil.rmtree(target)
                built.replace(target)
                files.sync_folder(target.parent)
                body = {"format": records.FORMAT, "key": self._manifest["key"], "files": self._files()}
                files.write_durably(self.path / records.COMMIT, files.sealed(body))

    def _check_units(self) -> None:
        """Refuse to commit what is incomplete or differs from its record; a unit that differs is forgotten."""
        missing = self.missing()
        if missing:
            raise ReproError(f"{self.path}: {len(missing)} of {self.n_units} units are not recorded", Exit.FAILED)
        damaged = []
        for i in range(self.n_units):
            entries = (self.record(i) or {"variables": {}})["variables"]
            if not entries or any(files.digest(self.path / e["file"]) != e["digest"] for e in entries.values()):
                files.remove(self._units / records.unit_name(i))
                damaged.append(i)
        if damaged:
            raise ReproError(f"{self.path}: units {damaged} changed on disk; run again to recompute them", Exit.CORRUPT)

    def _sweep(self) -> None:
        """Remove what killed processes left: temporary files and claims."""
        self._claims.sweep()
        for folder in (self.path, self.path / records.DATA, *(self.path / records.DATA).iterdir(), self._units):
            for file in folder.iterdir() if folder.is_dir() else ():
                if files.is_temporary(file.name):
                    shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)

    def _files(self) -> dict[str, Any]:
        """Digest of every file of the result but the chunks, which their records cover."""
        units = [f"{records.UNITS}/{records.unit_name(i)}" for i in range(self.n_units)]
        summary = [f.relative_to(self.path).as_posix() for f in (self.path / records.SUMMARY).rglob("*") if f.is_file()]
        names = [records.MANIFEST, records.PROVENANCE, *self._manifest["files"], *units, *summary]
        return {name: files.digest(self.path / name) for name in sorted(names)}
