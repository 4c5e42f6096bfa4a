"""Roles that are any nodes of any layers: measures against an independent pass with the writer taken out by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from repro.errors import ReproError
from repro.labels import is_head, layer_of
from repro.measures import DLAScatter, MineExamples, Projection, ResampledDLA, VPatch
from repro.measures.projection import components
from repro.measures.resampled_dla import shown_nodes
from repro.measures.roles import ExampleTokens, Roles
from tests import oracle
from tests.scenes import Scene, assert_close, is_close, model, prompts

SITES = Projection(measure="projection", of="sites", onto="$writer")
NODES = Projection(measure="projection", of="nodes", onto="$writer")
FROZEN, RECOMPUTED = (VPatch(measure="v_patch", scale=scale) for scale in ("frozen", "recomputed"))
SCATTER = DLAScatter(measure="dla_scatter")
# Learned positions, RMSNorm with grouped heads and gated MLPs, query and key norms, weights with means: erasers in
# several layers, MLPs before and after heads, in the writer's own layer, of a writer that is an MLP.
CASES = {
    "native": [
        Roles("L0H1", ("L1H0", "L2H3", "L2H0")),
        Roles("L0H1", ("MLP0", "L2H1", "MLP2")),
        Roles("MLP0", ("L1H2", "MLP1")),
        Roles("L1H0", ("MLP2",)),
    ],
    "llama": [Roles("L0H3", ("MLP0", "L1H1", "MLP1")), Roles("MLP0", ("L2H0", "L1H3"))],
    "qwen3": [Roles("L0H0", ("L1H2", "MLP1")), Roles("L1H1", ("MLP1",))],
    "lopsided": [Roles("L0H2", ("MLP1", "L1H1"))],
    "gemma2": [Roles("L0H3", ("MLP0", "L1H1", "MLP2")), Roles("MLP0", ("L2H0", "L1H3"))],
    "gemma3": [Roles("L0H3", ("L1H0", "MLP1", "L2H1"))],
    "olmo2": [Roles("L0H3", ("MLP0", "L1H1", "L2H1"))],
    "pythia": [Roles("L0H1", ("MLP1", "L1H0")), Roles("MLP0", ("L1H3", "MLP2"))],
}
EVERY = [(kind, roles) for kind, cases in CASES.items() for roles in cases]
by_roles = pytest.mark.parametrize(
    ("kind", "roles"), EVERY, ids=[f"{kind}-{roles.writer}-{'-'.join(roles.erasers)}" for kind, roles in EVERY]
)


@cache
def scene_of(kind: str, roles: Roles) -> Scene:
    return Scene(model(kind), roles, prompts(2, 9))


def places(shown: Scene) -> list[tuple[int, bool]]:
    """The layers of heads and the MLPs that are patched, in the order in which they write."""
    return sorted({(layer_of(label), not is_head(label)) for label in shown.roles.erasers})


def patched_by_hand(shown: Scene, scale: str, own: bool = False) -> oracle.Run:
    """A whole pass with the writer taken out of every patched input, with the clean run's scale at each place.

    own: with the scale of the patched run's stream at that place instead: what a patch in several places is not.
    """
    parallel, edits = shown.model.parallel, []
    for layer, mlp in places(shown):
        site = shown.clean.sites[2 * layer + (1 if mlp and not parallel else 0)]
        held = scale == "frozen" and not own
        given = oracle.read_scale(shown.model, site) if held else None
        after = shown.clean.scales_after[layer, int(mlp)] if held else None
        edits.append(oracle.Edit(layer, shown.writer, scale, mlp, given, after))
    return oracle.forward(shown.model, shown.tokens, *edits)


@by_roles
@pytest.mark.parametrize("patch", [FROZEN, RECOMPUTED], ids=lambda patch: patch.scale)
def test_the_patch_of_any_erasers_equals_a_pass_with_edited_inputs(kind: str, roles: Roles, patch: VPatch) -> None:
    shown = scene_of(kind, roles)
    run, ours, labels = patched_by_hand(shown, patch.scale), shown.compute(patch), patch.patched(shown.context)
    for index, expected in enumerate((shown.clean, run)):
        assert_close(ours["site_pr"][index], oracle.ratio(expected.sites, shown.writer))
        for row, label in zip(ours["head_pr"][index], labels, strict=True):
            assert_close(row, oracle.ratio(oracle.written(expected, label), shown.writer))
    # Of every layer with an eraser head all heads, and the MLPs that erase; each of them is changed.
    heads = {(layer, False) for layer, mlp in places(shown) if not mlp}
    assert {(layer_of(label), not is_head(label)) for label in labels} == set(places(shown))
    assert sum(map(is_head, labels)) == len(heads) * shown.model.shape.n_heads
    assert (np.abs(ours["head_pr"][1] - ours["head_pr"][0]).max((1, 2)) > 1e-4).all()
    assert labels == sorted(labels, key=shown.context.nodes.index)


@by_roles
def test_in_several_places_the_scale_is_the_clean_runs_and_not_the_patched_streams(kind: str, roles: Roles) -> None:
    shown = scene_of(kind, roles)
    ours = shown.compute(FROZEN)["site_pr"][1]
    other = oracle.ratio(patched_by_hand(shown, "frozen", own=True).sites, shown.writer)
    # Blocks in parallel read one stream, which no patch of their own layer has touched.
    read = {2 * layer + (mlp and not shown.model.parallel) for layer, mlp in places(shown)}
    assert is_close(ours, other) == (len(read) == 1)


@by_roles
def test_ratios_onto_any_writer_and_the_sum_of_any_erasers(kind: str, roles: Roles) -> None:
    shown = scene_of(kind, roles)
    assert_close(shown.compute(SITES)["pr"], oracle.ratio(shown.clean.sites, shown.writer))
    assert_close(
        shown.compute(SITES, beside=[Projection(measure="projection", of="sites", onto="nodes")])["pr"],
        oracle.ratio(shown.clean.sites, shown.writer),
    )
    labels = components(shown.context)
    written = {label: oracle.written(shown.clean, label) for label in labels[:-1]}
    written["erasers"] = sum((written[label] for label in roles.erasers), np.zeros(()))
    for row, label in zip(shown.compute(NODES)["pr"], labels, strict=True):
        assert_close(row, oracle.ratio(written[label], shown.writer))


@pytest.mark.parametrize("onto", ["L1H2", "MLP1", "L0H1"])
def test_any_node_may_be_projected_on(onto: str) -> None:
    shown = scene_of("native", CASES["native"][0])
    target = oracle.written(shown.clean, onto)
    sites, nodes = (Projection(measure="projection", of=of, onto=onto) for of in ("sites", "nodes"))
    assert_close(shown.compute(sites)["pr"], oracle.ratio(shown.clean.sites, target))
    labels = nodes.layout(shown.context).coords["component"]
    assert onto not in labels
    for row, label in zip(shown.compute(nodes, beside=[NODES])["pr"][:-1], labels, strict=False):
        assert_close(row, oracle.ratio(oracle.written(shown.clean, label), target))


def test_a_node_that_the_model_does_not_have_is_refused() -> None:
    given = Projection(measure="projection", of="sites", onto="MLP7")
    with pytest.raises(ReproError, match="onto: this model has no node 'MLP7'"):
        given.layout(scene_of("native", CASES["native"][0]).context)


@by_roles
@pytest.mark.parametrize("target", ["top2", "next_token"])
def test_dla_of_any_writer_against_its_erasers_and_their_paths(kind: str, roles: Roles, target: str) -> None:
    shown = scene_of(kind, roles)
    ours = shown.compute(DLAScatter(measure="dla_scatter", target=target))  # type: ignore[arg-type]
    first, second = np.moveaxis(np.argsort(-shown.clean.logits, -1)[..., :2], -1, 0)
    W_U = oracle.plain(shown.model.W_U)
    u = oracle.pair_direction(shown.model, first, second) if target == "top2" else W_U.T[np.roll(shown.tokens, -1, 1)]
    upto = slice(None) if target == "top2" else slice(-1)

    def dla(vector: np.ndarray) -> np.ndarray:
        return oracle.dla(shown.model, shown.clean, vector, u)[:, upto]

    paths = np.zeros_like(shown.writer)
    for label in roles.erasers:
        layer = layer_of(label)
        if is_head(label):
            paths += oracle.v_composition(shown.model, shown.clean, layer, int(label.split("H")[1]), shown.writer)
        else:
            paths += oracle.mlp_path(shown.model, shown.clean, layer, shown.writer)
    output = sum((oracle.written(shown.clean, label) for label in roles.erasers), np.zeros(()))
    assert_close(ours["writer_dla"][:, upto], dla(shown.writer))
    # float64 weights were processed in float64, but gates divide by what may be small.
    assert_close(ours["answer_dla"][0][:, upto], dla(output))
    assert_close(ours["answer_dla"][1][:, upto], dla(paths), 1e-7)
    assert not is_close(ours["answer_dla"][0][:, upto], ours["answer_dla"][1][:, upto], 1e-3)


@pytest.mark.parametrize("kind", ["native", "llama", "pythia"])
@pytest.mark.parametrize("resample", ["all_positions", "last_position"])
def test_a_writer_that_is_an_mlp_is_resampled_beside_the_heads(kind: str, resample: str) -> None:
    roles = next(roles for roles in CASES[kind] if not is_head(roles.writer))
    shown = scene_of(kind, roles)
    example = ExampleTokens("one", tuple(shown.tokens[0, :6].tolist()), 4, 9, "", "", "")
    shown = replace(shown, examples=(example,))
    measure = ResampledDLA(measure="resampled_dla", resample=resample)  # type: ignore[arg-type]
    run = oracle.forward(shown.model, np.array([example.tokens]))
    u = oracle.pair_direction(shown.model, np.array([4]), np.array([9]))[0]

    def dla(vector: np.ndarray) -> np.ndarray:
        centred = vector - vector.mean(-1, keepdims=True) if shown.model.center else vector
        return centred @ u / run.scale_final[0, -1]

    assert shown_nodes(shown.context) == [*shown.context.heads, roles.writer]
    clean = shown.prepared(measure)["clean"][0]
    assert_close(clean[-1], dla(oracle.written(run, roles.writer)[0, -1]))
    assert_close(clean[1], dla(oracle.written(run, shown.context.heads[1])[0, -1]))
    # What an MLP writes at the last position depends on nothing that is read elsewhere.
    assert_close(shown.compute(measure)["resampled"][0, -1], dla(oracle.written(shown.clean, roles.writer)[:, 5]))


def test_what_it_writes_of_an_mlp_is_mined_as_of_a_head() -> None:
    shown = Scene(model("native"), Roles("MLP1", ("MLP2",)), prompts(2, 9))
    ours = shown.compute(MineExamples(measure="mine_examples"))
    first, second = np.moveaxis(np.argsort(-shown.clean.logits, -1)[..., :2], -1, 0)
    u = oracle.pair_direction(shown.model, first, second)
    assert_close(ours["writer_dla"], oracle.dla(shown.model, shown.clean, shown.writer, u)[:, 4:8])


@pytest.mark.parametrize("measure", [FROZEN, SCATTER], ids=lambda measure: measure.measure)
def test_an_mlp_beside_the_writer_in_a_parallel_block_is_refused(measure: VPatch | DLAScatter) -> None:
    shown = scene_of("pythia", Roles("L0H1", ("MLP0",)))
    assert shown.model.parallel
    with pytest.raises(ReproError, match="MLP0 cannot erase L0H1: in this model attention and MLP of a layer read the"):
        shown.prepared(measure)
    assert scene_of("native", Roles("L0H1", ("MLP0",))).prepared(measure) == {}
