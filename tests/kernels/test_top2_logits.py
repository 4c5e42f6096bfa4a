"""Top 2 of the logits: every provider against float64, ties, biases, layouts of W_U and chosen tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.kernels import reference, tiled, top2_logits
from repro.kernels.errors import KernelError, ShapeError
from repro.kernels.layout import aligned
from tests.kernel_helpers import PRECISION, PROVIDERS, agree, apart, as_accurate, kernels, poisoned, randn, wide

# Rows, d_model, vocabulary, choices. The last spans two shares of the vocabulary on Triton.
SIZES = ((1, 64, 2, 1), (63, 96, 100, 2), (100, 72, 777, 3), (3, 64, 5003, 1))


def arguments_of(size: tuple[int, int, int, int], dtype: torch.dtype) -> dict[str, Any]:
    """Arguments whose logits have size 1, with the same tokens chosen every time."""
    T, D, V, C = size
    return {
        "resid": randn(T, D, dtype=dtype),
        "W_U": (randn(D, V) / D**0.5).to(dtype),
        "b_U": randn(V, dtype=dtype),
        "chosen": torch.arange(T * C).view(T, C) * 7919 % V,
    }


def whole_numbers(T: int, D: int, V: int, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments whose logits are small whole numbers, exact in every dtype: nearly every row has ties."""
    return {
        "resid": randn(T, D).round().clamp(-2, 2).to(dtype),
        "W_U": randn(D, V).round().clamp(-1, 1).to(dtype),
        "b_U": randn(V).round().to(dtype),
    }


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_agrees_with_float64(name: str, dtype: torch.dtype, size: tuple[int, int, int, int]) -> None:
    arguments = arguments_of(size, dtype)
    with poisoned():
        values, ids, chosen = kernels(name).top2_logits(**arguments)
    true = reference.top2_logits(**wide(arguments))
    agree((values, chosen), (true[0], true[2]), PRECISION[dtype])
    assert ids.dtype == torch.int64
    assert torch.equal(ids, true[1])
    if dtype == torch.float32:
        single = reference.top2_logits(**arguments)
        as_accurate((values, chosen), (single[0], single[2]), (true[0], true[2]))


@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_agrees_over_a_whole_context(name: str, dtype: torch.dtype) -> None:
    arguments = arguments_of((1024, 64, 300, 1), dtype)
    with poisoned():
        values, ids, chosen = kernels(name).top2_logits(**arguments)
    true = reference.top2_logits(**wide(arguments))
    agree((values, chosen), (true[0], true[2]), PRECISION[dtype])
    assert torch.equal(ids, true[1])


@pytest.mark.parametrize("name", ["reference", "torch", pytest.param("triton", marks=pytest.mark.kernels)])
@pytest.mark.parametrize("bias", [True, False])
def test_of_equal_logits_the_lower_id(name: str, bias: bool) -> None:
    """Against Python's own sort, by descending logit and then by id."""
    arguments = whole_numbers(40, 16, 5000, torch.float32)
    b_U = arguments["b_U"] if bias else None
    logits = (arguments["resid"] @ arguments["W_U"] + (0 if b_U is None else b_U)).tolist()
    best = [sorted(range(5000), key=lambda token, row=row: (-row[token], token))[:2] for row in logits]  # type: ignore[misc]
    assert any(row[first] == row[second] for row, (first, second) in zip(logits, best, strict=True)), "no tie to decide"
    values, ids, _ = kernels(name).top2_logits(arguments["resid"], arguments["W_U"], b_U, None)
    assert ids.tolist() == best
    assert values.tolist() == [[row[token] for token in pair] for row, pair in zip(logits, best, strict=True)]


@pytest.mark.parametrize("name", ["torch", pytest.param("triton", marks=pytest.mark.kernels)])
def test_all_logits_equal(name: str) -> None:
    values, ids, chosen = kernels(name).top2_logits(torch.zeros(3, 16), torch.ones(16, 3000), None, None)
    assert values.eq(0).all()
    assert ids.tolist() == [[0, 1]] * 3
    assert chosen is None


@pytest.mark.parametrize(("first", "second"), [(0, 4999), (4999, 0), (2048, 2047), (31, 4000)])
@pytest.mark.parametrize("name", ["torch", pytest.param("triton", marks=pytest.mark.kernels)])
def test_finds_the_best_wherever_they_are(name: str, first: int, second: int) -> None:
    W_U = torch.zeros(16, 5000)
    W_U[0, first], W_U[0, second] = 3.0, 2.0
    with poisoned():
        values, ids, _ = kernels(name).top2_logits(torch.ones(2, 16), W_U, None, None)
    assert ids.tolist() == [[first, second]] * 2
    assert values.tolist() == [[3.0, 2.0]] * 2


@pytest.mark.parametrize("name", ["torch", pytest.param("triton", marks=pytest.mark.kernels)])
def test_masked_and_negative_logits(name: str) -> None:
    """Logits far below zero, and tokens that a bias of minus infinity forbids."""
    bias = torch.full((300,), -torch.inf)
    bias[[17, 250]] = torch.tensor([-1e30, -2e30])
    values, ids, _ = kernels(name).top2_logits(torch.ones(2, 16), torch.zeros(16, 300), bias, None)
    assert ids.tolist() == [[17, 250]] * 2
    assert values.tolist() == bias[[17, 250]].expand(2, 2).tolist()


@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_layouts_of_the_unembedding_do_not_matter(name: str, dtype: torch.dtype) -> None:
    arguments = arguments_of(SIZES[2], dtype)
    W_U = arguments["W_U"]
    true = kernels(name).top2_logits(**arguments)
    padded = W_U.new_full((72, 784), float("nan"))[:, :777].copy_(W_U)
    for layout in (W_U.T.contiguous().T, apart(W_U), padded, torch.stack([W_U, W_U], -1)[..., 0]):
        got = kernels(name).top2_logits(**{**arguments, "W_U": layout, "resid": apart(arguments["resid"])})
        agree((got[0], got[2]), (true[0].double(), true[2].double()), "ieee")
        assert torch.equal(got[1], true[1])


@pytest.mark.parametrize("name", ["reference", "torch", pytest.param("triton", marks=pytest.mark.kernels)])
@pytest.mark.parametrize("vocabulary", [2, 77, 5000])
def test_a_row_that_is_not_a_number_has_nan_as_value_and_tokens_as_ids(name: str, vocabulary: int) -> None:
    """Whole rows of NaN, one logit alone, infinities of either sign: ids are tokens, other rows as if alone."""
    arguments = whole_numbers(6, 16, vocabulary, torch.float32)
    clean = kernels(name).top2_logits(**arguments, chosen=None)
    resid, bias = arguments["resid"].clone(), arguments["b_U"].clone()
    resid[1] = torch.nan
    resid[2, 3] = -torch.nan
    with poisoned():
        values, ids, _ = kernels(name).top2_logits(resid, arguments["W_U"], bias, None)
    assert values[1:3].isnan().all()
    assert ids[1:3].tolist() == [[0, 1]] * 2
    for got, right in ((values, clean[0]), (ids, clean[1])):
        assert torch.equal(got[[0, 3, 4, 5]], right[[0, 3, 4, 5]])
    bias[1] = torch.nan
    values, ids, _ = kernels(name).top2_logits(arguments["resid"], arguments["W_U"], bias, None)
    assert ids[:, 0].eq(1).all()
    assert values[:, 0].isnan().all()
    assert ids[:, 1].ne(1).all()
    assert values[:, 1].isfinite().all()
    bias.fill_(-torch.inf)
    _, ids, _ = kernels(name).top2_logits(arguments["resid"], arguments["W_U"], bias, None)
    assert ids.ge(0).all()
    assert ids.lt(vocabulary).all()


@pytest.mark.kernels
def test_shares_may_be_cut_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits, however many processors the vocabulary is spread over."""
    arguments = whole_numbers(40, 16, 5000, torch.float32)
    found = []
    for processors in (1, 7, 132):
        monkeypatch.setattr(top2_logits, "processors", lambda device, n=processors: n)
        found.append(kernels("triton").top2_logits(**arguments, chosen=None))
    assert all(torch.equal(one[0], found[0][0]) and torch.equal(one[1], found[0][1]) for one in found)


@pytest.mark.kernels
def test_aligned_copies_only_what_is_not_aligned() -> None:
    odd = randn(8, 777)
    once = aligned(odd)
    assert torch.equal(once, odd)
    assert once.stride() == (784, 1)
    assert aligned(once) is once
    assert aligned(randn(777, 16).T).stride() == (1, 16)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(2, 90), st.integers(1, 3), st.integers(1, 2000))
def test_tiles_of_any_shape_are_the_reference(T: int, D: int, V: int, C: int, tile: int) -> None:
    arguments = {**whole_numbers(T, D, V, torch.float64), "chosen": torch.arange(T * C).view(T, C) % V}
    true = reference.top2_logits(**arguments)
    with pytest.MonkeyPatch.context() as patch, poisoned():
        patch.setattr(tiled, "TILE_BYTES", tile)
        got = tiled.top2_logits(**arguments)
    agree((got[0], got[2]), (true[0], true[2]), "ieee")
    assert torch.equal(got[1], true[1])


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_a_very_large_vocabulary(name: str) -> None:
    W_U = torch.zeros(2, 260_000)
    W_U[0, [259_999, 131_072]] = torch.tensor([2.0, 1.0])
    _, ids, _ = kernels(name).top2_logits(torch.ones(1, 2), W_U, None, None)
    assert ids.tolist() == [[259_999, 131_072]]


@pytest.mark.parametrize("corrupted", ["resid", "W_U", "b_U"])
@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_a_corrupted_call_is_noticed(name: str, dtype: torch.dtype, corrupted: str) -> None:
    """Negative control: one flipped sign, in one row of one argument, fails the comparison."""
    arguments = arguments_of(SIZES[1], dtype)
    true = reference.top2_logits(**wide(arguments))
    spoilt = arguments[corrupted].clone()
    # The token with the greatest bias is sure to be among somebody's first two.
    row = int(spoilt.argmax()) if corrupted == "b_U" else 5
    spoilt.view(-1, spoilt.shape[-1] if corrupted != "b_U" else 1)[row] *= -1
    with pytest.raises(AssertionError):
        agree(kernels(name).top2_logits(**{**arguments, corrupted: spoilt})[:1], true[:1], PRECISION[dtype])


@pytest.mark.parametrize("name", ["reference", "torch", pytest.param("triton", marks=pytest.mark.kernels)])
def test_what_cannot_be_is_refused(name: str) -> None:
    arguments = arguments_of((3, 64, 10, 1), torch.float32)
    top2 = kernels(name).top2_logits
    with pytest.raises(ShapeError, match=r"W_U\[D, V\] is \[32, 10\], but resid\[T, D\] is \[3, 64\]"):
        top2(**{**arguments, "W_U": arguments["W_U"][:32]})
    with pytest.raises(ShapeError, match="two logits need V of at least 2"):
        top2(arguments["resid"], arguments["W_U"][:, :1], None, None)
    with pytest.raises(KernelError, match="outside 0 to 9"):
        top2(**{**arguments, "chosen": arguments["chosen"] + 10})
    with pytest.raises(KernelError, match=r"int32 or int64 token ids, not torch\.float32"):
        top2(**{**arguments, "chosen": arguments["chosen"].float()})
