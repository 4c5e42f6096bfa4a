"""Products and activations of the forward pass, in float32 and rounded to bf16, against what they stand for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from repro.model.casting import rounded
from repro.model.decoder import Model
from repro.model.forward import logits, trace
from repro.model.linear import ACTIVATIONS, linear
from tests import oracle
from tests.scenes import KINDS, model, prompts, scene, single_precision

SHAPES = [(1, 8, 3), (5, 64, 96), (1024, 33, 7), (7, 512, 1536)]
BRAIN = torch.bfloat16


def operands(rows: int, inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, W and b, seeded."""
    generator = torch.Generator().manual_seed(rows + inputs)
    sizes = ((rows, inputs), (inputs, outputs), (outputs,))
    x, W, b = (torch.randn(size, generator=generator) for size in sizes)
    return x, W, b


def plainly(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor, act: str) -> torch.Tensor:
    """The definition in float64."""
    y = x.double() @ W.double() + b.double()
    return y if act == "none" else torch.from_numpy(oracle.activation(act, y.numpy()))


@pytest.mark.parametrize("act", ["none", *(name for name in ACTIVATIONS if name != "swish")])
@pytest.mark.parametrize("dtype", [torch.float32, BRAIN])
@pytest.mark.parametrize("size", SHAPES)
def test_products_are_their_definition(size: tuple[int, int, int], dtype: torch.dtype, act: str) -> None:
    x, W, b = (part.to(dtype) for part in operands(*size))
    true = plainly(x, W, b, act)
    allowed = (2e-6 if dtype is torch.float32 else 8e-3) * float(true.abs().max())
    y = linear(x, W, b, act)
    assert (y.shape, y.dtype) == (true.shape, dtype)
    assert float((y.double() - true).abs().max()) <= allowed
    # The control: one input column with the other sign is not within the tolerance.
    W[0] *= -1
    assert float((linear(x, W, b, act).double() - true).abs().max()) > allowed


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_what_is_not_a_number_stays_so(act: str) -> None:
    x, W, b = operands(7, 16, 8)
    x[3, 2] = torch.nan
    assert linear(x, W, b, act)[3].isnan().all()


def coarse(given: Model) -> Model:
    """A model with the values of `rounded` in float64: every weight on the grid of bf16, nothing else rounded."""

    def wide(x: Any) -> Any:
        return x.double() if isinstance(x, torch.Tensor) else x

    shown = rounded(single_precision(given))
    blocks = tuple(replace(block, **{k: wide(v) for k, v in vars(block).items()}) for block in shown.blocks)
    parts = {name: wide(getattr(shown, name)) for name in ("W_E", "W_pos", "W_U", "b_U")}
    return replace(given, **parts, blocks=blocks)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_rounds_weights_and_products_and_nothing_else(kind: str) -> None:
    given, tokens = rounded(single_precision(model(kind))), torch.from_numpy(prompts(3, 11))
    passed = trace(given, tokens)
    everything = (passed.sites, passed.scale_final, *passed.mlp_out, *(vars(passed.attention[0]).values()))
    assert {part.dtype for part in everything} == {torch.float32}
    for block, fine in zip(given.blocks, model(kind).blocks, strict=True):
        assert block.W_QKV.dtype == block.W_in.dtype == BRAIN
        for ours, theirs in ((block.W_O, fine.W_O), (block.W_V, fine.W_V)):
            assert torch.equal(ours, theirs.float().to(BRAIN).float())
    # Products are on the grid of bf16, their sums in the stream are not.
    if given.blocks[0].mlp_post is None:  # a norm after them is not rounded
        assert torch.equal(passed.mlp_out[0], passed.mlp_out[0].to(BRAIN).float())
    assert not torch.equal(passed.final, passed.final.to(BRAIN).float())
    # Close to the model whose weights alone are rounded, but not equal to it: activations are rounded too.
    true = trace(coarse(model(kind)), tokens).sites
    off = float((passed.sites - true).abs().max() / true.abs().max())
    assert 1e-5 < off < 5e-2
    logit = logits(coarse(model(kind)), true[-1])
    assert float((logits(given, passed.final) - logit).abs().max()) < 0.1 * float(logit.abs().max())


def test_writer_and_measures_of_bf16_read_the_weights_that_the_forward_used() -> None:
    shown = scene("native")
    given = rounded(single_precision(shown.model))
    passed = trace(given, torch.from_numpy(shown.tokens))
    heads = torch.einsum("bphk,hkd->bpd", passed.attention[0].z, given.blocks[0].W_O) + given.blocks[0].b_O
    step = passed.sites[1] - passed.sites[0]
    # One rounding of the product, at most half a unit in the last of eight bits.
    assert float((heads - step).abs().max()) <= 2.0**-8 * float(step.abs().max()) * 1.01
