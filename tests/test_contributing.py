"""The new measure of CONTRIBUTING.md, exactly as it stands there, in a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tomli

from repro.model.folder import read_folder, read_prompts
from repro.model.load import load
from repro.store.result import read_raw, read_summary
from tests import oracle
from tests.runs import ROOT

pytestmark = pytest.mark.long

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
SECTION = TEXT[TEXT.index("## A new measure") : TEXT.index("## A new figure")]
FIGURES = TEXT[TEXT.index("## A new figure") :]
MEASURE, REGISTERED = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
CHART, DECLARED = re.findall(r"```python\n(.*?)```", FIGURES, re.DOTALL)
(ENTRY,) = re.findall(r"```toml\n(.*?)```", SECTION, re.DOTALL)
(FIGURE,) = re.findall(r"```toml\n(.*?)```", FIGURES, re.DOTALL)
COMMANDS = "".join(found[1] for text in (SECTION, FIGURES) if (found := re.search(r"```sh\n(.*?)```", text, re.DOTALL)))
SUBJECT = """
[subject.toy]
model = "toy"
writer = "L0H1"
erasers = ["L2H0"]
"""


@pytest.fixture(scope="module")
def checkout(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the measure and its figure added as the text says, and a toy model beside its spec."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("repro", "kernels", "paper_figures"):
        left_out = shutil.ignore_patterns("__pycache__", "mini", "out")
        shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=left_out)
    (path,) = re.findall(r"one class in one file, `([\w/.]+)`", SECTION)
    (root / path).write_text(MEASURE)
    (place,) = re.findall(r"one line in `([\w/.]+)`", SECTION)
    lines = (root / place).read_text().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if line.startswith("from repro.measures."))
    (root / place).write_text("".join([*lines[: last + 1], REGISTERED, *lines[last + 1 :]]))
    assert len(REGISTERED.splitlines()) == 1
    (path,) = re.findall(r"one function in one file, `([\w/.]+)`", FIGURES)
    (root / path).write_text(CHART)
    (place,) = re.findall(r"one line in `([\w/.]+)`", FIGURES)
    declared = (root / place).read_text()
    assert declared.count("}\n\n\ndef names") == 1
    (root / place).write_text(declared.replace("}\n\n\ndef names", f"{DECLARED}}}\n\n\ndef names"))
    (root / "experiments.toml").write_text((ROOT / "experiments.toml").read_text() + SUBJECT + ENTRY + FIGURE)
    shutil.copytree(folders["native"], root / "toy")
    return root


def test_the_new_measure_and_the_new_chart_are_short() -> None:
    assert len(MEASURE.splitlines()) <= 35
    assert len(CHART.splitlines()) <= 25


def test_the_new_measure_runs_and_is_right_and_its_figure_shows_it(checkout: Path) -> None:
    for line in COMMANDS.splitlines():
        words = line.split("#")[0].replace("--subject mini", "--subject toy").split()
        command = [sys.executable, *words[1:]]
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        ran = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "writer_cosine" in (checkout / "repro" / "spec" / "schema.json").read_text()
    (result,) = (checkout / "store" / "toy" / "writer_cosine").iterdir()
    cosine = read_raw(result)["cosine"]
    assert cosine.dims == ("site", "prompt", "position")
    folder = read_folder(checkout / "toy")
    clean = oracle.forward(load(folder, "float64"), read_prompts(folder).astype(np.int64))

    def with_head(label: str) -> np.ndarray:
        written, sites = oracle.written(clean, label), np.asarray(clean.sites)
        norms = np.linalg.norm(sites, axis=-1) * np.linalg.norm(written, axis=-1)
        return (sites * written).sum(-1) / norms

    np.testing.assert_allclose(cosine.values, with_head("L0H1"), atol=2e-5)
    assert np.abs(cosine.values - with_head("L0H2")).max() > 0.01, "the control: another head"
    median = read_summary(result)["cosine"].sel(quantile="median")
    np.testing.assert_allclose(median.values, np.median(cosine.values, axis=(1, 2)), atol=1e-6)
    assert read_summary(result)["cosine"].attrs == {"units": "1", "long_name": "cosine with the writer, quantiles"}
    shown = checkout / "paper_figures" / "out" / "toy" / "writer_cosine"
    assert shown.with_suffix(".png").stat().st_size > 10_000
    picture = shown.with_suffix(".svg").read_text()
    assert "Cosine of the residual stream with L0H1" in picture
    assert "resid_post2" in picture


def test_the_layers_are_those_that_the_linter_holds() -> None:
    contracts = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (held,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    (told,) = re.findall(r"`(__main__ [^`]+)`", TEXT)
    assert " ".join(told.split()) == " > ".join(held)
