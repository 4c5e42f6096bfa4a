"""Reduced copies of committed results, small enough for git."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from repro import files
from repro.store import records
from repro.store.layout import check_place


def commit_reduced(path: Path, destination: Path) -> None:
    """Copy the summary of a committed result to `destination`: three small files, the same bytes each time.

    path: the result directory; destination: `store/committed/<subject>/<experiment>`, replaced if it exists.
    `read_summary(destination)` reads it. Raises ReproError (exit 5) if the result is not committed or damaged.
    """
    path, destination = Path(path), Path(destination)
    check_place(destination)
    commit = records.checked_commit(path, (records.SUMMARY, records.PROVENANCE))
    summary = path / records.SUMMARY
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(file for file in summary.rglob("*") if file.is_file()):
            archive.writestr(zipfile.ZipInfo(file.relative_to(summary).as_posix()), file.read_bytes())
    contents = {records.ARCHIVE: buffer.getvalue(), records.PROVENANCE: (path / records.PROVENANCE).read_bytes()}
    digests = {name: [len(content), files.sha256(content)] for name, content in contents.items()}
    with files.disk(destination):
        destination.mkdir(parents=True, exist_ok=True)
        files.remove(destination / records.COMMIT)
        for name, content in contents.items():
            files.write_durably(destination / name, content)
        body = {"format": records.FORMAT, "copy": True, "key": commit["key"], "files": digests}
        files.write_durably(destination / records.COMMIT, files.sealed(body))
