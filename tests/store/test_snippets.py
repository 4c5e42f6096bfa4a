"""The Python of store/README.md, run as it stands, whatever lies beside the result that it opens."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from repro.store.result import status
from tests.runs import ROOT, Run

SNIPPETS = {
    f"{name} {number}": snippet
    for name in ("store/README.md",)
    for number, snippet in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL))
    if "store/mini" in snippet
}


@pytest.fixture
def crowded(finished: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An older result, a newer unfinished one, an empty folder and a stray file beside the newest whole result."""
    run = finished("native")
    whole = run.result("nodes_onto_writer")
    folder = tmp_path / "store" / "mini" / "nodes_onto_writer"
    newest = folder / whole.name
    shutil.copytree(whole, newest)
    shutil.copytree(whole, folder / "0123456789ab")
    os.utime(folder / "0123456789ab" / "COMMIT", (1e9, 1e9))
    shutil.copytree(whole, folder / "ba9876543210")
    (folder / "ba9876543210" / "COMMIT").unlink()
    (folder / "ba9876543210" / "units" / "000001.json").unlink()
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    return newest


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) == 2


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_snippet_opens_the_newest_whole_result(name: str, crowded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(status(crowded.parent / "ba9876543210")) == "partial 1/2"
    found: dict[str, object] = {}
    exec(compile(SNIPPETS[name], name, "exec"), found)
    path = found.get("path", found.get("newest"))
    assert isinstance(path, Path)
    assert path.resolve() == crowded
    told = capsys.readouterr().out
    if "status" in found:
        assert "partial 1/2" in told
