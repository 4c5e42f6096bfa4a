"""A power cut leaves only what was flushed, contents and names: a record or COMMIT vouches for nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from repro import files
from repro.store.layout import result_path
from tests import faulty


class Platter:
    """What would survive if the power failed now; looks at every rename of a record or COMMIT."""

    def __init__(self, store: Path, result: Path) -> None:
        self.store = store
        self.result = result
        self.contents: set[Path] = set()
        self.names: set[Path] = set()
        self.checked: list[str] = []
        self.lost: list[str] = []
        self._fsync, self._replace = os.fsync, os.replace

    def fsync(self, handle: int) -> None:
        """A file's content is safe, or the names in a folder are."""
        where = Path(f"/proc/self/fd/{handle}").readlink()
        if where.is_dir():
            self.names.update(where.iterdir())
        else:
            self.contents.add(where)
        self._fsync(handle)

    def replace(self, source: Path, target: Path) -> None:
        """A rename takes along what is safe below it; the new name is not safe yet."""
        source, target = Path(source), Path(target)
        self.check(target)
        for kept in (self.contents, self.names):
            moved = {path for path in kept if path == source or source in path.parents}
            kept |= {target / path.relative_to(source) for path in moved}
        self.names.discard(target)
        self._replace(source, target)

    def check(self, target: Path) -> None:
        """Is everything safe that this file is going to vouch for?"""
        if record := re.fullmatch(r"0*(\d+)\.json", target.name):
            vouched = {self.result / f"data.zarr/pr/c.0.{record[1]}.0", self.result / f"data.zarr/count/c.{record[1]}"}
        elif target.name == "COMMIT":
            vouched = {f for f in self.result.rglob("*") if f.is_file() and f.suffix not in (".claim", ".tmp")}
        else:
            return
        self.lost += [f"{target.name}: content of {file}" for file in vouched - self.contents]
        below = {path for file in vouched for path in (file, *file.parents) if self.store in path.parents}
        self.lost += [f"{target.name}: name of {path}" for path in below - self.names]
        self.checked.append(target.name)


def _watched_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Platter:
    path = result_path(folder / "store", "mini", "scan", "0123456789ab")
    platter = Platter(folder / "store", path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", platter.fsync)
        patch.setattr(os, "replace", platter.replace)
        faulty.run(path, n_prompts=5)
    assert platter.checked == ["000000.json", "000001.json", "000002.json", "COMMIT"]
    return platter


def test_what_is_vouched_for_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _watched_run(tmp_path, monkeypatch).lost == []


def _forgets_names(folder: Path) -> None:
    """Nothing is flushed but contents."""


def _forgets_contents(file: Path, content: bytes) -> None:
    """Renamed whole, but not flushed."""
    temp = files.temporary(file)
    temp.write_bytes(content)
    temp.replace(file)
    files.sync_folder(file.parent)


@pytest.mark.parametrize(
    ("name", "careless", "what"),
    [("sync_folder", _forgets_names, "name"), ("write_durably", _forgets_contents, "content")],
)
def test_a_careless_writer_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, careless: Callable[..., None], what: str
) -> None:
    monkeypatch.setattr(files, name, careless)
    lost = _watched_run(tmp_path, monkeypatch).lost
    for file in ("000002.json", "COMMIT"):
        assert any(line.startswith(f"{file}: {what} of ") for line in lost)
