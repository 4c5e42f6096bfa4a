"""The compiled loop: right on every kind of register that this processor has, optional, and never in the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.kernels import fused, reference, tiled
from tests.kernel_helpers import SHAPES, Shape, agree, as_accurate, poisoned, projection_arguments, wide

ROOT = Path(__file__).resolve().parents[2]
BUILT = fused.library()
built = pytest.mark.skipif(BUILT is None, reason="no C compiler was there when the package was installed")
LANES = [lanes for lanes in (4, 8, 16) if BUILT is not None and lanes <= BUILT.fused_lanes()]
# A head beside few components and the reverse, and strips and blocks that are not full on any processor.
ODD = (
    Shape(H=1, S=9, P=13, D=71),
    Shape(H=7, S=1, P=25, D=33),
    Shape(H=2, S=2, P=7, K=5, D=100),
    Shape(H=40, S=4, D=512),
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
@given(
    st.builds(
        Shape,
        B=st.integers(1, 3),
        P=st.integers(1, 140),
        H=st.integers(1, 9),
        K=st.integers(1, 40),
        D=st.integers(1, 150),
        S=st.integers(1, 11),
    )
)
def test_any_shape_is_the_reference(shape: Shape) -> None:
    arguments = projection_arguments(shape, torch.float32)
    with poisoned():
        agree(fused.projection(**arguments), reference.projection(**wide(arguments)), "ieee")


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
    with fused.without():
        alone = tiled.projection(**arguments)
    assert asked == []
    tiled.projection(**wide(arguments))
    tiled.projection(**{name: tensor.bfloat16() for name, tensor in arguments.items()})
    assert asked == []
    agree(tiled.projection(**arguments), tuple(x.double() for x in alone), "ieee")
    assert asked == [1]


@pytest.mark.parametrize("compiler", ["false", "cc"])
def test_the_package_is_built_with_a_compiler_or_without(tmp_path: Path, compiler: str) -> None:
    if compiler == "cc" and BUILT is None:
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
    done = subprocess.run(
        command, cwd=ROOT, env={"CC": compiler, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert bool(list(tmp_path.rglob("_projection*.so"))) == (compiler == "cc")
