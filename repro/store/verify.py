"""Is every byte of the store what was committed? Names what is not, and the prompts that it concerns.

Reads bytes and checksums only: COMMIT covers records, metadata and summaries; a record covers the chunks of its unit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from repro import files
from repro.errors import Exit, ReproError
from repro.store import records
from repro.store.claims import Claims
from repro.store.layout import DATA, Layout

_RECORD = re.compile(re.escape(records.UNITS) + r"/(\d{6,})\.json")
_CLAIM = re.compile(re.escape(records.UNITS) + r"/(\d+|commit|create)\.claim")
_KEPT_AT_ROOT = ("README.md", ".gitignore", "bench", "logs")
_KEPT_BESIDE_COPIES = (*_KEPT_AT_ROOT, "controls.json", "card.json")


@dataclass(frozen=True)
class Finding:
    """One file that is not what it should be."""

    result: Path
    """The result directory it lies in, or the directory where it was met."""
    file: str
    """Its path in that directory."""
    what: str
    """What is wrong, in words."""
    prompts: tuple[tuple[int, int], ...] = ()
    """Prompts whose raw values can no longer be trusted, as (first, one past the last)."""
    units: tuple[int, ...] = ()
    """Units to compute again."""
    foreign: bool = False
    """Whether the file does not belong here at all; then nothing of the result itself is damaged."""

    @property
    def path(self) -> Path:
        """Return the file's path."""
        return self.result / self.file

    def __str__(self) -> str:
        who = ", ".join(f"{start} to {stop - 1}" for start, stop in self.prompts)
        return f"{self.path}: {self.what}" + (f" (prompts {who})" if who else "")


def verify(root: Path) -> list[Finding]:
    """Read every byte of every result below `root` and return what is wrong, in order of path; empty if nothing is.

    root: the `store/` directory. Finds altered bits, truncated, deleted, swapped or foreign files and links, in arrays,
    metadata, records and copies. A unit of an unfinished result that has no record is not an error but work left.
    Agreement: tests/store/test_verify.py, tests/run/test_faults.py (every one of 500 flipped bits).
    """
    root = Path(root)
    findings: list[Finding] = []
    for folder in _level(root, root, findings, _KEPT_AT_ROOT):
        copies = folder.name == "committed"
        for middle in _level(root, folder, findings, _KEPT_BESIDE_COPIES if copies else ()):
            for result in _level(root, middle, findings):
                findings += _verify_copy(result) if copies else verify_result(result)
    return findings


def _level(root: Path, folder: Path, findings: list[Finding], kept: tuple[str, ...] = ()) -> list[Path]:
    """Return the directories inside a directory; whatever else lies there is foreign."""
    inside = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if entry.name in kept:
            continue
        if entry.is_symlink() or not entry.is_dir():
            what = "is a link" if entry.is_symlink() else "does not belong here"
            findings.append(Finding(root, entry.relative_to(root).as_posix(), what, foreign=True))
        else:
            inside.append(entry)
    return inside


def verify_result(path: Path) -> list[Finding]:
    """Verify one result directory, `store/<subject>/<experiment>/<key>`, as `verify` does."""
    check = _Check(path)
    commit = check.sealed(records.COMMIT)
    manifest = check.sealed(records.MANIFEST)
    check.sealed(records.PROVENANCE)
    check.sealed(records.ROLES)
    if manifest is not None and (manifest.get("key") != path.name or manifest.get("format") != records.FORMAT):
        check.say(records.MANIFEST, "belongs to another result or another version")
        manifest = None
    layout, files = None, dict[str, Any]()
    if manifest is not None:
        layout, files = Layout.from_json(manifest["layout"]), dict(manifest["files"])
        for i in range(layout.n_units(manifest["unit"])):
            check.known.update(layout.chunk_file(v, i) for v in layout.variables)
    if commit is not None and commit.get("key") != path.name:
        check.say(records.COMMIT, "belongs to another result")
    elif commit is not None:
        files = {**commit["files"], **files}
    listed = {name for name in (*_files(path), *files) if _RECORD.fullmatch(name)}
    if manifest is None and (listed or commit is not None):
        check.say(records.MANIFEST, "is missing")
    for name in sorted(listed):
        check.record(name, layout, manifest)
    for name, digest in sorted(files.items()):
        check.digest(name, digest)
    # What cannot be judged: labels while there is no manifest, a summary while there is no COMMIT.
    unsettled = DATA if manifest is None else records.SUMMARY if commit is None else ""
    return check.finish(unsettled)


def _verify_copy(path: Path) -> list[Finding]:
    """Return the findings in a reduced copy of a result."""
    check = _Check(path)
    commit = check.sealed(records.COMMIT)
    if commit is None:
        check.say(records.COMMIT, "is missing")
    for name, digest in (commit or {"files": {}})["files"].items():
        check.digest(name, digest)
    check.known |= {records.ARCHIVE, records.PROVENANCE}
    return check.finish()


class _Check:
    """The first finding of each file of one directory, and the files that belong there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Finding] = {}
        self.known: set[str] = set()

    def say(self, file: str, what: str, **concerns: Any) -> None:
        """Report a file, once; concerns: the other fields of a `Finding`."""
        self.found.setdefault(file, Finding(self.path, file, what, **concerns))

    def sealed(
        self, file: str, load: Callable[[], dict[str, Any] | None] | None = None, **concerns: Any
    ) -> dict[str, Any] | None:
        """Return the body of a sealed file, None if it is absent or damaged."""
        self.known.add(file)
        try:
            return files.load(self.path / file) if load is None else load()
        except ReproError as error:
            self.say(file, error.message.removeprefix(f"{self.path / file} "), **concerns)
            return None

    def digest(self, file: str, expected: Any, **concerns: Any) -> None:
        """Compare a file with its checksum."""
        self.known.add(file)
        found = files.digest_or_none(self.path / file)
        if found is None:
            self.say(file, "is missing or no plain file", **concerns)
        elif found[0] != expected[0]:
            self.say(file, f"has {found[0]} bytes instead of {expected[0]}", **concerns)
        elif found != expected:
            self.say(file, "has changed since it was written", **concerns)

    def record(self, file: str, layout: Layout | None, manifest: Mapping[str, Any] | None) -> None:
        """Check one unit's record, and the chunks that it covers."""
        i, load, concerns = int(Path(file).stem), None, dict[str, Any]()
        if layout is not None and manifest is not None:
            if i >= layout.n_units(manifest["unit"]):
                return
            prompts = layout.prompts(manifest["unit"], i)
            concerns = {"prompts": ((prompts.start, prompts.stop),), "units": (i,)}
            load = partial(records.load_record, self.path, layout, manifest, i)
        record = self.sealed(file, load, **concerns)
        if record is None:
            self.say(file, "is missing", **concerns)
            return
        for entry in record["variables"].values():
            self.digest(entry["file"], entry["digest"], prompts=(tuple(record["prompts"]),), units=(i,))

    def finish(self, unsettled: str = "") -> list[Finding]:
        """Report what does not belong here, but for a folder that cannot be judged; return all findings by file."""
        for file in _files(self.path):
            temporary = any(files.is_temporary(part) for part in Path(file).parts)
            if file in self.known or temporary or _CLAIM.fullmatch(file):
                continue
            if unsettled and file.startswith(f"{unsettled}/"):
                continue
            link = (self.path / file).is_symlink()
            self.say(file, "is a link" if link else "does not belong here", foreign=True)
        return [self.found[file] for file in sorted(self.found)]


def _files(path: Path) -> Iterator[str]:
    """Yield every path below a directory that is not a plain directory; links are named, not followed."""
    for folder, folders, names in os.walk(path):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in sorted((*names, *links)):
            yield (Path(folder) / name).relative_to(path).as_posix()


def invalidate(finding: Finding) -> None:
    """Forget what a finding makes doubtful, and no more, so that the next run computes or writes just that again.

    A damaged chunk or record costs its unit; damaged labels or metadata are rebuilt from the declared layout; a damaged
    summary or COMMIT is written again from the units. A foreign file is left where it is.
    Raises ReproError (exit 5) for a copy kept in git, which only git can restore.
    """
    path = finding.result
    if finding.foreign:
        return
    if (path / records.ARCHIVE).exists() or path.parent.parent.name == "committed":
        raise ReproError(
            f"{finding.path} is a reduced copy: restore it from git, or commit the result again", Exit.CORRUPT
        )
    if finding.file == records.ROLES:
        files.remove(finding.path)
        return
    with files.disk(path):
        (path / records.UNITS).mkdir(exist_ok=True)
    with files.disk(path), Claims(path / records.UNITS).turn("create"):
        files.remove(path / records.COMMIT)
        if finding.file.startswith(f"{records.UNITS}/"):
            files.remove(finding.path)
        for i in finding.units:
            files.remove(path / records.UNITS / records.unit_name(i))
        if finding.file == records.PROVENANCE:
            files.remove(path / records.PROVENANCE)
        elif not finding.units and not finding.file.startswith((records.COMMIT, f"{records.SUMMARY}/")):
            files.remove(path / records.MANIFEST)


def repair(path: Path) -> list[Finding]:
    """Verify a result and invalidate what is damaged: the next run computes just that, and commits again.

    path: `store/<subject>/<experiment>/<key>`. Returns what was found. Agreement: tests/store/test_verify.py.
    """
    findings = verify_result(path)
    for finding in findings:
        invalidate(finding)
    return findings
