"""The picture of the README: a published chart beside a subject's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from repro.errors import Exit, ReproError
from repro.example import example, main
from tests.runs import PAPER, Run


def test_a_published_chart_stands_beside_the_subjects_own(finished: Callable[[str], Run], tmp_path: Path) -> None:
    run = finished("native")
    draw = partial(example, str(run.model), spec=PAPER, out=run.out)
    draw("post_1_bottom", tmp_path / "two.png")
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ReproError, match=r"post_5: no published numbers .*: post_1_top, post_1_bottom, "):
        draw("post_5", tmp_path / "none.png")
    with pytest.raises(ReproError, match=r"none\.png: "):
        draw("post_1_bottom", tmp_path / "nowhere" / "none.png")
    with pytest.raises(ReproError, match=r"no experiment, figure or group 'post_1'\. Did you mean 'post_"):
        draw("post_1", tmp_path / "none.png")


def test_what_is_not_there_is_one_sentence_on_the_terminal(
    finished: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(PAPER.parent)
    model = str(finished("native").model)
    code = main(["--subject", model, "--out", str(tmp_path), "--to", str(tmp_path / "two.png")])
    assert code == Exit.UNAVAILABLE
    said = capsys.readouterr().err
    assert said.startswith(f"error: no result of sites_onto_nodes for {model} in ")
    command = f"python -m repro run sites_onto_nodes --subject {model} --out {tmp_path}"
    assert said.endswith(f"compute it with `{command}`\n")
    assert main(["--subject", "minni", "--out", str(tmp_path)]) == Exit.USAGE
    assert capsys.readouterr().err.startswith("error: --subject minni: no such subject")
