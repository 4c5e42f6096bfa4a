"""Confirmation against forwards by hand: the patch of a head is exact algebra, an ablation is another model."""

from __future__ import annotations

import pytest
import torch

from repro.labels import head_index, is_head, layer_of
from repro.model.decoder import Model
from repro.model.forward import Trace, trace
from repro.model.paths import make_decoys, path_dots, sampled, written
from repro.scan.confirm import confirm, output_of
from repro.scan.confirmation import Confirmation
from tests.scenes import changed_block, model, prompts

KINDS = ("native", "llama", "pythia")
AFTER = ("gemma2", "gemma3", "olmo2")
"""Kinds in which a norm after attention is held: without a head the model has another one, and patches are as exact."""
TOKENS = torch.from_numpy(prompts(2, 24, seed=4)).long()
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
            h = output_of(given, run, TOKENS, writer)
            after = output_of(without, trace(without, TOKENS), TOKENS, component)
            assert told.zero == pytest.approx(share(after, h), abs=1e-6)
            assert told.before == pytest.approx(share(output_of(given, run, TOKENS, component), h), abs=1e-9)


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
