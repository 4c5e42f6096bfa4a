"""Hugging Face has a package `kernels`, which transformers looks for: ours is never mistaken for theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import ROOT, environment, subject_name

WHOSE = """
import importlib.util, json
import repro.kernels.reference as ours
theirs = importlib.util.find_spec("kernels")
from transformers.utils import is_kernels_available
print(json.dumps([ours.__name__, ours.__file__, theirs and theirs.origin, is_kernels_available()]))
"""


def whose(folder: Path, *path: Path) -> tuple[str, str, str | None, bool]:
    """Name and file of our kernels, file of the other package, and whether transformers believes it is there."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))}
    found = subprocess.run(
        [sys.executable, "-c", WHOSE], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    name, file, theirs, believed = json.loads(found.stdout)
    return name, file, theirs, believed


@pytest.mark.parametrize("installed", [False, True], ids=["without the wheel", "with the wheel"])
def test_the_other_package_of_that_name_is_never_mistaken_for_ours(tmp_path: Path, installed: bool) -> None:
    wheel = tmp_path / "site"
    (wheel / "kernels").mkdir(parents=True)
    (wheel / "kernels" / "__init__.py").write_text("")
    information = wheel / "kernels-0.10.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.10.0\n")
    name, file, theirs, believed = whose(ROOT, *([wheel] if installed else []))
    assert name == "repro.kernels.reference"
    assert Path(file).resolve() == (ROOT / "kernels" / "reference.py").resolve()
    if installed:
        assert theirs == str(wheel / "kernels" / "__init__.py")
    else:
        assert theirs is None, "from the checkout's root our folder is no regular package of that name"
        assert not believed


def test_a_model_runs_from_the_checkouts_root_with_the_other_package_there(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    wheel = tmp_path / "site"
    (wheel / "kernels").mkdir(parents=True)
    (wheel / "kernels" / "__init__.py").write_text("")
    variables = os.environ | {"PYTHONPATH": str(wheel), "REPRO_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "repro", "run", "scan", "--subject", str(folders["llama"])]
    found = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "out" / "store" / subject_name(folders["llama"]) / "scan").is_dir()


def test_the_environment_of_a_test_is_put_back() -> None:
    before = dict(os.environ)
    with environment(REPRO_TEST_VARIABLE="1", HOME="/nowhere"):
        assert os.environ["REPRO_TEST_VARIABLE"] == "1"
    assert dict(os.environ) == before
