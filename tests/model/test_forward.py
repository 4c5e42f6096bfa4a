"""The forward pass against a plain numpy one, and what must hold of any decoder's stream."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from repro.model.attention import capped
from repro.model.decoder import Rotary
from repro.model.forward import attend, embed, forward_from, logits, norm_scale, normed, read_scale, rotate, trace
from repro.model.linear import ACTIVATIONS
from tests import oracle
from tests.scenes import KINDS, assert_close, changed_block, is_close, scene

WITHOUT_BIAS = ("llama", "qwen3", "gemma2", "gemma3", "olmo2")


def traced(kind: str) -> tuple[torch.Tensor, ...]:
    """Sites, head outputs [L, H, B, P, D], MLP outputs and scales of the package's own pass."""
    shown = scene(kind)
    passed = trace(shown.model, torch.from_numpy(shown.tokens))
    heads = [
        torch.einsum("bphk,hkd->hbpd", seen.z, block.W_O)
        for seen, block in zip(passed.attention, shown.model.blocks, strict=True)
    ]
    inputs = [read_scale(shown.model, passed.sites[2 * layer]) for layer in range(len(passed.attention))]
    scales = torch.stack([*inputs, passed.scale_final])
    return passed.sites, torch.stack(heads), torch.stack(passed.mlp_out), scales


@pytest.mark.parametrize("kind", KINDS)
def test_everything_of_a_pass_equals_the_plain_one(kind: str) -> None:
    sites, heads, mlps, scales = traced(kind)
    clean = scene(kind).clean
    assert_close(sites, clean.sites)
    assert_close(heads, clean.heads)
    assert_close(mlps, clean.mlps)
    assert_close(scales, [*clean.scales, clean.scale_final])
    assert_close(logits(scene(kind).model, sites[-1]), clean.logits)


@pytest.mark.parametrize("kind", KINDS)
def test_queries_keys_and_values_equal_the_plain_ones(kind: str) -> None:
    shown = scene(kind)
    share = shown.model.shape.n_heads // shown.model.shape.n_kv_heads
    for layer, seen in enumerate(trace(shown.model, torch.from_numpy(shown.tokens)).attention):
        assert_close(seen.q.permute(2, 0, 1, 3), shown.clean.q[layer])
        assert_close(seen.k.permute(2, 0, 1, 3), shown.clean.k[layer][::share])
        assert_close(seen.v.permute(2, 0, 1, 3), shown.clean.v[layer][::share])


@pytest.mark.parametrize("kind", KINDS)
def test_a_site_is_exactly_the_sum_of_what_was_written_before(kind: str) -> None:
    sites, heads, mlps, _ = traced(kind)
    shown = scene(kind)
    for site, stream in enumerate(sites):
        parts = oracle.summands(shown.model, replace(shown.clean, heads=heads.numpy(), mlps=mlps.numpy()), site)
        assert_close(stream, sum(parts.values()))
        for name in parts:
            missing = sum(part for other, part in parts.items() if other != name)
            assert is_close(stream, missing) == (not parts[name].any()), name
    absent = {name for name, part in parts.items() if not part.any()}
    # Rotary models have no positional summand, and many of Llama's kind have no attention bias.
    assert ("positions" in absent) == (shown.model.W_pos is None)
    assert {name[:3] for name in absent} <= ({"pos", "b_O"} if kind in WITHOUT_BIAS else {"pos"})


@pytest.mark.parametrize("kind", KINDS)
def test_later_tokens_change_nothing_before_them(kind: str) -> None:
    shown = scene(kind)
    changed = shown.tokens.copy()
    changed[:, 7] = changed[:, 7] % 60 + 1
    before, after = (trace(shown.model, torch.from_numpy(tokens)).sites for tokens in (shown.tokens, changed))
    assert_close(after[:, :, :7], before[:, :, :7])
    assert (after[:, :, 7:] - before[:, :, 7:]).abs().amax((0, 1, 3)).min() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_tail_of_an_untouched_stream_is_the_clean_pass(kind: str) -> None:
    shown = scene(kind)
    sites = trace(shown.model, torch.from_numpy(shown.tokens)).sites
    for layer in range(shown.model.shape.n_layers):
        assert_close(forward_from(shown.model, layer, sites[2 * layer], sites[2 * layer + 1]), sites[2 * layer + 1 :])


@pytest.mark.parametrize("kind", KINDS)
def test_the_tail_of_a_changed_stream_runs_later_layers_anew(kind: str) -> None:
    shown = scene(kind)
    b_O = shown.model.blocks[0].b_O
    pushed = shown.with_model(changed_block(shown.model, 0, b_O=b_O + torch.linspace(-1, 1, len(b_O)).double()))
    ours = forward_from(shown.model, 0, *torch.from_numpy(pushed.clean.sites[:2]))
    assert_close(ours, pushed.clean.sites[1:])
    moved = shown.clean.sites[1:] + (pushed.clean.sites[1] - shown.clean.sites[1])
    assert np.abs(ours.numpy() - moved)[1:].max() > 1e-3  # patterns and scales of later layers are their own


@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_is_its_numerator_over_its_scale(kind: str) -> None:
    given, x = scene(kind).model, torch.from_numpy(scene(kind).clean.sites[-1])
    numerator = x - x.mean(-1, keepdim=True) if given.center else x
    assert_close(normed(given, x), numerator / norm_scale(given, x)[..., None])
    assert given.center == (kind not in ("rotary", *WITHOUT_BIAS))
    shifted = is_close(normed(given, x + 3), normed(given, x))
    assert shifted == given.center


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_their_definitions(name: str) -> None:
    x = np.linspace(-6, 6, 101)
    assert_close(ACTIVATIONS[name](torch.from_numpy(x)), oracle.activation(name, x), within=1e-12)


@pytest.mark.parametrize("kind", ["llama", "rotary"])
def test_rotary_tables_are_angles_that_fall_with_the_pair(kind: str) -> None:
    rotary = scene(kind).model.rotary
    assert rotary is not None
    pairs, base, rotated = {"llama": (4, 10000, 8), "rotary": (3, 100, 6)}[kind]
    angles = np.arange(64)[:, None] * base ** (-2 * np.arange(pairs) / rotated)
    assert_close(rotary.cos, np.cos(angles), within=1e-5)
    assert_close(rotary.sin, np.sin(angles), within=1e-5)
    assert rotary.adjacent == (kind == "rotary")


@pytest.mark.parametrize("adjacent", [True, False])
def test_rotated_scores_depend_on_distance_alone(adjacent: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    angles = torch.arange(20).double()[:, None] * torch.tensor([1.0, 0.3, 0.05]).double()
    rotary = Rotary(angles.cos(), angles.sin(), adjacent)
    q, k = (torch.randn(8, generator=generator).double().expand(1, 20, 1, 8) for _ in range(2))
    scores = (rotate(rotary, q)[0, :, 0] @ rotate(rotary, k)[0, :, 0].T).numpy()
    for distance in range(-19, 20):
        assert np.ptp(np.diagonal(scores, distance)) < 1e-9
    assert np.ptp(scores) > 1e-2
    assert_close(rotate(rotary, q).norm(dim=-1), q.norm(dim=-1))
    assert_close(rotate(rotary, q)[..., 6:], q[..., 6:], within=0)


def test_the_two_pairings_differ() -> None:
    rotary = scene("llama").model.rotary
    assert rotary is not None
    x = torch.randn(1, 9, 1, 8, generator=torch.Generator().manual_seed(0)).double()
    assert (rotate(rotary, x) - rotate(replace(rotary, adjacent=True), x)).abs().max() > 1e-2


def test_a_capped_model_has_gradients() -> None:
    """Through the caps of scores, as by finite differences; without a gradient the scores given are left alone, too."""
    given = scene("gemma2").model
    tokens = torch.from_numpy(scene("gemma2").tokens)
    W = given.blocks[0].W_QKV.clone().requires_grad_()
    along = torch.randn(W.shape, generator=torch.Generator().manual_seed(0)).double()

    def total(weights: torch.Tensor) -> torch.Tensor:
        changed = changed_block(given, 0, W_QKV=weights)
        return attend(changed, 0, embed(changed, tokens)).z[..., 0].sum()

    total(W).backward()
    assert W.grad is not None
    with torch.no_grad():
        slope = (total(W + 1e-6 * along) - total(W - 1e-6 * along)) / 2e-6
    assert float((W.grad * along).sum()) == pytest.approx(float(slope), rel=1e-4)
    scores = torch.linspace(-9, 9, 7).double()
    assert torch.equal(capped(given, scores), capped(given, scores.clone().requires_grad_()).detach())
    assert torch.equal(scores, torch.linspace(-9, 9, 7).double())
