"""How many prompts go through the model together changes last bits only; the same run twice changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from repro.store.result import read_raw
from tests.runs import PAPER, cli
from tests.toys import make_native, write_prompts

pytestmark = pytest.mark.long

# The tolerance stated for another batch size, relative to an array's largest value.
TOLERANCE = 1e-5


@pytest.fixture(autouse=True, scope="module")
def two_threads() -> Iterator[None]:
    """What one thread finds, it finds again; threads that share a sum might not."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_native(tmp_path_factory.mktemp("batches") / "toy")
    write_prompts(folder, n=18)
    return folder


@pytest.fixture(scope="module")
def batches(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Path]]:
    """Prompts per unit -> `run_with` so many."""
    return {unit: run_with(model, unit, tmp_path_factory.mktemp(f"{unit}") / "of") for unit in (1, 3, 16)}


def run_with(model: Path, unit: int, out: Path) -> dict[str, Path]:
    """Experiment -> result of the whole default spec with so many prompts to a unit, all of them in one batch."""
    spec = out / "experiments.toml"
    out.mkdir()
    spec.write_text(PAPER.read_text().replace("prompts_per_unit = 4", f"prompts_per_unit = {unit}"))
    ran = cli("run", "--spec", spec, "--subject", model)
    assert ran.code == 0, ran.text
    return {path.parent.parent.name: path.parent for path in (out / "store").rglob("COMMIT")}


def digests(found: dict[str, Path]) -> dict[str, str]:
    """Hash of every stored array and summary file."""
    files = {
        f"{name}/{file.relative_to(path)}": file for name, path in found.items() for file in path.glob("data.zarr/**/*")
    }
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if file.is_file()}


def test_batches_of_one_three_and_sixteen_agree(batches: dict[int, dict[str, Path]]) -> None:
    found = batches
    assert len(found[1]) == 7
    assert {"path", "clean", "presence"} <= set(read_raw(found[1]["scan"]).data_vars)
    for unit in (3, 16):
        for name, path in found[1].items():
            one, many = read_raw(path), read_raw(found[unit][name])
            for variable in one.data_vars:
                a, b = (np.asarray(data[variable], dtype=np.float64) for data in (one, many))
                np.testing.assert_allclose(
                    b, a, rtol=0, atol=TOLERANCE * np.nanmax(np.abs(a)), err_msg=f"{name} {unit}"
                )


def test_two_runs_store_the_same_bits(model: Path, batches: dict[int, dict[str, Path]], tmp_path: Path) -> None:
    once, again = digests(batches[3]), digests(run_with(model, 3, tmp_path / "again"))
    assert len(once) > 50
    assert once == again
    other = digests(batches[16])
    assert other.keys() != again.keys() or other != again, "the control: other units are other files"
