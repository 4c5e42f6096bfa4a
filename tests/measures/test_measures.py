"""Projection ratios and the V-composition patch against an independent forward pass, and what must hold of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from repro.errors import ReproError
from repro.labels import head_index
from repro.measures import DLAScatter, Measure, MineExamples, Projection, VPatch
from repro.measures.batch import nan_at_zero
from repro.measures.projection import components
from tests import oracle
from tests.scenes import KINDS, NORMED_AFTER, Scene, assert_close, is_close, scaled_head, scene, single_precision

SITES_ON_NODES = Projection(measure="projection", of="sites", onto="nodes")
SITES = Projection(measure="projection", of="sites", onto="$writer")
NODES = Projection(measure="projection", of="nodes", onto="$writer")
PATCH = VPatch(measure="v_patch")
RECOMPUTED = VPatch(measure="v_patch", scale="recomputed")
SCATTER = DLAScatter(measure="dla_scatter")
NEXT_TOKEN = DLAScatter(measure="dla_scatter", target="next_token")
MINING = MineExamples(measure="mine_examples")
ALL = (SITES_ON_NODES, SITES, NODES, PATCH, RECOMPUTED, SCATTER, NEXT_TOKEN)


@cache
def computed(kind: str, experiment: Measure) -> dict[str, np.ndarray]:
    """An experiment's arrays on the standard scene."""
    return scene(kind).compute(experiment)


def patched_runs(shown: Scene, layer: int) -> dict[str, oracle.Run]:
    """The oracle's second pass with the writer taken out of the value input of a layer, for both norm scales."""
    return {
        scale: oracle.forward(shown.model, shown.tokens, oracle.Edit(layer, shown.writer, scale))
        for scale in ("frozen", "recomputed")
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("experiment", ALL, ids=lambda e: f"{e.measure}-{getattr(e, 'of', '')}")
def test_arrays_are_as_declared_and_defined_everywhere(kind: str, experiment: Measure) -> None:
    arrays, declared = computed(kind, experiment), experiment.layout(scene(kind).context)
    assert {name: array.shape for name, array in arrays.items()} == {
        variable.name: declared.shape(variable) for variable in declared.variables
    }
    undefined = {name: int(np.isnan(array).sum()) for name, array in arrays.items()}
    last = 3 if experiment is NEXT_TOKEN else 0  # the last position has no next token, in each of 3 prompts
    assert undefined == {name: last * (2 if name == "answer_dla" else 1) for name in arrays}


@pytest.mark.parametrize("kind", KINDS)
def test_every_site_on_every_node_equals_the_oracle(kind: str) -> None:
    shown = scene(kind)
    ours = computed(kind, SITES_ON_NODES)["pr"]
    for row, node in zip(ours, shown.context.nodes, strict=True):
        assert_close(row, oracle.ratio(shown.clean.sites, oracle.written(shown.clean, node)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_node_and_the_erasers_sum_on_the_writer_equal_the_oracle(kind: str) -> None:
    shown = scene(kind)
    labels = components(shown.context)
    assert shown.roles.writer not in labels
    assert len(labels) == len(shown.context.nodes)
    written = {label: oracle.written(shown.clean, label) for label in labels[:-1]}
    written["erasers"] = sum((written[label] for label in shown.roles.erasers), np.zeros(()))
    for row, label in zip(computed(kind, NODES)["pr"], labels, strict=True):
        assert_close(row, oracle.ratio(written[label], shown.writer))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sites_ratio_is_the_sum_of_its_summands_ratios_but_medians_do_not_add(kind: str) -> None:
    shown = scene(kind)
    nodes = dict(zip(components(shown.context), computed(kind, NODES)["pr"], strict=True))
    nodes[shown.roles.writer] = np.ones_like(nodes["erasers"])
    for site, ours in enumerate(computed(kind, SITES)["pr"]):
        parts = {
            name: nodes.get(name, oracle.ratio(part, shown.writer))
            for name, part in oracle.summands(shown.model, shown.clean, site).items()
        }
        assert_close(ours, sum(parts.values()))
        if site:
            medians = sum(float(np.median(part)) for part in parts.values())
            assert abs(medians - np.median(ours)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_writer_alone_raises_its_ratio_by_one(kind: str) -> None:
    shown = scene(kind)
    layer, head = head_index(shown.roles.writer)
    alone = scaled_head(shown.model, shown.roles.writer, 1)
    for other in range(shown.model.shape.n_heads):
        if other != head:
            alone = scaled_head(alone, f"L{layer}H{other}", 0)
    blocks = list(alone.blocks)
    blocks[layer] = replace(blocks[layer], b_O=torch.zeros_like(blocks[layer].b_O))
    ours = shown.with_model(replace(alone, blocks=tuple(blocks))).compute(SITES)["pr"]
    assert_close(ours[2 * layer + 1] - ours[2 * layer], np.ones(shown.tokens.shape))
    in_company = computed(kind, SITES)["pr"]
    assert np.abs(in_company[2 * layer + 1] - in_company[2 * layer] - 1).min() > 1e-6


@pytest.mark.parametrize("factor", [-1.0, 3.0])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NORMED_AFTER])
def test_ratios_are_linear_in_the_first_argument_and_inverse_in_the_second(kind: str, factor: float) -> None:
    shown = scene(kind)
    # Nothing reads the heads of the last layer but the last MLP: scaling one leaves all others as they are.
    last = f"L{shown.model.shape.n_layers - 1}H1"
    scaled = shown.with_model(scaled_head(shown.model, last, factor))
    row = components(shown.context).index(last)
    assert_close(scaled.compute(NODES)["pr"][row], factor * computed(kind, NODES)["pr"][row])
    row, before = shown.context.nodes.index(last), slice(0, 2 * shown.model.shape.n_layers - 1)
    ours, unscaled = scaled.compute(SITES_ON_NODES)["pr"], computed(kind, SITES_ON_NODES)["pr"]
    assert_close(ours[row, before], unscaled[row, before] / factor)


@pytest.mark.parametrize("kind", KINDS)
def test_a_writer_that_writes_nothing_has_no_ratio(kind: str) -> None:
    shown = scene(kind)
    silent = shown.with_model(scaled_head(shown.model, shown.roles.writer, 0))
    for experiment in (SITES, NODES, PATCH, RECOMPUTED):
        assert all(np.isnan(array).all() for array in silent.compute(experiment).values())
    row = shown.context.nodes.index(shown.roles.writer)
    ours = silent.compute(SITES_ON_NODES)["pr"]
    assert np.isnan(ours[row]).all()
    assert not np.isnan(np.delete(ours, row, 0)).any()


def test_a_writer_that_writes_nothing_at_one_position_has_no_ratio_there() -> None:
    shown = scene("native")
    assert shown.model.W_pos is not None
    W_E, W_pos = shown.model.W_E.clone(), shown.model.W_pos.clone()
    W_E[0], W_pos[0] = 0.5, 0.0  # BOS is constant over d_model, and LayerNorm makes a constant zero
    ours = shown.with_model(replace(shown.model, W_E=W_E, W_pos=W_pos)).compute(SITES)["pr"]
    assert np.isnan(ours[:, :, 0]).all()
    assert not np.isnan(ours[:, :, 1:]).any()


def test_a_ratio_is_undefined_only_where_the_norm_is_zero() -> None:
    num, norm2 = torch.tensor([0.0, 2.0, 1e-30]).double(), torch.tensor([0.0, 4.0, 1e-30]).double()
    assert_close(num / nan_at_zero(norm2), [np.nan, 0.5, 1.0])


@pytest.mark.parametrize("experiment", ALL, ids=lambda e: f"{e.measure}-{getattr(e, 'of', '')}")
def test_prompts_do_not_see_each_other_and_their_order_does_not_matter(experiment: Measure) -> None:
    shown, order = scene("llama"), [2, 0, 1]
    straight, permuted = shown.compute(experiment), replace(shown, tokens=shown.tokens[order]).compute(experiment)
    for name, values in straight.items():
        assert_close(permuted[name], values[..., order, :])
        assert not is_close(permuted[name], values)
        assert_close(np.nanmedian(permuted[name], (-2, -1)), np.nanmedian(values, (-2, -1)))


@pytest.mark.parametrize("experiment", [*ALL, MINING], ids=lambda e: f"{e.measure}-{getattr(e, 'of', '')}")
@pytest.mark.parametrize("kind", ["native", "llama", "rotary"])
def test_providers_micro_batches_and_shared_passes_give_the_same_arrays(kind: str, experiment: Measure) -> None:
    shown = replace(scene(kind), model=single_precision(scene(kind).model))
    expected = shown.compute(experiment, "reference")
    others = [
        shown.compute(experiment, "torch"),
        shown.compute(experiment, "torch", micro_batch=1),
        shown.compute(experiment, "torch", micro_batch=3, beside=ALL),
        shown.compute(experiment, "torch", micro_batch=2, beside=(NODES, NEXT_TOKEN)),
    ]
    for arrays in others:
        for name, values in arrays.items():
            assert values.dtype == expected[name].dtype
            # Single precision: 1e-5 of the largest value, the tolerance stated for results of another micro-batch.
            assert np.nanmax(np.abs(values - expected[name])) <= 1e-5 * np.nanmax(np.abs(expected[name]))
            assert np.array_equal(np.isnan(values), np.isnan(expected[name]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_patch_equals_a_second_pass_with_an_edited_value_input(kind: str) -> None:
    shown = scene(kind)
    for layer in range(head_index(shown.roles.writer)[0] + 1, shown.model.shape.n_layers):
        runs = patched_runs(shown, layer)
        for scale, run in runs.items():
            ours = shown.compute(VPatch(measure="v_patch", layer=layer, scale=scale))  # type: ignore[arg-type]
            for index, expected in enumerate((shown.clean, run)):
                assert_close(ours["site_pr"][index], oracle.ratio(expected.sites, shown.writer))
                assert_close(ours["head_pr"][index], oracle.ratio(expected.heads[layer], shown.writer))
        assert not is_close(runs["frozen"].heads[layer], runs["recomputed"].heads[layer], 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_patched_minus_clean_is_minus_v_composition_for_the_clean_scale_only(kind: str) -> None:
    shown, layer = scene(kind), scene(kind).roles.layers[0]
    runs, total = patched_runs(shown, layer), np.zeros_like(shown.writer)
    moved = {
        scale: np.subtract(*computed(kind, experiment)["head_pr"][::-1])
        for scale, experiment in (("frozen", PATCH), ("recomputed", RECOMPUTED))
    }
    for head in range(shown.model.shape.n_heads):  # every head of the layer, eraser or not
        vcomp = oracle.v_composition(shown.model, shown.clean, layer, head, shown.writer)
        total += vcomp
        assert_close(runs["frozen"].heads[layer, head] - shown.clean.heads[layer, head], -vcomp)
        assert_close(moved["frozen"][head], -oracle.ratio(vcomp, shown.writer))
        assert np.abs(moved["recomputed"][head] + oracle.ratio(vcomp, shown.writer)).max() > 1e-3
        assert np.abs(moved["frozen"][head]).max() > 1e-3
    mid = 2 * layer + 1
    assert_close(runs["frozen"].sites[mid], shown.clean.sites[mid] - total)


@pytest.mark.parametrize("kind", KINDS)
def test_a_patch_leaves_earlier_sites_alone_and_reruns_later_layers(kind: str) -> None:
    layer = scene(kind).roles.layers[0]
    clean, patched = computed(kind, PATCH)["site_pr"]
    assert np.array_equal(clean[: 2 * layer + 1], patched[: 2 * layer + 1])
    shift = patched[2 * layer + 1] - clean[2 * layer + 1]
    assert np.abs(shift).max() > 1e-3
    # The last MLP, at the least, answers the patched stream: the shift is not merely carried along.
    assert np.abs(patched[-1] - clean[-1] - shift).max() > 1e-3


def test_only_layers_that_read_the_writer_can_be_patched() -> None:
    context = scene("wide").context
    assert VPatch(measure="v_patch", layer=3).patched(context) == [f"L3H{head}" for head in range(5)]
    assert PATCH.patched(context) == [f"L2H{head}" for head in range(5)]
    for layer in (0, 1, 4):
        with pytest.raises(ReproError, match=f"layer {layer} cannot be patched: .* L1H4 is read by layers 2 to 3"):
            VPatch(measure="v_patch", layer=layer).patched(context)


def test_grouped_heads_take_the_value_head_they_share() -> None:
    # A control on the oracle too: with the wrong value head the composition is another one.
    shown = scene("llama")
    layer, model = shown.roles.layers[0], shown.model
    right = oracle.v_composition(model, shown.clean, layer, 1, shown.writer)
    packed = model.blocks[layer].W_QKV.clone()
    K, H, G = model.shape.d_head, model.shape.n_heads, model.shape.n_kv_heads
    values = packed[:, (H + G) * K :].unflatten(1, (G, K)).flip(1).flatten(1)
    swapped = replace(model.blocks[layer], W_QKV=torch.cat((packed[:, : (H + G) * K], values), 1))
    other = replace(model, blocks=(*model.blocks[:layer], swapped, *model.blocks[layer + 1 :]))
    assert not is_close(oracle.v_composition(other, shown.clean, layer, 1, shown.writer), right, 1e-3)
