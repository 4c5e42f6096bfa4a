"""The picture of the README: a published chart beside a subject's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from repro.request import Request, Workspace
from repro.stages.example import example
from tests.runs import PAPER, Run


def test_a_published_chart_stands_beside_the_subjects_own(finished: Callable[[str], Run], tmp_path: Path) -> None:
    run = finished("native")
    workspace = Workspace(Request(PAPER, subject=str(run.model), out=run.out), print)
    example(workspace, "post_1_bottom", tmp_path / "two.png")
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="post_5: no published numbers"):
        example(workspace, "post_5", tmp_path / "none.png")
