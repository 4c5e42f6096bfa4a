"""Paths against their definition: formed as vectors they add up to what a component writes, and the dots are theirs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from repro.labels import step_of
from repro.model.ablate import output_of
from repro.model.attention import pattern_of
from repro.model.decoder import Model
from repro.model.forward import Trace, norm_scale, normed, trace
from repro.model.linear import ACTIVATIONS
from repro.model.paths import Decoys, Written, make_decoys, path_dots, sampled, strata, written
from tests.scenes import model, prompts

KINDS = ("native", "gpt2", "llama", "gemma2", "gemma3", "olmo2")
ROW, LENGTH = 1, 37
POSITIONS = sampled(LENGTH, 5)
TOKENS = torch.from_numpy(prompts(2, LENGTH, seed=3)).long()


@pytest.fixture(scope="module", params=KINDS)
def seen(request: pytest.FixtureRequest) -> tuple[Model, Trace, Written, Decoys]:
    """A toy of each kind in float64, a clean pass over two prompts, and what the second one's nodes wrote."""
    given = model(request.param)
    with torch.inference_mode():
        run = trace(given, TOKENS)
        return given, run, written(given, run, TOKENS, ROW, POSITIONS), make_decoys(given, 7, seed=0)


def output(given: Model, run: Trace, label: str) -> Tensor:
    """What a node wrote: [P, D]."""
    with torch.inference_mode():
        return output_of(given, run, TOKENS, ROW, label)


def summands(given: Model, run: Trace, nodes: Written) -> dict[str, Tensor]:
    """Everything that the stream is a sum of, at all positions [P, D], with the step at which it is written."""
    found = {label: output(given, run, label) for label in nodes.labels}
    return found | {f"b_O{layer}": block.b_O.expand(LENGTH, -1) for layer, block in enumerate(given.blocks)}


def when(label: str) -> int:
    """The step at which a summand is written: a bias together with its heads."""
    return 2 * int(label[3:]) + 1 if label.startswith("b_O") else step_of(label)


def centred(given: Model, v: Tensor) -> Tensor:
    return v - v.mean(-1, keepdim=True) if given.center else v


def scale_of(given: Model, x: Tensor) -> Tensor:
    """What a layer divides the stream by: [P, 1] of [P, D]."""
    return norm_scale(given, x)[:, None] if given.pre_norm else torch.ones(len(x), 1).double()


def after(given: Model, raw: Tensor, weights: Tensor | None) -> Tensor:
    """The scale of the norm that reads `raw` [P, D], its weights in it already: [P, 1]."""
    if weights is None:
        return torch.ones(len(raw), 1).double()
    return ((raw / weights).square().mean(-1, keepdim=True) + given.eps).sqrt()


def mix(given: Model, run: Trace, layer: int, head: int, read: Tensor) -> Tensor:
    """What a head's pattern and its OV circuit make of what it reads, before any norm after it: [P, D]."""
    block, group = given.blocks[layer], head * given.shape.n_kv_heads // given.shape.n_heads
    A = pattern_of(given, layer, run.attention[layer], ROW, torch.arange(LENGTH))[head]
    return A @ read @ block.W_V[group] @ block.W_O[head]


def head_path(given: Model, run: Trace, layer: int, head: int, v: Tensor) -> Tensor:
    """The definition, one vector per position: [P, D]."""
    stream, heads = run.sites[2 * layer, ROW], range(given.shape.n_heads)
    scale = scale_of(given, stream)
    # Only models without biases have a norm after attention.
    raw = sum((mix(given, run, layer, h, stream / scale) for h in heads), torch.zeros(()))
    made = mix(given, run, layer, head, centred(given, v) / scale)
    return made / after(given, raw, given.blocks[layer].attn_post)


def mlp_path(given: Model, run: Trace, layer: int, v: Tensor, bias: bool = False) -> Tensor:
    """The definition, with what the bias of W_in adds if asked for: [P, D]."""
    block, mid = given.blocks[layer], run.sites[2 * layer + 1, ROW]
    x, act = normed(given, mid) if given.pre_norm else mid, ACTIVATIONS[given.act]
    u = x @ block.W_in + block.b_in
    g = act(u) / u if block.W_gate is None or block.b_gate is None else act(x @ block.W_gate + block.b_gate)
    hidden = centred(given, v) / scale_of(given, mid) @ block.W_in
    made = (g * (hidden + block.b_in if bias else hidden)) @ block.W_out + bias * block.b_out
    return made / after(given, (g * u) @ block.W_out + block.b_out, block.mlp_post)


def test_the_paths_into_a_component_add_up_to_what_it_writes(seen: tuple[Model, Trace, Written, Decoys]) -> None:
    given, run, nodes, _ = seen
    every = summands(given, run, nodes)
    zero = torch.zeros_like(every["embed"])
    for layer in range(given.shape.n_layers):
        before = {label: v for label, v in every.items() if when(label) <= 2 * layer}
        for head in range(given.shape.n_heads):
            total = sum((head_path(given, run, layer, head, v) for v in before.values()), zero)
            torch.testing.assert_close(total, every[f"L{layer}H{head}"], rtol=1e-6, atol=1e-6)
            # Negative control: what one summand gives is missed.
            less = total - head_path(given, run, layer, head, before["embed"])
            assert not torch.allclose(less, every[f"L{layer}H{head}"], rtol=1e-3, atol=1e-3)
        before = {label: v for label, v in every.items() if when(label) <= 2 * layer + 1}
        total = sum((mlp_path(given, run, layer, v) for v in before.values()), mlp_path(given, run, layer, zero, True))
        torch.testing.assert_close(centred(given, total), every[f"MLP{layer}"], rtol=1e-6, atol=1e-6)


def test_the_dots_are_those_of_the_paths(seen: tuple[Model, Trace, Written, Decoys]) -> None:
    given, run, nodes, decoys = seen
    dots = path_dots(given, run, nodes, ROW, POSITIONS, decoys)
    N = len(nodes.labels)
    for c, component in enumerate(nodes.labels):
        if step_of(component) == 0:
            assert dots.path[:, :, c].isnan().all()
            continue
        layer = (step_of(component) - 1) // 2
        writers = [*range(N), *(N + r for r in range(decoys.count))]
        made = decoys.at(nodes)
        for w in writers:
            v = output(given, run, nodes.labels[w]) if w < N else made[w - N]
            reads = (w >= N) or step_of(nodes.labels[w]) < step_of(component)
            if not reads:
                assert dots.path[:, w, c].isnan().all()
                assert dots.clean[:, w, c].isnan().all()
                continue
            is_mlp = component.startswith("MLP")
            path = (
                mlp_path(given, run, layer, v)
                if is_mlp
                else head_path(given, run, layer, int(component.split("H")[1]), v)
            )
            torch.testing.assert_close(dots.path[:, w, c], strata((path * v).sum(-1)[POSITIONS]), rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(dots.norm2[:, w, c], strata(v.square().sum(-1)[POSITIONS]))
            own = strata((output(given, run, component) * v).sum(-1)[POSITIONS])
            torch.testing.assert_close(dots.clean[:, w, c], own, rtol=1e-6, atol=1e-6)


def test_decoys_have_the_norms_of_what_they_are_made_of(seen: tuple[Model, Trace, Written, Decoys]) -> None:
    given, run, nodes, decoys = seen
    assert len(decoys.heads) > 0
    assert len(decoys.vectors) > 0
    sources = torch.cat((nodes.heads[decoys.heads], nodes.others[decoys.vectors]))
    assert len(sources) == decoys.count
    assert not {"embed", "pos_embed"} & {nodes.labels[i] for i in sources}
    for v, index in zip(decoys.at(nodes), sources, strict=True):
        own = output(given, run, nodes.labels[int(index)])
        # LayerNorm reads nothing of the mean, in which a turned vector has one part in D.
        assert (v.square().sum(-1) <= own.square().sum(-1) * (1 + 1e-9)).all()
        assert float(v.square().sum() / own.square().sum()) > 0.7
        assert float((v * own).sum().abs() / own.square().sum()) < 0.7  # and points elsewhere


def test_decoys_are_the_same_for_the_same_seed_and_others_for_another(
    seen: tuple[Model, Trace, Written, Decoys],
) -> None:
    given, _, nodes, decoys = seen
    again, other = make_decoys(given, 7, seed=0), make_decoys(given, 7, seed=1)
    assert torch.equal(again.at(nodes), decoys.at(nodes))
    assert not torch.equal(other.at(nodes), decoys.at(nodes))


def test_a_dot_grows_with_the_square_of_the_writer(seen: tuple[Model, Trace, Written, Decoys]) -> None:
    given, run, nodes, decoys = seen
    double = replace(nodes, vectors=2 * nodes.vectors, z=2 * nodes.z, at=2 * nodes.at)
    one = path_dots(given, run, nodes, ROW, POSITIONS, decoys).path
    two = path_dots(given, run, double, ROW, POSITIONS, decoys).path
    torch.testing.assert_close(two, 4 * one, equal_nan=True)


def test_position_0_is_always_looked_at_and_only_once() -> None:
    assert sampled(10, 4).tolist() == [0, 1, 5, 9]
    assert sampled(1, 4).tolist() == [0]
