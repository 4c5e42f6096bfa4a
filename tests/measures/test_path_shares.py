"""What a scan reads: shares as ratios of sums, the presence of every node, and what of it other prompts share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from repro.labels import sites, writers
from repro.measures.path_shares import REFERENCES, PathShares
from repro.model.forward import trace
from repro.model.paths import sampled, strata, written
from tests.scenes import Scene, scene, single_precision

KINDS = ("native", "llama", "gemma2")
MEASURE = PathShares(measure="path_shares", stride=4, decoys=8)


@pytest.fixture(scope="module", params=KINDS)
def given(request: pytest.FixtureRequest) -> Scene:
    """A toy with five prompts."""
    return scene(request.param)


def test_arrays_are_as_declared(given: Scene) -> None:
    layout = MEASURE.layout(given.context)
    found = given.compute(MEASURE)
    for variable in layout.variables:
        assert found[variable.name].shape == layout.shape(variable)


def test_micro_batches_give_the_same_shares(given: Scene) -> None:
    whole, single = given.compute(MEASURE), given.compute(MEASURE, micro_batch=1)
    for name, value in whole.items():
        np.testing.assert_allclose(single[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


def test_micro_batches_in_single_precision_differ_in_last_bits_alone(given: Scene) -> None:
    """Within 1e-5 of the largest value, the tolerance stated for results of another micro-batch."""
    single = given.with_model(single_precision(given.model))
    whole, others = single.compute(MEASURE), [single.compute(MEASURE, micro_batch=n) for n in (1, 2)]
    exact = given.compute(MEASURE)
    for name, value in whole.items():
        largest = np.nanmax(np.abs(value))
        for other in others:
            np.testing.assert_allclose(other[name], value, rtol=0, atol=1e-5 * largest, err_msg=name)
        # Negative control: a prompt's numbers in another's place are seen.
        assert np.nanmax(np.abs(np.roll(value, 1, -1) - value)) > 1e-3 * largest
        np.testing.assert_allclose(value, exact[name], rtol=0, atol=1e-4 * largest, err_msg=name)


def test_the_presence_of_what_a_site_is_made_of_adds_up(given: Scene) -> None:
    """Summed over writers weighed by their norms, presence at the last site is <site, sum of h>: a site's own sum."""
    found = given.compute(MEASURE)
    positions = sampled(given.tokens.shape[1], MEASURE.stride)
    tokens = torch.from_numpy(given.tokens).long()
    with torch.inference_mode():
        run = trace(given.model, tokens)
        for row in range(len(tokens)):
            nodes = written(given.model, run, tokens, row, positions)
            last = run.sites[2 * given.model.shape.n_layers, row, positions]
            expected = strata((nodes.at.sum(0) * last).sum(-1))
            presence = found["presence"][:, :, -1, row] * found["norm2"][..., row]
            np.testing.assert_allclose(np.nansum(presence, 1), expected, rtol=1e-6)


def test_a_model_without_positions_has_no_positional_writer() -> None:
    llama, native = (scene(kind).compute(MEASURE) for kind in ("llama", "native"))
    place = writers(1, 1, positional=True).index("pos_embed")
    assert np.isnan(llama["path"][:, place]).all()
    assert np.isnan(llama["presence"][:, place]).all()
    assert np.isfinite(native["presence"][:, place]).all()


def test_what_a_layer_writes_changes_the_presence_by_its_inner_product(given: Scene) -> None:
    found, positions = given.compute(MEASURE), sampled(given.tokens.shape[1], MEASURE.stride)
    shape, tokens = given.model.shape, torch.from_numpy(given.tokens).long()
    w, place = writers(shape.n_layers, shape.n_heads, positional=True).index("L1H0"), sites(shape.n_layers)
    grown = found["presence"][:, w, place.index("resid_mid1")] - found["presence"][:, w, place.index("resid_post0")]
    with torch.inference_mode():
        run = trace(given.model, tokens)
        h = run.attention[1].z[:, positions, 0] @ given.model.blocks[1].W_O[0]
        dots = strata((h * (run.sites[3] - run.sites[2])[:, positions]).sum(-1)) / strata(h.square().sum(-1))
    np.testing.assert_allclose(grown, dots, rtol=1e-6, atol=1e-9)


def test_what_every_prompt_holds_is_held_and_what_differs_is_not(given: Scene) -> None:
    """Equal prompts hold all of it: presence and held presence are equal. Others do not."""
    same = replace(given, tokens=np.repeat(given.tokens[:1], 4, 0))
    found = same.compute(MEASURE)
    np.testing.assert_allclose(found["held"], found["presence"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["held_self"][np.isfinite(found["held_self"])], 1, rtol=1e-6)
    other = given.compute(MEASURE)
    assert np.nanmax(np.abs(other["held_self"][1] - 1)) > 0.1


def test_one_prompt_has_no_other_to_be_held_against() -> None:
    alone = replace(scene("native"), tokens=scene("native").tokens[:1])
    found = alone.compute(MEASURE)
    assert np.isnan(found["held"]).all()
    assert np.isfinite(found["presence"]).all()


def test_the_reference_is_of_the_first_prompts_only(given: Scene) -> None:
    prepared = given.prepared(MEASURE)
    assert prepared["of"] == list(range(min(REFERENCES, len(given.tokens))))
