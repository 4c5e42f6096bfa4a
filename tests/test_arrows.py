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


def test_the_reference_is_imported_by_no_kernel() -> None:
    for name in ("projection", "v_composition", "top2_logits", "tiled"):
        assert "repro.kernels.reference" not in set(imports((ROOT / "kernels" / f"{name}.py").read_text()))


def test_what_computes_does_not_import_what_measures_it() -> None:
    for path in KERNELS:
        inside = path.relative_to(ROOT / "kernels").parts[0]
        allowed = {"bench": (), "launch": ("bench", "select")}.get(inside, ("bench",))
        found = set(imports(path.read_text()))
        assert not [name for name in found for other in allowed if name.startswith(f"repro.kernels.{other}")], path


def test_nobody_imports_a_top_level_kernels() -> None:
    for path in (
        path for place in ("repro", "paper_figures", "tests", "kernels") for path in (ROOT / place).rglob("*.py")
    ):
        assert not [name for name in imports(path.read_text()) if name.split(".")[0] == "kernels"], path
    assert not (ROOT / "kernels" / "__init__.py").exists()
