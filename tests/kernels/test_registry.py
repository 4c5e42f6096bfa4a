"""The registry is the only list of kernels: every other place reads it, and every entry is whole."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from repro.kernels import fused
from repro.kernels.bench import cases, compile_table, providers
from repro.kernels.bench.gate import Truth
from repro.kernels.registry import KERNELS, Kernel, triton_modules
from repro.kernels.select import provider
from repro.kernels.work import Shape, listed

ROOT = Path(__file__).parents[2]
TINY = Shape("paper", "tiny", 32, 2, 1, 16, sites=3, vocab=31, center=True, bias=True, positions=5)


@pytest.mark.parametrize("path", ["reference", "tiled", pytest.param("triton", marks=pytest.mark.kernels)])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_every_path_has_the_reference_s_signature(kernel: Kernel, path: str) -> None:
    theirs = dict(inspect.signature(kernel.function(path)).parameters)
    theirs.pop("precision", None)
    assert list(theirs.values()) == list(inspect.signature(kernel.function("reference")).parameters.values())


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_an_entry_is_whole(kernel: Kernel) -> None:
    case = cases.Case(kernel, TINY)
    inputs = case.inputs(torch.float32, "cpu")
    results = listed(kernel.function("reference")(**inputs))
    assert len(results) == len(kernel.results), "each result has a name"
    assert kernel.ids in (None, *kernel.results)
    assert case.least(torch.float32) == case.work(inputs, results), "the same work with and without numbers"
    assert set(kernel.shapes) <= {shape.name for shape in cases.SHAPES}
    assert getattr(provider("torch", "cpu"), kernel.name) is kernel.function("tiled")
    assert {"einsum", "tiled", "triton"} <= {
        entry.name for device in ("cpu", "cuda") for entry in providers.of_kernel(kernel.name, "fp32", device)
    }
    assert kernel.compiled == hasattr(fused, kernel.name)
    assert Truth(kernel.name, inputs).check(results, "ieee").passed


@pytest.mark.kernels
def test_every_kernel_is_compiled_and_its_work_is_declared() -> None:
    modules = {kernel.triton: kernel.module("triton") for kernel in KERNELS.values()}
    for shape in cases.SHAPES:
        made = [name for module in modules.values() for name in module.launches(torch.bfloat16, shape.sizes())]
        assert {name.split(".")[0] for name in made} == set(KERNELS)
        for kernel in KERNELS.values():
            launches = kernel.launches(shape, 2)
            assert set(launches) <= set(made)
            assert kernel.name in made or launches
            assert all(compile_table.work_of(name, shape, "bf16") for name in made if name in (kernel.name, *launches))
    assert {entry.module for entry in compile_table.entries()} == set(triton_modules())


def _lists(source: str) -> list[int]:
    """Lines of literals that hold the names of two kernels: lists beside the registry."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict):
            parts = [*node.keys, *node.values] if isinstance(node, ast.Dict) else node.elts
            names = {part.value for part in parts if isinstance(part, ast.Constant)} & set(KERNELS)
            if len(names) > 1:
                found.append(node.lineno)
    return found


def test_no_other_list_of_kernels() -> None:
    own = {ROOT / "kernels" / f"{module}.py" for module in triton_modules()}  # each names its launches
    for place in ("kernels", "repro/bench"):
        for path in set((ROOT / place).rglob("*.py")) - own:
            assert _lists(path.read_text()) == [], path
    assert _lists('x = 1\ny = ("projection", "top2_logits")') == [2]
    assert _lists('y = {"projection": 1, "top2_logits": 2}') == [1]


def test_choosing_kernels_loads_neither_the_reference_nor_the_benchmark() -> None:
    words = "import json, sys\nfrom repro.kernels.select import provider\n" + "".join(
        f"provider('{name}', 'cpu')\nprint(json.dumps(sorted(sys.modules)))\n" for name in ("torch", "reference")
    )
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=True)
    ours, both = (set(json.loads(line)) for line in done.stdout.splitlines()[-2:])
    ours = {module for module in ours if module.startswith("repro.kernels.")}
    assert "repro.kernels.tiled" in ours
    assert not {module for module in ours if "reference" in module or "bench" in module or "projection" in module}
    assert "repro.kernels.reference" in both, "the check sees what is loaded"


def test_a_further_entry_is_all_that_a_kernel_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = KERNELS["projection"]
    further = replace(entry, name="further")
    for path in ("reference", "tiled"):
        monkeypatch.setattr(entry.module(path), "further", entry.function(path), raising=False)
    monkeypatch.setitem(KERNELS, "further", further)
    assert provider("torch", "cpu").further is entry.function("tiled")
    assert "further/paper" in [case.name for case in cases.select("further", "cpu")]
    inputs: dict[str, Any] = cases.Case(further, TINY).inputs(torch.float32, "cpu")
    assert Truth("further", inputs).check(entry.function("tiled")(**inputs), "ieee").passed
    with pytest.raises(AttributeError, match="no kernel 'none'; there are projection, "):
        _ = provider("torch", "cpu").none
