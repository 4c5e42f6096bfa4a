"""Which way imports may point: kernels know only torch, triton and numpy, and nobody imports a top-level `kernels`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))
ALLOWED = {"torch", "triton", "numpy", *sys.stdlib_module_names}


def imports(source: str) -> Iterator[str]:
    """Every module that a source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def targets(source: str) -> set[str]:
    """Return what a source imports, `from a import b` counted as `a` and `a.b`: b may be a module."""
    found = set(imports(source))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def upward(path: str, source: str) -> list[str]:
    """Return what a module of kernels/ (its path below it) imports, although what it computes must not know it."""
    top = Path(path).parts[0]
    barred = {"bench": (), "launch": ("bench", "select", "reference")}.get(top, ("bench", "reference"))
    return sorted(
        name
        for name in targets(source)
        if any(name == f"repro.kernels.{one}" or name.startswith(f"repro.kernels.{one}.") for one in barred)
    )


def strangers(source: str) -> list[str]:
    """Imports that a kernel module may not have."""
    found = []
    for name in imports(source):
        ours = name.startswith(("repro.kernels", "."))
        if not ours and name.split(".")[0] not in ALLOWED:
            found.append(name)
    return found


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_kernels_need_only_torch_triton_and_numpy(path: Path) -> None:
    assert strangers(path.read_text()) == []


def test_the_check_sees_strangers() -> None:
    assert strangers(
        "import zarr\nfrom repro.store.result import x\nimport torch\ndef f():\n    import xarray.core\n"
    ) == [
        "zarr",
        "repro.store.result",
        "xarray.core",
    ]


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_computes_imports_neither_the_reference_nor_what_measures_it(path: Path) -> None:
    assert upward(path.relative_to(ROOT / "kernels").as_posix(), path.read_text()) == []


@pytest.mark.parametrize("module", ["reference", "bench", "bench.timing"])
def test_the_check_sees_every_form_of_an_upward_import(module: str) -> None:
    package, _, name = f"repro.kernels.{module}".rpartition(".")
    for source in (
        f"import repro.kernels.{module}",
        f"from {package} import {name}",
        f"from repro.kernels.{module} import x",
    ):
        assert upward("projection.py", source), source
        assert upward("launch/launch.py", source), source
        assert not upward("bench/gate.py", source), source


def test_nobody_imports_a_top_level_kernels() -> None:
    for path in (
        path for place in ("repro", "paper_figures", "tests", "kernels") for path in (ROOT / place).rglob("*.py")
    ):
        assert not [name for name in imports(path.read_text()) if name.split(".")[0] == "kernels"], path
    assert not (ROOT / "kernels" / "__init__.py").exists()
