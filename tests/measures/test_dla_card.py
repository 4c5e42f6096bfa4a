"""The card: raw arrays against their parts, what is taken back from a planted eraser, and verdicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from repro.errors import ReproError
from repro.labels import writers
from repro.measures import DLACard
from repro.measures.card import VERDICTS, card, likely_erasers, verdict
from repro.measures.roles import Roles
from repro.model.ablate import output_of
from repro.model.forward import logits, trace
from repro.store.excluded import ValidPrompts
from tests.scenes import Scene, assert_close, changed_block, model, prompts, scene

MEASURE = DLACard(measure="dla_card", count=4, targets=5)


class Raw:
    """Raw arrays in memory, as a result of the store."""

    def __init__(self, experiment: DLACard, shown: Scene) -> None:
        self.layout, self.arrays = experiment.layout(shown.context), shown.compute(experiment)

    def read(self, variable: str, **isel: Any) -> np.ndarray:
        return self.arrays[variable]

    def iter_blocks(self, variable: str) -> Any:
        raise NotImplementedError


def reduced(experiment: DLACard, shown: Scene) -> xr.Dataset:
    raw = Raw(experiment, shown)
    return experiment.reduce(shown.context, ValidPrompts(raw, []), shown.prepared(experiment), str)


@pytest.fixture(scope="module", params=["native", "llama", "pythia", "gemma2", "gemma3"])
def given(request: pytest.FixtureRequest) -> Scene:
    """A toy with three prompts of eleven tokens."""
    return scene(request.param)


def test_arrays_are_as_declared_whatever_the_micro_batch(given: Scene) -> None:
    raw, single = given.compute(MEASURE), given.compute(MEASURE, micro_batch=1)
    layout = MEASURE.layout(given.context)
    for variable in layout.variables:
        assert raw[variable.name].shape == layout.shape(variable)
        np.testing.assert_allclose(single[variable.name], raw[variable.name], rtol=1e-9, atol=1e-9)


def test_dla_of_all_summands_and_net_effects_of_all_sources_are_the_logit_difference(given: Scene) -> None:
    raw, nodes = given.compute(MEASURE), MEASURE.layout(given.context).coords["node"]
    biases = torch.stack([block.b_O for block in given.model.blocks]).sum(0)
    embeddings = [i for i, label in enumerate(nodes) if "embed" in label]
    for form in (0, 1):
        assert_close(np.nansum(raw["net"][form, embeddings], 0) + raw["rest"][form], raw["logit_diff"])
    run = trace(given.model, torch.from_numpy(given.tokens).long())
    for place, position in enumerate(MEASURE.positions(given.context)):
        scores = run.final[:, position]
        for b in range(len(given.tokens)):
            pair = (
                torch.nn.functional.layer_norm(scores, scores.shape[1:], eps=given.model.eps)
                if given.model.center
                else torch.nn.functional.rms_norm(scores, scores.shape[1:], eps=given.model.eps)
            ) @ given.model.W_U + given.model.b_U
            top = pair[b].topk(2)
            assert_close(raw["logit_diff"][place, b], float(top.values[0] - top.values[1]))
            u = given.model.W_U[:, top.indices[0]] - given.model.W_U[:, top.indices[1]]
            u = u - u.mean() if given.model.center else u
            rest = float(biases @ u / run.scale_final[b, position]) + float(
                given.model.b_U[top.indices] @ torch.tensor([1.0, -1.0]).double()
            )
            assert_close(np.nansum(raw["dla"][:, place, b]) + rest, raw["logit_diff"][place, b])


def test_ablations_are_by_nothing_the_mean_and_another_prompt(given: Scene) -> None:
    """Where a writer does the same in every prompt, the last two change nothing; with one prompt they are not known."""
    same = replace(given, tokens=np.repeat(given.tokens[:1], 3, 0))
    total = same.compute(MEASURE)["total"]
    assert np.abs(total[0]).max() > 0.01
    assert_close(total[1:], np.zeros_like(total[1:]))
    alone = replace(given, tokens=given.tokens[:1]).compute(MEASURE)["total"]
    assert np.isfinite(alone[0]).all()
    assert np.isnan(alone[1:]).all()
    assert np.abs(given.compute(MEASURE)["total"][1:]).max() > 0.01


def test_the_writers_are_the_subjects_and_those_with_the_largest_dla(given: Scene) -> None:
    raw, layout = given.compute(MEASURE), MEASURE.layout(given.context)
    chosen = [layout.coords["node"][i] for i in raw["chosen"][:, 0]]
    size = dict(zip(layout.coords["node"], np.abs(raw["dla"]).mean((-2, -1)), strict=True))
    ranked = sorted(given.context.nodes, key=lambda label: -size[label])
    assert chosen == [given.roles.writer, *(label for label in ranked if label != given.roles.writer)][:5]
    named = DLACard(measure="dla_card", writers=("MLP1", "embed"), targets=5)
    assert reduced(named, given)["writer"].values.tolist() == ["MLP1", "embed"]
    assert named.needs == frozenset()
    for some, count in (("heads", 12), ("nodes", 15)):
        shown = DLACard(measure="dla_card", writers=some, targets=2)  # type: ignore[arg-type]
        if given.model.shape.n_layers == 3:
            assert len(shown.layout(given.context).coords["slot"]) == count


def test_a_writer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ReproError, match=r"no node 'L9H0'"):
        DLACard(measure="dla_card", writers=("L9H0",)).layout(scene("native").context)
    with pytest.raises(ReproError, match="each once"):
        DLACard(measure="dla_card", writers=("L0H0", "L0H0")).layout(scene("native").context)


def test_targets_are_spread_and_never_the_first_position() -> None:
    context = scene("native").context
    assert DLACard(measure="dla_card", targets=2).positions(context) == [3, 8]
    assert DLACard(measure="dla_card", targets=99).positions(context) == list(range(1, 11))
    assert DLACard(measure="dla_card", targets=99, tokens=4).positions(context) == [1, 2, 3]


# -------------------------------------------------------------------------------------------------- planted erasers


def planted(strength: float) -> Scene:
    """The native toy whose MLP1 takes back a share of L0H1, by pairs of units +u and -u: act(u) - act(-u) = u."""
    given = model("native")
    block, W_O = given.blocks[1], given.blocks[0].W_O[1]
    basis = torch.linalg.svd(W_O, full_matrices=False).Vh  # [K, D]
    scale = float(trace(given, torch.from_numpy(prompts(4, 24)).long()).sites[3].std(-1, unbiased=False).mean())
    read = torch.cat((block.W_in, basis.T * 1.0, -basis.T), 1)
    write = -strength * scale * torch.cat((basis, -basis))
    out = changed_block(
        given,
        1,
        W_in=read,
        b_in=torch.cat((block.b_in, block.b_in.new_zeros(2 * len(basis)))),
        W_out=torch.cat((block.W_out, write - write.mean(1, keepdim=True))),
    )
    return Scene(out, Roles("L0H1", ("MLP1",)), prompts(4, 24))


def test_what_a_planted_eraser_takes_back_is_found_and_grows_with_its_strength() -> None:
    measure = DLACard(measure="dla_card", writers=("L0H1", "L0H2"), targets=12)
    found = {}
    for strength in (0.0, 0.3, 0.8):
        raw = Raw(measure, planted(strength)).arrays
        nodes = writers(3, 4, True)
        d = card(raw, ["L0H1", "L0H2"], nodes, nodes[2:], {"L0H1": ("MLP1",)}, draws=50)
        found[strength] = float(d["taken_back"].sel(bound="estimate", writer="L0H1"))
    grown = (found[0.3] - found[0.0], found[0.8] - found[0.0])
    assert grown[0] == pytest.approx(0.3, abs=0.12)
    assert grown[1] == pytest.approx(0.8, abs=0.3)


def test_an_unerased_writer_with_indirect_effects_is_not_called_erased() -> None:
    """Embeddings of a random model act through everything; nothing takes them back along what they wrote."""
    shown = scene("native")
    measure = DLACard(measure="dla_card", writers=("embed", *shown.context.nodes[:8]), targets=10)
    raw = Raw(measure, shown).arrays
    nodes = writers(3, 4, True)
    labels = ["embed", *shown.context.nodes[:8]]
    d = card(raw, labels, nodes, shown.context.nodes, dict.fromkeys(labels, ()), draws=50)
    assert float(d["indirect"].sel(writer="embed", bound="lower")) > 1
    assert str(d["verdict"].sel(writer="embed").item()) == "mostly indirect"
    assert not {"partly taken back", "mostly taken back"} & set(d["verdict"].values)
    assert (d["taken_back"].sel(bound="estimate") == 0).all()
    assert set(d["erasers_from"].values) == {"roles"}


def test_shares_tell_erasers_only_where_all_three_are_low() -> None:
    path, clean = np.full((6, 2, 4), -0.01), np.full((6, 2, 4), -0.3)
    path[0, 0], path[1, 1] = -0.2, -0.2
    clean[1, 1] = 0.1
    path[2:, 1] = np.nan
    assert likely_erasers(path, clean).tolist() == [[True, False], *[[False, False]] * 5]
    # What a component takes of everybody is its habit.
    assert not likely_erasers(np.full((6, 1, 4), -0.2), np.full((6, 1, 4), -0.3)).any()


@pytest.mark.parametrize(
    ("taken", "credited", "indirect", "said"),
    [
        ((0.55, 0.6, 0.7), (0.2, 0.3, 0.4), (0.4, 0.5, 0.6), "mostly taken back"),
        ((0.45, 0.51, 0.56), (0.2, 0.3, 0.4), (0.4, 0.5, 0.6), "partly taken back"),
        ((0.0, 0.0, 0.0), (0.2, 0.3, 0.4), (0.1, 0.15, 0.25), "reliable"),
        ((0.0, 0.0, 0.0), (0.2, 0.3, 0.4), (0.1, 0.2, 0.3), "partly indirect"),
        ((0.0, 0.0, 0.0), (0.2, 0.3, 0.4), (0.9, 1.5, 2.0), "partly indirect"),
        ((0.0, 0.0, 0.0), (0.2, 0.3, 0.4), (1.1, 1.5, 2.0), "mostly indirect"),
        ((-0.1, 0.2, 0.5), (0.2, 0.3, 0.4), (0.4, 0.5, 0.6), "too small to say"),
        ((0.6, 0.7, 0.8), (0.01, 0.03, 0.05), (0.4, 0.5, 0.6), "too small to say"),
        ((np.nan, np.nan, np.nan), (0.2, 0.3, 0.4), (0.4, 0.5, 0.6), "too small to say"),
    ],
)
def test_verdicts_are_of_intervals(taken: Any, credited: Any, indirect: Any, said: str) -> None:
    assert said in VERDICTS
    assert verdict(taken, credited, indirect) == said


def test_the_mean_is_the_mean_of_what_was_written(given: Scene) -> None:
    ids = torch.from_numpy(given.tokens).long()
    with torch.inference_mode():
        run = trace(given.model, ids)
        for label, mean in given.prepared(MEASURE)["means"].items():
            whole = torch.stack([output_of(given.model, run, ids, row, label) for row in range(len(ids))])
            torch.testing.assert_close(mean, whole.mean(0), rtol=1e-9, atol=1e-9)


def test_mean_ablation_leaves_the_prompts_own_activations_out(given: Scene) -> None:
    """Against the mean of the other prompts written by hand, and the logit difference without what the node wrote."""
    ids, rows = torch.from_numpy(given.tokens).long(), range(len(given.tokens))
    last = f"MLP{given.model.shape.n_layers - 1}"
    measure = DLACard(measure="dla_card", writers=(last, "L0H1", "embed"), targets=5)
    prepared, total = given.prepared(measure), given.compute(measure)["total"]
    batch = given.batch(0, len(ids), measure.asks, "reference")
    with torch.inference_mode():
        run = trace(given.model, ids)
        for label in prepared["writers"]:
            wrote = torch.stack([output_of(given.model, run, ids, row, label) for row in rows])
            for row in rows:
                others = torch.stack([wrote[other] for other in rows if other != row])
                mean = measure._instead(prepared, batch, row)[label][1]
                assert mean is not None
                torch.testing.assert_close(mean, others.mean(0), rtol=1e-9, atol=1e-9)
                assert not torch.allclose(mean, wrote.mean(0), atol=1e-3)  # the negative control: its own is not there
        # Nothing reads the last MLP but the unembedding.
        wrote = torch.stack([output_of(given.model, run, ids, row, last) for row in rows])
        for row in rows:
            others = torch.stack([wrote[other] for other in rows if other != row]).mean(0)
            at = prepared["positions"]
            top = logits(given.model, run.final[row, at]).topk(2).indices
            left = logits(given.model, (run.final[row] - wrote[row] + others)[at]).gather(1, top)
            clean = logits(given.model, run.final[row, at]).gather(1, top)
            expected = (clean - left) @ torch.tensor([1.0, -1.0]).to(left)
            assert_close(total[1, 0, :, row], expected.numpy())
