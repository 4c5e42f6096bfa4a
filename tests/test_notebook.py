"""What a notebook sees: a quick import, calls by name, stored results opened without a model; and the two of ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import xarray as xr
from nbclient.exceptions import CellExecutionError

import repro
from repro.errors import Exit, ReproError
from repro.measures.projection import Projection
from repro.store.result import read_summary
from tests.notebooks import executed, notebooks, plain, same, texts
from tests.runs import PAPER, ROOT, Run, cli, tree


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, repro; print([m for m in ('torch', 'xarray', 'pydantic', 'scipy') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_calls_are_there_by_name() -> None:
    assert set(repro.__all__) <= set(dir(repro))
    assert repro.corrected_dla.__doc__
    assert repro.open.__doc__
    import repro.run.loop as loop
    import repro.scan.verdict as verdict

    assert callable(repro.scan)  # a package, and a function
    assert callable(repro.run)
    assert loop is sys.modules["repro.run.loop"]
    assert verdict.scan is not repro.scan
    with pytest.raises(AttributeError, match="no attribute 'corrected'"):
        repro.corrected  # noqa: B018


def test_a_stored_result_is_opened_by_its_figure_or_its_experiment() -> None:
    by_figure = repro.open("mini", "post_2", spec=PAPER)
    assert isinstance(by_figure, xr.Dataset)
    assert by_figure.attrs["subject"] == "mini"
    xr.testing.assert_identical(by_figure, repro.open("mini", "nodes_onto_writer", spec=PAPER))


def test_what_is_opened_is_in_the_same_order_each_time() -> None:
    for experiment in ("v_patch", "resampled_dla"):
        opened = repro.open("mini", experiment, spec=PAPER)
        for part in (opened.data_vars, opened.coords):
            assert list(part) == sorted(part, key=str)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ReproError, match="no experiment, figure or group 'post_99'"):
        repro.open("mini", "post_99", spec=PAPER)
    with pytest.raises(ReproError, match=r"no result of pr_by_position .*python -m repro run pr_by_position"):
        repro.open("mini", "by_position", spec=PAPER, out=tmp_path)
    with pytest.raises(ReproError, match=rf"--subject mini --prompts 2 --spec \S+ --out {tmp_path}`"):
        repro.open("mini", "by_position", prompts=2, spec=PAPER, out=tmp_path)
    for several in ("paper", "post_1_top,post_2"):
        with pytest.raises(ReproError, match=f"'{several}' is not the name of one experiment or figure"):
            repro.open("mini", several, spec=PAPER)


def test_few_prompts_are_opened_by_their_number_and_never_taken_from_the_copy(tmp_path: Path) -> None:
    with pytest.raises(ReproError, match="no result of nodes_onto_writer"):
        repro.open("mini", "post_2", prompts=2, spec=PAPER, out=tmp_path)


def test_a_figure_is_the_one_that_the_command_draws(tmp_path: Path) -> None:
    import vl_convert

    ran = cli("figures", "--only", "post_2", "--subject", "mini", "--spec", PAPER, "--out", tmp_path)
    assert ran.code == 0, ran.text
    drawn = (tmp_path / "paper_figures" / "out" / "mini" / "post_2.svg").read_text()
    own, other = (
        vl_convert.vegalite_to_svg(repro.figure("mini", name, spec=PAPER, out=tmp_path).to_dict())
        for name in ("post_2", "paper_2")
    )
    assert own == drawn
    assert "COMMITTED" in own
    assert other != drawn
    with pytest.raises(ReproError, match="'nodes_onto_writer' is not a figure"):
        repro.figure("mini", "nodes_onto_writer", spec=PAPER)


def test_run_computes_what_the_command_computes(
    folders: dict[str, Path], finished: Callable[[str], Run], tmp_path: Path
) -> None:
    whole, said = finished("native"), list[str]()
    found = repro.run(whole.model, "post_2", "v_patch", spec=PAPER, out=tmp_path, say=said.append)
    assert set(found) == {"nodes_onto_writer", "post_2", "v_patch"}
    assert any("never computed" in line for line in said)
    for name, experiment in (("post_2", "nodes_onto_writer"), ("v_patch", "v_patch")):
        theirs = read_summary(whole.result(experiment))
        xr.testing.assert_allclose(found[name], theirs)
        assert found[name].attrs["writer"] == theirs.attrs["writer"]
    before = tree(tmp_path)
    again = repro.run(whole.model, "post_2", "paper_2", spec=PAPER, out=tmp_path, say=said.append)
    assert set(again) == {"nodes_onto_writer", "post_2", "paper_2"}, "two figures of one experiment"
    for name in again:
        xr.testing.assert_identical(again[name], found["post_2"])
    assert tree(tmp_path) == before
    few = repro.run(whole.model, "nodes_onto_writer", prompts=2, spec=PAPER, out=tmp_path, say=said.append)
    assert few["nodes_onto_writer"].attrs["n_prompts"] == 2
    assert not few["nodes_onto_writer"]["pr"].equals(found["post_2"]["pr"])
    opened = repro.open(str(whole.model), "post_2", prompts=2, spec=PAPER, out=tmp_path)
    xr.testing.assert_identical(opened, few["nodes_onto_writer"])


def test_a_text_for_run_is_a_path(tmp_path: Path) -> None:
    with pytest.raises(ReproError, match=r"text: given 'README.md'; give files as pathlib.Path"):
        repro.run("mini", "post_2", text="README.md", spec=PAPER, out=tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompts", [0, "8", True])
def test_a_number_of_prompts_that_is_none_is_refused(tmp_path: Path, prompts: Any) -> None:
    for call in (repro.run, repro.open):
        with pytest.raises(ReproError, match=f"prompts: given {prompts!r}; a whole number from 1 on"):
            call("mini", "post_2", prompts=prompts, spec=PAPER, out=tmp_path)


def test_run_says_what_failed(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any) -> Any:
        raise ValueError("no luck")

    monkeypatch.setattr(Projection, "compute", fail)
    with pytest.raises(ReproError, match=r"not finished: sites_onto_nodes \(.*the lines before") as refused:
        repro.run(folders["native"], "sites_onto_nodes", spec=PAPER, out=tmp_path)
    assert refused.value.code == Exit.FAILED
    assert "no luck" in capsys.readouterr().out


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_a_notebook_shows_what_is_kept_in_it(path: Path, tmp_path: Path) -> None:
    kept: Any = nbformat.read(path, as_version=4)
    assert kept == plain(nbformat.read(path, as_version=4))
    told, now = list(texts(kept)), list(texts(executed(path, tmp_path)))
    assert [number for number, _ in now] == [number for number, _ in told]
    for (number, kept_text), (_, text) in zip(told, now, strict=True):
        assert same(kept_text, text), f"cell {number} shows\n{text}\nand keeps\n{kept_text}"
    everything = path.read_text()
    for place in (ROOT, Path.home(), Path(sys.prefix)):
        assert f"{place}/" not in everything
    assert all(output.get("name") != "stderr" for cell in kept.cells for output in cell.get("outputs", ()))
    assert sum("image/svg+xml" in str(cell.get("outputs")) for cell in kept.cells) >= 2


def test_a_notebook_in_which_a_cell_raises_fails(tmp_path: Path) -> None:
    path, v4 = tmp_path / "raises.ipynb", nbformat.v4
    cells = [v4.new_code_cell(code) for code in ("print(1)", "1 / 0")]
    nbformat.write(v4.new_notebook(cells=cells), path)
    (place := tmp_path / "place").mkdir()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        executed(path, place)


def test_what_a_cell_prints_is_one_output_however_long_it_takes(tmp_path: Path) -> None:
    path, v4 = tmp_path / "slow.ipynb", nbformat.v4
    code = "import time\nfor number in range(3):\n    print(number, flush=True)\n    time.sleep(0.3)"
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell(code)]), path)
    (place := tmp_path / "place").mkdir()
    assert list(texts(executed(path, place))) == [(0, "0\n1\n2\n")]


@pytest.mark.parametrize(
    ("kept", "now", "agree"),
    [
        ("L1H5  0.34 [0.33, 0.36]", "L1H5 0.34 [0.33, 0.37]", True),
        ("L1H5  0.34 [0.33, 0.36]", "L1H5 0.34 [0.33, 0.39]", False),
        ("z -27", "z -28", False),
        ("z -38", "z -39", True),
        ("1,024 tokens", "1,025 tokens", True),
        ("by L3H6", "by L3H7", False),
        ("kept", "weakened", False),
        ("1 2", "1", False),
        ("p <1e-6", "p <1e-4", False),
    ],
)
def test_outputs_agree_in_words_and_in_numbers_as_far_as_they_are_rounded(kept: str, now: str, agree: bool) -> None:
    assert same(kept, now) == agree
