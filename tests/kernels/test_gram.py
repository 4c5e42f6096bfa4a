"""Gram matrices of all nodes: every provider against float64 and projections, and what inner products must obey."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from repro.kernels import gram as triton_gram
from repro.kernels import reference, tiled
from repro.kernels.bench.memory import peak_memory
from repro.kernels.bench.tolerances import error_ratio
from repro.kernels.errors import KernelError, ShapeError, UnsupportedError
from repro.model.folder import read_folder
from repro.model.forward import trace
from repro.model.load import load
from tests.kernel_helpers import (
    PRECISION,
    PROVIDERS,
    SHAPES,
    Shape,
    agree,
    apart,
    as_accurate,
    kernels,
    poisoned,
    randn,
    wide,
)

# More nodes than one block holds, none a multiple of one.
MANY = Shape(P=19, H=66, K=16, D=40, S=5)
Arguments = dict[str, Any]


def arguments_of(shape: Shape, dtype: torch.dtype) -> Arguments:
    """Arguments of `gram` whose nodes have entries of size 1: H heads and S vectors."""
    return {
        "z": randn(shape.B, shape.P, shape.H, shape.K, dtype=dtype),
        "W_O": (randn(shape.H, shape.K, shape.D) / shape.K**0.5).to(dtype),
        "vectors": randn(shape.S, shape.B, shape.P, shape.D, dtype=dtype),
    }


def strata_of(shape: Shape) -> Tensor:
    """The first position, every third of the rest (another third in every prompt), all of them, and none."""
    position, prompt = torch.arange(shape.P), torch.arange(shape.B)[:, None]
    first = (position == 0).expand(shape.B, -1)
    third = (position > 0) & ((position + prompt) % 3 == 0)
    return torch.stack([first, third, torch.ones_like(third), torch.zeros_like(third)])


@pytest.mark.parametrize("shape", [*SHAPES, MANY], ids=str)
@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_agrees_with_float64(name: str, dtype: torch.dtype, shape: Shape) -> None:
    arguments, strata = arguments_of(shape, dtype), strata_of(shape)
    with poisoned():
        full = kernels(name).gram(**arguments)
        sums = kernels(name).gram_sums(**arguments, strata=strata)
    true, true_sums = reference.gram(**wide(arguments)), reference.gram_sums(**wide(arguments), strata=strata)
    agree((full, sums), (true, true_sums), PRECISION[dtype])
    assert sums[-1].eq(0).all(), "a stratum without positions"
    if dtype == torch.float32:
        found = reference.gram(**arguments), reference.gram_sums(**arguments, strata=strata)
        as_accurate((full, sums), found, (true, true_sums))


@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_chunks_of_positions_join(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt is cut into several chunks, the last one shorter."""
    shape = Shape(B=2, P=53, H=5, K=16, D=48, S=2)
    arguments, strata = arguments_of(shape, dtype), strata_of(shape)
    monkeypatch.setattr(triton_gram, "SCRATCH_BYTES", 1)
    monkeypatch.setattr(tiled, "TILE_BYTES", 7 * 7 * 48 * 4)
    with poisoned():
        got = kernels(name).gram(**arguments), kernels(name).gram_sums(**arguments, strata=strata)
    true = reference.gram(**wide(arguments)), reference.gram_sums(**wide(arguments), strata=strata)
    agree(got, true, PRECISION[dtype])


@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_blocks_are_projections(name: str, dtype: torch.dtype) -> None:
    """An oracle of its own: vectors on heads, heads' norms and vectors on vectors, as the projections define them."""
    shape = SHAPES[1]
    arguments, H = arguments_of(shape, dtype), shape.H
    G = kernels(name).gram(**arguments)
    exact = wide(arguments)
    num, norm2 = reference.projection(exact["z"], exact["W_O"], exact["vectors"])
    onto, _ = reference.projection_onto_vectors(exact["vectors"], exact["vectors"])
    diagonal = torch.stack([G[h, h] for h in range(H)])
    agree((G[H:, :H], diagonal, G[H:, H:]), (num, norm2, onto), PRECISION[dtype])


@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_a_flipped_head_changes_the_signs_of_its_products_alone(name: str, dtype: torch.dtype) -> None:
    """The control: the comparison that everything here rests on sees one head whose sign is wrong."""
    arguments, strata = arguments_of(SHAPES[1], dtype), strata_of(SHAPES[1])
    sign = torch.ones(SHAPES[1].H + SHAPES[1].S).double()
    sign[1] = -1
    flipped = arguments | {"z": arguments["z"].clone()}
    flipped["z"][:, :, 1] *= -1
    true = reference.gram(**wide(arguments)), reference.gram_sums(**wide(arguments), strata=strata)
    got = kernels(name).gram(**flipped), kernels(name).gram_sums(**flipped, strata=strata)
    turned = sign[:, None, None, None] * sign[:, None, None]
    agree(got, (true[0] * turned, true[1] * sign[:, None] * sign), PRECISION[dtype])
    for ours, right in zip(got, true, strict=True):
        with pytest.raises(AssertionError, match="is off by"):
            agree((ours,), (right,), PRECISION[dtype])


@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_equal_in_either_order_and_strata_add_up(name: str, dtype: torch.dtype) -> None:
    arguments, strata = arguments_of(SHAPES[3], dtype), strata_of(SHAPES[3])
    everywhere, first = strata[2], strata[0]
    G = kernels(name).gram(**arguments)
    sums = kernels(name).gram_sums(**arguments, strata=torch.stack([first, ~first, everywhere]))
    assert error_ratio(G, G.transpose(0, 1).double()) < 1e-7
    assert error_ratio(sums, sums.transpose(2, 3).double()) < 1e-7
    agree((sums[0] + sums[1], sums[2]), (sums[2].double(), G.sum(3).permute(2, 0, 1).double()), "tf32x3")


@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_what_lies_outside_every_stratum_is_not_read(name: str, dtype: torch.dtype) -> None:
    shape = SHAPES[1]
    arguments, strata = arguments_of(shape, dtype), strata_of(shape)[:2]
    outside = ~strata.any(0)
    assert outside.any()
    before = kernels(name).gram_sums(**arguments, strata=strata)
    arguments["z"][outside] = torch.nan
    arguments["vectors"][:, outside] = torch.inf
    assert torch.equal(kernels(name).gram_sums(**arguments, strata=strata), before)
    agree((before,), (reference.gram_sums(**wide(arguments), strata=strata),), PRECISION[dtype])
    arguments["z"][0, 0] = torch.nan
    assert kernels(name).gram_sums(**arguments, strata=strata)[0, 0].isnan().any(), "what lies inside is"


@pytest.mark.parametrize(("name", "dtype"), PROVIDERS)
def test_strides_do_not_matter(name: str, dtype: torch.dtype) -> None:
    arguments, strata = arguments_of(SHAPES[1], dtype), strata_of(SHAPES[1])
    turned = {key: tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for key, tensor in arguments.items()}
    true = kernels(name).gram(**arguments), kernels(name).gram_sums(**arguments, strata=strata)
    for other in ({key: apart(tensor) for key, tensor in arguments.items()}, turned):
        got = kernels(name).gram(**other), kernels(name).gram_sums(**other, strata=strata.mT.contiguous().mT)
        agree(got, tuple(tensor.double() for tensor in true), "ieee")


@pytest.mark.parametrize("kind", ["native", "llama"])
def test_sites_are_sums_of_nodes(folders: dict[str, Path], kind: str) -> None:
    """In a model's own pass: what was written before a site, added up, projects as the site itself does."""
    model = load(read_folder(folders[kind]))
    seen = trace(model, torch.arange(24).view(2, 12) % 7 + 1)
    W_O = torch.cat([block.W_O for block in model.blocks])
    biases = torch.stack([block.b_O for block in model.blocks])[:, None, None].expand(-1, *seen.final.shape)
    G = kernels("torch").gram(seen.z, W_O, torch.cat([seen.sites[:1], torch.stack(seen.mlp_out), biases]))
    H, L = model.shape.n_heads, model.shape.n_layers
    for site, layers, mlps in ((0, 0, 0), (1, 1, 0), (2, 1, 1), (2 * L, L, L)):
        first = len(W_O) + 1
        written = [*range(layers * H), len(W_O), *range(first, first + mlps), *range(first + L, first + L + layers)]
        num, _ = reference.projection(seen.z.double(), W_O.double(), seen.sites[site : site + 1].double())
        assert error_ratio(G[written, : len(W_O)].sum(0), num[0]) < 1e-5
        assert error_ratio(G[written[1:], : len(W_O)].sum(0), num[0]) > 1e-3 or not layers, "a node is left out"


def test_sums_take_memory_that_does_not_grow_with_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "TILE_BYTES", 1 << 16)
    taken, full = [], 0
    for positions in (256, 1024):
        shape = Shape(P=positions, H=20, K=16, D=32, S=4)
        arguments, strata = arguments_of(shape, torch.float32), strata_of(shape)[:2]
        taken.append(peak_memory(partial(kernels("torch").gram_sums, **arguments, strata=strata), "cpu").bytes)
        full = 4 * 24 * 24 * positions
    assert abs(taken[1] - taken[0]) <= 8 * 1024, "the list of a stratum's positions alone"
    assert taken[1] < full / 10


@pytest.mark.parametrize("name", ["reference", "torch", pytest.param("triton", marks=pytest.mark.kernels)])
def test_what_does_not_fit_is_refused_by_name(name: str) -> None:
    arguments, strata = arguments_of(SHAPES[1], torch.float32), strata_of(SHAPES[1])
    with pytest.raises(ShapeError, match=r"gram: vectors\[M, B, P, D\] is \[2, 2, 63, 95\], but W_O\[H, K, D\]"):
        kernels(name).gram(**arguments | {"vectors": arguments["vectors"][..., 1:]})
    with pytest.raises(ShapeError, match=r"gram_sums: strata\[S, B, P\] is \[4, 2, 62\], but z\[B, P, H, K\]"):
        kernels(name).gram_sums(**arguments, strata=strata[..., 1:])
    with pytest.raises(KernelError, match=r"strata must be a mask of torch.bool, not torch.int64"):
        kernels(name).gram_sums(**arguments, strata=strata.long())


@pytest.mark.kernels
def test_declared_precision_reaches_the_kernel() -> None:
    arguments, strata = arguments_of(SHAPES[0], torch.float32), strata_of(SHAPES[0])
    split = kernels("triton", "tf32x3")
    agree((split.gram(**arguments),), (reference.gram(**wide(arguments)),), "tf32x3")
    true = reference.gram_sums(**wide(arguments), strata=strata)
    agree((split.gram_sums(**arguments, strata=strata),), (true,), "tf32x3")
    for call in (kernels("triton", "bf16").gram, lambda **a: kernels("triton", "bf16").gram_sums(**a, strata=strata)):
        with pytest.raises(UnsupportedError, match="no precision 'bf16'"):
            call(**arguments)
    with pytest.raises(UnsupportedError, match="share a dtype"):
        kernels("triton").gram(**arguments | {"vectors": arguments["vectors"].half()})
