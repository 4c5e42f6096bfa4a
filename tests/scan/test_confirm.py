"""Confirmation against forwards by hand: the patch of a head is exact algebra, an ablation is another model."""

from __future__ import annotations

import pytest
import torch

from repro.labels import head_index, is_head, layer_of
from repro.model.ablate import output_of
from repro.model.decoder import Model
from repro.model.forward import Trace, trace
from repro.model.paths import make_decoys, path_dots, sampled, written
from repro.scan.confirm import confirm, mean_of_others
from repro.scan.confirmation import Confirmation
from tests.scenes import changed_block, model, prompts

KINDS = ("native", "llama", "pythia")
AFTER = ("gemma2", "gemma3", "olmo2")
"""Kinds in which a norm after attention is held: without a head the model has another one, and patches are as exact."""
TOKENS = torch.from_numpy(prompts(2, 24, seed=4)).long()
ALL = slice(None)
PAIRS = [("L0H1", "L1H0"), ("L0H1", "L2H3"), ("L0H1", "MLP1"), ("L0H1", "MLP2"), ("L1H2", "MLP2"), ("MLP0", "L1H1")]


@pytest.fixture(scope="module", params=KINDS)
def given(request: pytest.FixtureRequest) -> Model:
    return model(str(request.param))


def share(out: torch.Tensor, h: torch.Tensor) -> float:
    return float((out * h)[:, 1:].sum() / h[:, 1:].square().sum())


def path_share(given: Model, run: Trace, writer: str, component: str) -> float:
    """The path share of both prompts together, all positions from 1 on."""
    positions, total, norm = sampled(TOKENS.shape[1], 1), 0.0, 0.0
    for row in range(len(TOKENS)):
        nodes = written(given, run, TOKENS, row, positions)
        dots = path_dots(given, run, nodes, row, positions, make_decoys(given, 8, 0))
        w, c = nodes.labels.index(writer), nodes.labels.index(component)
        total, norm = total + float(dots.path[1, w, c]), norm + float(dots.norm2[1, w, c])
    return total / norm


@pytest.mark.parametrize("given", [*KINDS, *AFTER], indirect=True)
def test_the_patch_of_a_head_takes_its_path_out_and_nothing_else(given: Model) -> None:
    with torch.inference_mode():
        run = trace(given, TOKENS)
        for (writer, component), found in confirm(given, TOKENS, PAIRS).items():
            if is_head(component):
                expected = found.before - path_share(given, run, writer, component)
                assert found.patched == pytest.approx(expected, abs=1e-6)
                assert found.patched_rescaled != pytest.approx(expected, abs=1e-6)


def test_zero_ablation_is_a_model_without_the_writer(given: Model) -> None:
    with torch.inference_mode():
        run, found = trace(given, TOKENS), confirm(given, TOKENS, PAIRS)
        for (writer, component), told in found.items():
            layer = layer_of(writer)
            if is_head(writer):
                W_O = given.blocks[layer].W_O.clone()
                W_O[head_index(writer)[1]] = 0
                without = changed_block(given, layer, W_O=W_O)
            else:
                block = given.blocks[layer]
                without = changed_block(
                    given, layer, W_out=torch.zeros_like(block.W_out), b_out=torch.zeros_like(block.b_out)
                )
            h = output_of(given, run, TOKENS, ALL, writer)
            after = output_of(without, trace(without, TOKENS), TOKENS, ALL, component)
            assert told.zero == pytest.approx(share(after, h), abs=1e-6)
            assert told.before == pytest.approx(share(output_of(given, run, TOKENS, ALL, component), h), abs=1e-9)


def test_mean_ablation_leaves_nothing_of_the_prompt_itself(given: Model) -> None:
    """Of two prompts the mean of the other one is the other one; with its own activations half of it would stay."""
    with torch.inference_mode():
        for found in confirm(given, TOKENS, PAIRS).values():
            assert found.mean == pytest.approx(found.resampled, abs=1e-6)
    h = torch.arange(24.0).reshape(4, 3, 2).square()
    others = mean_of_others(h)
    assert torch.allclose(others[1], h[[0, 2, 3]].mean(0))
    changed = h.clone()
    changed[1] += 7
    assert torch.allclose(mean_of_others(changed)[1], others[1])
    assert not torch.allclose(mean_of_others(changed)[0], others[0])
    assert not torch.allclose(h.mean(0), others[1])  # the mean over all prompts


@pytest.mark.parametrize(
    ("patched", "zero", "outcome"),
    [
        (-0.1, -0.1, "kept"),
        (-0.35, -0.1, "weakened"),
        (-0.45, -0.1, "refuted"),
        (-0.1, -0.45, "refuted"),
        (-0.1, -0.6, "refuted"),
    ],
)
def test_a_claim_is_kept_only_if_both_interventions_move_it(patched: float, zero: float, outcome: str) -> None:
    assert Confirmation(-0.5, patched, patched, zero, zero, zero).outcome(-0.5) == outcome


def test_what_opposes_in_parallel_is_no_reason_to_refute() -> None:
    """Most of k is not this writer's doing: what was claimed is |p|, and it goes away."""
    found = Confirmation(-0.5, -0.4, -0.4, -0.41, -0.42, -0.43)
    assert found.outcome(-0.1) == "kept"
    assert found.remaining == pytest.approx(0.82)
