"""What a notebook sees: a quick import, calls by name, and stored results opened without a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

import repro
from repro.errors import ReproError
from tests.runs import PAPER


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, repro; print([m for m in ('torch', 'xarray', 'pydantic', 'scipy') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_calls_are_there_by_name() -> None:
    assert set(repro.__all__) <= set(dir(repro))
    assert repro.corrected_dla.__doc__
    assert repro.open.__doc__
    import repro.scan.verdict as verdict

    assert callable(repro.scan)  # a package, and a function
    assert verdict.scan is not repro.scan
    with pytest.raises(AttributeError, match="no attribute 'corrected'"):
        repro.corrected  # noqa: B018


def test_a_stored_result_is_opened_by_its_figure_or_its_experiment() -> None:
    by_figure = repro.open("mini", "post_2", spec=PAPER)
    assert isinstance(by_figure, xr.Dataset)
    assert by_figure.attrs["subject"] == "mini"
    xr.testing.assert_identical(by_figure, repro.open("mini", "nodes_onto_writer", spec=PAPER))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ReproError, match="no experiment, figure or group 'post_99'"):
        repro.open("mini", "post_99", spec=PAPER)
    with pytest.raises(ReproError, match=r"no result of pr_by_position .*python -m repro run pr_by_position"):
        repro.open("mini", "by_position", spec=PAPER, out=tmp_path)
