"""Paths onto a direction against their definition, ablation against a forward by hand, both against the net effect."""

from __future__ import annotations

import pytest
import torch

from repro.labels import nodes, step_of
from repro.model.ablate import output_of, rerun, total_effects
from repro.model.attention import pattern_of
from repro.model.forward import normed, read_scale
from repro.model.path_dla import onto_paths
from repro.model.paths import gates
from tests.model.test_net_effect import LENGTH, ROW, TARGETS, Seen, centred, pass_with
from tests.scenes import KINDS, model, scaled_head


@pytest.fixture(scope="module", params=KINDS)
def seen(request: pytest.FixtureRequest) -> Seen:
    """A toy of each kind in float64."""
    return Seen(model(request.param))


def written(here: Seen, label: str) -> torch.Tensor:
    """What a node wrote in the second prompt: [P, D]."""
    with torch.inference_mode():
        return output_of(here.model, here.run, here.tokens, ROW, label)


def path(here: Seen, writer: str, component: str) -> torch.Tensor:
    """The definition, one vector per position: [P, D]."""
    given, run, h = here.model, here.run, centred(here.model, written(here, writer))
    layer = (step_of(component) - 1) // 2
    block, everywhere = given.blocks[layer], torch.arange(LENGTH)
    with torch.inference_mode():
        if component.startswith("MLP"):
            stream = run.sites[given.mlp_site(layer), ROW]
            inner = h / read_scale(given, stream)[:, None] @ block.W_in
            return (gates(given, layer, stream) * inner) @ block.W_out  # gates hold the scale of a norm after them
        head = int(component.split("H")[1])
        values = (
            h
            / read_scale(given, run.sites[2 * layer, ROW])[:, None]
            @ block.W_V[head * given.shape.n_kv_heads // given.shape.n_heads]
        )
        mix = pattern_of(given, layer, run.attention[layer], ROW, everywhere)[head] @ values
        return mix @ block.W_O[head] * run.attention[layer].gain[ROW, :, None]


def test_dla_of_paths_is_that_of_their_vectors(seen: Seen) -> None:
    labels = ["embed", "L0H0", "L0H1", "MLP0", "L1H0"]
    h = torch.stack([written(seen, label) for label in labels])
    steps = torch.tensor([step_of(label) for label in labels])
    with torch.inference_mode():
        found = onto_paths(seen.model, seen.run, ROW, TARGETS, h, steps, seen.direction[None])
        own = onto_paths(seen.model, seen.run, ROW, TARGETS, h, steps, h[:, TARGETS])
    shape = seen.model.shape
    for w, writer in enumerate(labels):
        for c, component in enumerate(nodes(shape.n_layers, shape.n_heads)):
            layer = (step_of(component) - 1) // 2
            read = seen.model.mlp_site(layer) if component.startswith("MLP") else 2 * layer
            if step_of(writer) > read:
                assert found[w, c].isnan().all()
                continue
            vectors = path(seen, writer, component)[TARGETS]
            torch.testing.assert_close(found[w, c], (vectors * seen.direction).sum(-1), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(own[w, c], (vectors * h[w, TARGETS]).sum(-1), rtol=1e-9, atol=1e-9)


def test_one_layer_up_the_net_effect_is_dla_and_the_first_paths(seen: Seen) -> None:
    """For heads of the last layer nothing but its MLP comes after: DLA + DLA(path through it) is the net effect.

    In parallel blocks not even that. Negative control: a head of the first layer has more than its first paths.
    """
    last = seen.model.shape.n_layers - 1
    with torch.inference_mode():
        effects = seen.effects("held").nodes
        for label, whole in ((f"L{last}H0", True), ("L0H0", False)):
            h = written(seen, label)
            paths = onto_paths(
                seen.model, seen.run, ROW, TARGETS, h[None], torch.tensor([step_of(label)]), seen.direction[None]
            )
            first = (h[TARGETS] * seen.direction).sum(-1) + paths.nan_to_num().sum((0, 1))
            net = effects[seen.labels.index(label)]
            assert torch.allclose(first, net, rtol=1e-9, atol=1e-9) is whole


def test_ablation_is_a_forward_in_which_the_node_is_silent(seen: Seen) -> None:
    given = seen.model
    for label in ("embed", "L0H1", "MLP0", "L1H0", seen.labels[-1]):
        h = written(seen, label)
        with torch.inference_mode():
            final = rerun(
                given,
                seen.run,
                label,
                -torch.stack([output_of(given, seen.run, seen.tokens, row, label) for row in (0, 1)]),
            )[ROW]

            def all_but(other: str, left_out: str = label) -> torch.Tensor:
                return torch.tensor(float(other != left_out))

            by_hand = pass_with(given, seen.tokens[ROW], "gradient", all_but)
            torch.testing.assert_close(normed(given, final), by_hand, rtol=1e-9, atol=1e-9)
            u = given.W_U.T[seen.pair[0]] - given.W_U.T[seen.pair[1]]
            b = given.b_U[seen.pair[0]] - given.b_U[seen.pair[1]]
            total = total_effects(given, seen.run, label, torch.stack((-h, torch.zeros_like(h))), ROW, TARGETS, u, b)
        expected = seen.difference + b - ((by_hand[TARGETS] * u).sum(-1) + b)
        torch.testing.assert_close(total[0], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(total[1], torch.zeros_like(total[1]), rtol=0, atol=1e-9)


def test_a_silenced_head_is_the_model_without_it() -> None:
    here = Seen(model("native"))
    without = Seen(scaled_head(here.model, "L0H2", 0))
    with torch.inference_mode():
        h = torch.stack([output_of(here.model, here.run, here.tokens, row, "L0H2") for row in (0, 1)])
        final = rerun(here.model, here.run, "L0H2", -h)
    torch.testing.assert_close(final, without.run.final, rtol=1e-9, atol=1e-9)
