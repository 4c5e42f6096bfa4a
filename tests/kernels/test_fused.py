"""The compiled loop: right on every kind of register that this processor has, optional, and never in the way."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from repro.kernels import fused, reference, tiled
from repro.kernels.bench.tolerances import TOLERANCES
from repro.kernels.errors import KernelError
from tests.kernel_helpers import SHAPES, Shape, agree, as_accurate, poisoned, projection_arguments, shapes_to, wide

ROOT = Path(__file__).resolve().parents[2]
BUILT = fused.library()
built = pytest.mark.skipif(BUILT is None, reason="no C compiler was there when the package was installed")
LANES = [lanes for lanes in (4, 8, 16) if BUILT is not None and lanes <= BUILT.fused_lanes()]
# A head beside few components and the reverse, and strips and blocks that are not full on any processor.
ODD = (
    Shape(H=1, S=9, P=13, D=71),
    Shape(H=7, S=1, P=25, D=33),
    Shape(H=2, S=2, P=7, K=5, D=100),
    Shape(H=41, S=4, D=512),
)


@pytest.fixture(params=LANES, ids=lambda lanes: f"{lanes} lanes")
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(fused, "_lanes", request.param)
    return int(request.param)


@built
@pytest.mark.parametrize("shape", [*SHAPES, *ODD], ids=str)
def test_agrees_with_float64_on_registers_of_any_width(lanes: int, shape: Shape) -> None:
    arguments = projection_arguments(shape, torch.float32)
    vectors = {"v": arguments["of"].flip(0)[:3], "of": arguments["of"]}
    with poisoned():
        got = *fused.projection(**arguments), *fused.projection_onto_vectors(**vectors)
    true = *reference.projection(**wide(arguments)), *reference.projection_onto_vectors(**wide(vectors))
    agree(got, true, "ieee")
    plain = *reference.projection(**arguments), *reference.projection_onto_vectors(**vectors)
    as_accurate(got, plain, true)
    spoilt = arguments["W_O"].clone()
    spoilt[-1, -1] *= -1
    with pytest.raises(AssertionError):
        agree(fused.projection(**arguments | {"W_O": spoilt}), true[:2], "ieee")


@built
@settings(deadline=None)
@given(shapes_to(150), st.sampled_from([1, fused.CACHE_BYTES]))
@example(Shape(D=150, K=1), 1)
def test_any_shape_is_the_reference(shape: Shape, cache: int) -> None:
    arguments = projection_arguments(shape, torch.float32)
    with poisoned(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "CACHE_BYTES", cache)
        num, norm2 = fused.projection(**arguments)
    true, true_norm2 = reference.projection(**wide(arguments))
    # The most that a head and a product can be: with few numbers a sum may cancel, and its own size is no measure.
    z, W_O, of = wide(arguments).values()
    head = (z.norm(dim=-1) * W_O.norm(dim=(1, 2))).permute(2, 0, 1)
    assert ((num - true).abs() <= TOLERANCES["ieee"] * of.norm(dim=-1)[:, None] * head).all()
    assert ((norm2 - true_norm2).abs() <= TOLERANCES["ieee"] * head.square()).all()


@built
def test_what_is_not_finite_stays_where_it_is(lanes: int) -> None:
    arguments = projection_arguments(SHAPES[1], torch.float32)
    arguments["z"][0, 5, 1, 3] = float("inf")
    arguments["of"][1, 1, 7, 2] = float("nan")
    got, true = fused.projection(**arguments), reference.projection(**arguments)
    for ours, theirs in zip(got, true, strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())
    assert got[1][1, 0, 5].isinf()


@built
def test_it_computes_what_it_takes_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    run = fused._run
    monkeypatch.setattr(fused, "_run", lambda *given: asked.append(1) or run(*given))  # type: ignore[func-returns-value]
    arguments = projection_arguments(SHAPES[1], torch.float32)
    with fused.torch_alone():
        alone = tiled.projection(**arguments)
    assert asked == []
    tiled.projection(**wide(arguments))
    tiled.projection(**{name: tensor.bfloat16() for name, tensor in arguments.items()})
    assert asked == []
    negative = arguments | {"z": torch._neg_view(arguments["z"])}
    agree(tiled.projection(**negative), (-alone[0].double(), alone[1].double()), "ieee")
    assert asked == []
    agree(tiled.projection(**arguments), tuple(x.double() for x in alone), "ieee")
    assert asked == [1]


@built
def test_scratch_is_float32_on_the_cpu_whatever_the_defaults_are() -> None:
    assert BUILT is not None
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            scratch = fused._scratch(BUILT, fused._Call(d_head=5, d_model=71, together=3, lanes=4))
    finally:
        torch.set_default_dtype(before)
    assert (scratch.dtype, scratch.device.type) == (torch.float32, "cpu")
    assert len(scratch) == 12 * (5 + 3 * 72)


@built
def test_threads_that_are_left_behind_keep_what_they_read_and_write(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[Any] = []
    monkeypatch.setattr(fused, "each", lambda tiles, start: left.append(tiles[-1]))
    arguments = projection_arguments(SHAPES[1], torch.float32)
    num, norm2 = fused.projection(**arguments)
    kept = [weakref.ref(tensor) for tensor in (arguments["z"], arguments["of"], num, norm2)]
    del arguments, num, norm2
    assert all(tensor() is not None for tensor in kept)
    left.clear()
    assert all(tensor() is None for tensor in kept)


@built
def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(ctypes.Structure):
        _fields_ = (*fused._Call._fields_, ("more", ctypes.c_int64))

    monkeypatch.setattr(fused, "_Call", Longer)
    with pytest.raises(KernelError, match="built from another version"):
        fused.library.__wrapped__()


def _compiles() -> bool:
    """Whether there is a C compiler, with its headers."""
    command = ["cc", "-x", "c", "-fsyntax-only", "-"]
    return shutil.which("cc") is not None and not subprocess.run(command, input=b"#include <stdint.h>\n").returncode


@pytest.mark.parametrize("compiler", ["false", "cc"])
def test_the_package_is_built_with_a_compiler_or_without(tmp_path: Path, compiler: str) -> None:
    if compiler == "cc" and not _compiles():
        pytest.skip("no C compiler here")
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        str(tmp_path),
        "--build-temp",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"CC": compiler}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Where `library` looks for it: beside fused.py.
    assert bool(list(tmp_path.glob("repro/kernels/_projection*.so"))) == (compiler == "cc"), done.stderr
