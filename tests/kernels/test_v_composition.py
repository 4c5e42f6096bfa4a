"""V-composition: every provider against float64, and what an attention over past writers must obey."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.kernels import reference, tiled
from repro.kernels.errors import KernelError, ShapeError
from tests.kernel_helpers import (
    PRECISION,
    PROVIDERS,
    SHAPES,
    WHOLE_CONTEXT,
    Shape,
    agree,
    apart,
    as_accurate,
    composition_arguments,
    kernels,
    poisoned,
    wide,
)

# What a caller may ask for: both results or one, with few directions or many, LayerNorm or RMSNorm.
ASKED: dict[str, dict[str, Any]] = {
    "both": {"center": True},
    "sum": {"center": False, "onto": None},
    "dots": {"center": True, "total": False, "softmax_scale": 0.3},
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_agrees_with_float64(name: str, dtype: torch.dtype, shape: Shape, asked: str) -> None:
    arguments = composition_arguments(shape, dtype)
    with poisoned():
        got = kernels(name).v_composition(**{**arguments, **ASKED[asked]})
    true = reference.v_composition(**{**wide(arguments), **ASKED[asked]})
    agree(got, true, PRECISION[dtype])
    if dtype == torch.float32:
        as_accurate(got, reference.v_composition(**{**arguments, **ASKED[asked]}), true)


@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_agrees_over_a_whole_context(name: str, dtype: torch.dtype) -> None:
    arguments = composition_arguments(WHOLE_CONTEXT, dtype)
    with poisoned():
        got = kernels(name).v_composition(**arguments, center=True)
    agree(got, reference.v_composition(**wide(arguments), center=True), PRECISION[dtype])


def test_reference_equals_a_loop_over_positions() -> None:
    """An oracle written position by position, with no einsum: softmax of past scores, normed past writers."""
    arguments = composition_arguments(Shape(B=1, P=6, H=4, G=2, K=5, D=9, W=1, S=2), torch.float64)
    q, k, writer, scale, W_V, W_O, onto = arguments.values()
    total = torch.zeros(6, 9, dtype=torch.float64)
    dots = torch.zeros(4, 2, 6, dtype=torch.float64)
    for t in range(6):
        for h in range(4):
            weights = torch.softmax(torch.stack([q[0, t, h] @ k[0, i, h // 2] * 5**-0.5 for i in range(t + 1)]), 0)
            normed = [(writer[0, 0, i] - writer[0, 0, i].mean()) / scale[0, i] for i in range(t + 1)]
            vcomp = sum(weights[i] * (normed[i] @ W_V[h // 2] @ W_O[h]) for i in range(t + 1))
            total[t] += vcomp
            dots[h, :, t] = onto[:, 0, t] @ vcomp
    agree(reference.v_composition(**arguments, center=True), (dots[None, :, :, None], total[None, None]), "ieee")


@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_a_later_token_changes_nothing_earlier(name: str, dtype: torch.dtype) -> None:
    arguments = composition_arguments(SHAPES[1], dtype)
    before = kernels(name).v_composition(**arguments, center=True)
    later = {key: tensor.clone() for key, tensor in arguments.items()}
    for key in ("q", "k", "scale"):
        later[key][:, 40] += 1
    later["writer"][:, :, 40] *= 3
    after = kernels(name).v_composition(**later, center=True)
    assert torch.equal(before[0][..., :40], after[0][..., :40])
    assert torch.equal(before[1][:, :, :40], after[1][:, :, :40])
    assert not torch.equal(before[0][..., 40:], after[0][..., 40:]), "the change itself must be seen"


@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_a_writer_that_wrote_nothing_composes_to_nothing(name: str, dtype: torch.dtype) -> None:
    arguments = composition_arguments(SHAPES[1], dtype)
    arguments["writer"][1] = 0
    with poisoned():
        dots, total = kernels(name).v_composition(**arguments, center=True)
    assert dots[1].eq(0).all()
    assert total[1].eq(0).all()
    assert dots[0].ne(0).all()


@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_a_constant_vector_survives_only_without_centring(name: str, dtype: torch.dtype) -> None:
    arguments = composition_arguments(SHAPES[1], dtype)
    arguments["writer"] = torch.full_like(arguments["writer"], 2.0)
    centred = kernels(name).v_composition(**arguments, center=True)
    plain = kernels(name).v_composition(**arguments, center=False)
    assert centred[1].abs().max() < 1e-5 * plain[1].abs().max()


@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_linear_in_the_writer(name: str, dtype: torch.dtype) -> None:
    arguments = composition_arguments(SHAPES[1], dtype)
    a, b = (arguments["writer"][:2] * 8).round() / 8
    arguments["writer"] = torch.stack([a, b, a - b])
    dots, total = kernels(name).v_composition(**arguments, center=True)
    allowed = "tf32x3" if dtype == torch.float32 else PRECISION[dtype]
    agree((dots[2], total[2]), (dots[0].double() - dots[1].double(), total[0].double() - total[1].double()), allowed)


@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_grouped_heads_are_repeated_heads(name: str, dtype: torch.dtype) -> None:
    arguments = composition_arguments(SHAPES[1], dtype)
    grouped = kernels(name).v_composition(**arguments, center=True)
    arguments |= {"k": arguments["k"].repeat(1, 1, 3, 1), "W_V": arguments["W_V"].repeat(3, 1, 1)}
    repeated = kernels(name).v_composition(**arguments, center=True)
    agree(grouped, tuple(tensor.double() for tensor in repeated), "ieee")


@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_sum_over_heads_is_what_the_directions_read(name: str, dtype: torch.dtype) -> None:
    arguments = composition_arguments(SHAPES[1], dtype)
    dots, total = kernels(name).v_composition(**arguments, center=True)
    read = torch.einsum("wbtd,nbtd->wnbt", total.double(), arguments["onto"].double())
    allowed = "tf32x3" if dtype == torch.float32 else PRECISION[dtype]
    agree((dots.double().sum(1).float(),), (read,), allowed)


@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_strides_do_not_matter(name: str, dtype: torch.dtype) -> None:
    arguments = composition_arguments(SHAPES[1], dtype)
    moved = {key: apart(tensor) for key, tensor in arguments.items()}
    turned = {key: tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for key, tensor in arguments.items()}
    true = kernels(name).v_composition(**arguments, center=True)
    for other in (moved, turned):
        got = kernels(name).v_composition(**other, center=True)
        agree(got, tuple(tensor.double() for tensor in true), "ieee")


@settings(deadline=None)
@given(
    st.builds(
        Shape,
        B=st.integers(1, 2),
        P=st.integers(1, 140),
        H=st.sampled_from([2, 4, 6]),
        G=st.sampled_from([1, 2]),
        K=st.integers(1, 24),
        D=st.integers(1, 40),
        W=st.integers(1, 4),
        S=st.integers(1, 4),
    ),
    st.booleans(),
    st.booleans(),
)
def test_tiles_of_any_shape_are_the_reference(shape: Shape, center: bool, total: bool) -> None:
    arguments = composition_arguments(shape, torch.float64)
    with poisoned():
        got = tiled.v_composition(**arguments, center=center, total=total)
    agree(got, reference.v_composition(**arguments, center=center, total=total), "ieee")


def test_groups_that_exceed_a_tile_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = composition_arguments(SHAPES[2], torch.float32)
    monkeypatch.setattr(tiled, "TILE_BYTES", 1)
    with poisoned():
        got = tiled.v_composition(**arguments, center=True)
    agree(got, reference.v_composition(**wide(arguments), center=True), "ieee")


@pytest.mark.parametrize("corrupted", ["q", "k", "writer", "scale", "W_V", "W_O", "onto"])
@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_a_corrupted_call_is_noticed(name: str, dtype: torch.dtype, corrupted: str) -> None:
    """Negative control: one flipped sign, in one row of one argument, fails the comparison."""
    arguments = composition_arguments(Shape(P=12, H=2, G=1, K=32, D=64), dtype)
    true = reference.v_composition(**wide(arguments), center=True)
    spoilt = arguments[corrupted].clone()
    spoilt.view(-1, spoilt.shape[-1] if corrupted != "scale" else 1)[5] *= -1
    with pytest.raises(AssertionError):
        agree(kernels(name).v_composition(**{**arguments, corrupted: spoilt}, center=True), true, PRECISION[dtype])


@pytest.mark.parametrize("name", ["reference", "torch", pytest.param("triton", marks=pytest.mark.kernels)])
def test_what_cannot_be_is_refused(name: str) -> None:
    arguments = composition_arguments(Shape(P=4, H=3, G=1, K=32, D=64), torch.float32)
    two = {"k": arguments["k"].repeat(1, 1, 2, 1), "W_V": arguments["W_V"].repeat(2, 1, 1)}
    with pytest.raises(ShapeError, match="H = 3 is no multiple of G = 2"):
        kernels(name).v_composition(**{**arguments, **two}, center=True)
    with pytest.raises(ShapeError, match=r"scale\[B, P\] is \[1, 3\], but .*\[1, 4, 3, 32\]"):
        kernels(name).v_composition(**{**arguments, "scale": arguments["scale"][:, :3]}, center=True)
    with pytest.raises(KernelError, match="neither directions"):
        kernels(name).v_composition(**{**arguments, "onto": None}, center=True, total=False)
