"""The whole spec on the fused Triton kernels, under the interpreter: the reference's arrays, and not by accident."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from repro.kernels.registry import KERNELS
from repro.store.result import read_raw
from tests.runs import PAPER, cli
from tests.toys import make_native, write_prompts

pytestmark = pytest.mark.kernels

SHAPE = {"d_model": 64, "d_head": 16, "n_heads": 4, "n_layers": 3, "d_mlp": 96}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's spec with a toy whose erasers are heads and an MLP, so that every kernel has something to do."""
    folder = make_native(tmp_path_factory.mktemp("kernels") / "toy", **SHAPE)
    write_prompts(folder, n=3, length=21)
    subject = f'[subject.toy]\nmodel = "{folder}"\nwriter = "L0H1"\nerasers = ["L1H0", "L2H2", "MLP2"]\n'
    path = folder.parent / "experiments.toml"
    path.write_text(f"{PAPER.read_text()}\n{subject}")
    return path


def run_on(kernels: str, spec: Path, out: Path) -> dict[str, Path]:
    """Experiment -> result of the whole default spec, computed by one provider."""
    ran = cli("run", "--spec", spec, "--subject", "toy", "--kernels", kernels, "--out", out)
    assert ran.code == 0, ran.text
    found = {path.parent.parent.name: path.parent for path in (out / "store").rglob("COMMIT")}
    assert len(found) == 7
    for path in found.values():
        assert json.loads((path / "provenance.json").read_text())["environment"]["kernels"] == kernels
    return found


@pytest.fixture(scope="module")
def reference(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return run_on("reference", spec, tmp_path_factory.mktemp("reference"))


def largest_difference(ours: dict[str, Path], theirs: dict[str, Path]) -> float:
    """The largest deviation of any stored array, relative to its own largest value; infinite if not even NaNs agree."""
    worst = 0.0
    for name, path in theirs.items():
        there, here = read_raw(path), read_raw(ours[name])
        for variable in there.data_vars:
            a, b = (np.asarray(data[variable], dtype=np.float64) for data in (here, there))
            if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
                return np.inf
            worst = max(worst, float(np.nanmax(np.abs(a - b)) / max(np.nanmax(np.abs(b)), 1e-12)))
    return worst


def test_the_whole_spec_on_triton_equals_the_reference(spec: Path, reference: dict[str, Path], tmp_path: Path) -> None:
    assert largest_difference(run_on("triton", spec, tmp_path), reference) < 2e-5


@pytest.mark.parametrize("kernel", ["projection", "projection_onto_vectors", "v_composition"])
def test_a_corrupted_kernel_is_seen(
    kernel: str, spec: Path, reference: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = KERNELS[kernel].function("triton")

    def flipped(*given: object, **named: object) -> tuple[object, object]:
        first, second = whole(*given, **named)
        return -first, second

    monkeypatch.setattr(KERNELS[kernel].module("triton"), kernel, flipped)
    found = run_on("triton", spec, tmp_path)
    assert largest_difference(found, {name: reference[name] for name in found}) > 0.1
