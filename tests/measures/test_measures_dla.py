"""Direct logit attribution, the scatter, resampled inputs and mined candidates, against an independent pass."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from repro.errors import ReproError
from repro.labels import head_index
from repro.measures import DLAScatter, MineExamples, ResampledDLA
from repro.measures.mine_examples import mined_positions
from repro.measures.roles import ExampleTokens
from tests import oracle
from tests.scenes import KINDS, Scene, assert_close, is_close, prompts, scaled_head, scene

TARGETS = ("top2", "next_token")
MINING = MineExamples(measure="mine_examples")
RESAMPLED = ResampledDLA(measure="resampled_dla")
LAST_ONLY = ResampledDLA(measure="resampled_dla", resample="last_position")


@cache
def top2(kind: str) -> np.ndarray:
    """The oracle's first and second prediction at every position: [2, B, P]."""
    return np.moveaxis(np.argsort(-scene(kind).clean.logits, -1)[..., :2], -1, 0)


def direction(kind: str, target: str) -> np.ndarray:
    """u of a target: [B, P, D], NaN at the last position of `next_token`."""
    shown = scene(kind)
    if target == "top2":
        return oracle.pair_direction(shown.model, *top2(kind))
    W_U = oracle.plain(shown.model.W_U)
    u = np.full((*shown.tokens.shape, len(W_U)), np.nan)
    for row, tokens in enumerate(shown.tokens):
        for t, following in enumerate(tokens[1:]):
            u[row, t] = W_U[:, following]
    return u


def same_position(shown: Scene, head: int) -> np.ndarray:
    """LN_n(h_w)[t] W_V W_O with no pattern at all: [B, P, D]."""
    weights, layer = oracle.head_weights(shown.model, shown.roles.layers[0], head), shown.roles.layers[0]
    read = oracle.normed(shown.model, shown.writer, shown.clean.scales[layer])
    return read @ weights["W_V"] @ weights["W_O"] / shown.clean.scales_after[layer, 0, ..., None]


@pytest.mark.parametrize("kind", KINDS)
def test_dla_of_all_summands_is_the_logit_difference_less_the_bias(kind: str) -> None:
    shown, model, last = scene(kind), scene(kind).model, 2 * scene(kind).model.shape.n_layers
    first, second = top2(kind)
    rows = shown.engine().unembedding_rows
    u = rows(torch.from_numpy(first)) - rows(torch.from_numpy(second))
    reader = shown.engine().direction(u, torch.from_numpy(shown.clean.scale_final)).numpy()
    parts = oracle.summands(model, shown.clean, last)
    total = sum((part * reader).sum(-1) for part in parts.values())
    b_U, logits = oracle.plain(model.b_U), shown.clean.logits
    difference = np.take_along_axis(logits, first[..., None], -1) - np.take_along_axis(logits, second[..., None], -1)
    assert_close(total + b_U[first] - b_U[second], difference[..., 0])
    # The bias is needed where there is one (the Llama has none), and so is every summand of the stream.
    assert is_close(total, difference[..., 0], 1e-3) == (not b_U.any())
    for name, part in parts.items():
        left_out = total - (part * reader).sum(-1)
        assert is_close(left_out, total) == (not part.any()), name


@pytest.mark.parametrize("kind", KINDS)
def test_dla_centres_for_layer_norm_and_not_for_rms_norm(kind: str) -> None:
    shown = scene(kind)
    u, vector = direction(kind, "top2") + 0.7, shown.writer + 2.0  # both with a mean
    scale = torch.from_numpy(shown.clean.scale_final)
    reader = shown.engine().direction(torch.from_numpy(u), scale).numpy()
    ours, plain = (vector * reader).sum(-1), (vector * u).sum(-1) / shown.clean.scale_final
    assert_close(ours, oracle.dla(shown.model, shown.clean, vector, u))
    assert is_close(ours, plain) == (not shown.model.center)
    assert is_close(ours, ((vector - 2.0) * reader).sum(-1)) == shown.model.center


@pytest.mark.parametrize("v_composition", ["attention", "same_position"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_scatter_equals_the_oracle(kind: str, target: Any, v_composition: Any) -> None:
    shown, layer, u = scene(kind), scene(kind).roles.layers[0], direction(kind, target)
    ours = shown.compute(DLAScatter(measure="dla_scatter", target=target, v_composition=v_composition))
    erasers = [head_index(label)[1] for label in shown.roles.erasers]
    composed: dict[str, Any] = {
        "attention": sum(oracle.v_composition(shown.model, shown.clean, layer, h, shown.writer) for h in erasers),
        "same_position": sum(same_position(shown, h) for h in erasers),
    }
    output = shown.clean.heads[layer, erasers].sum(0)
    expected = {name: oracle.dla(shown.model, shown.clean, vector, u) for name, vector in composed.items()}
    assert_close(ours["writer_dla"], oracle.dla(shown.model, shown.clean, shown.writer, u))
    assert_close(ours["answer_dla"][0], oracle.dla(shown.model, shown.clean, output, u))
    assert_close(ours["answer_dla"][1], expected.pop(v_composition))
    (other,) = expected.values()
    assert not is_close(ours["answer_dla"][1], other, 1e-3)
    assert np.isnan(ours["writer_dla"][:, -1]).all() == (target == "next_token")


def test_the_first_two_predictions_are_not_the_next_token() -> None:
    assert (top2("native")[0, :, :-1] != scene("native").tokens[:, 1:]).any()


def test_at_position_0_only_the_same_position_can_be_read() -> None:
    shown = scene("gpt2")
    pair = [
        shown.compute(DLAScatter(measure="dla_scatter", v_composition=variant))["answer_dla"][1]
        for variant in ("attention", "same_position")
    ]
    assert_close(pair[0][:, 0], pair[1][:, 0])
    assert np.abs(pair[0][:, 1:] - pair[1][:, 1:]).min() > 1e-6


def examples(kind: str) -> tuple[ExampleTokens, ...]:
    """Adversarial prompts: a short text, one as long as the prompts, one mined from prompt 1, one that is too long."""
    shown = scene(kind)
    own = prompts(3, 13, seed=9)
    texts = {"short": own[0, :5], "full": own[1, :11], "mined": shown.tokens[1, :6], "long": own[2, :12]}
    found = []
    for label, tokens in texts.items():
        first, second = np.argsort(-oracle.forward(shown.model, tokens[None]).logits[0, -1])[:2]
        answer, other = (first, second) if label != "full" else (second, 7)
        mined = 1 if label == "mined" else None
        words = (label, "answer", "other")
        found.append(ExampleTokens(label, tuple(tokens.tolist()), int(answer), int(other), *words, None, mined))
    return tuple(found)


@cache
def with_examples(kind: str) -> Scene:
    """The standard scene with adversarial prompts."""
    return replace(scene(kind), examples=examples(kind))


def resampled_last(shown: Scene, layer: int, own: oracle.Run, row: int, T: int) -> np.ndarray:
    """What a layer's heads write at T-1 when queries, keys and values there are those of an unrelated text: [H, D]."""
    heads = []
    for head in range(shown.model.shape.n_heads):
        q, k, v = (getattr(own, name)[layer, head, 0].copy() for name in "qkv")
        q[T - 1], k[T - 1], v[T - 1] = (getattr(shown.clean, name)[layer, head, row, T - 1] for name in "qkv")
        pattern = oracle.pattern_of(shown.model, layer, q, k)
        heads.append(pattern[T - 1] @ v @ oracle.head_weights(shown.model, layer, head)["W_O"])
    out = np.array(heads)
    return out / oracle.post_scale(shown.model, out.sum(0), shown.model.blocks[layer].attn_post)


@pytest.mark.parametrize("kind", KINDS)
def test_resampled_dla_equals_explicit_passes(kind: str) -> None:
    shown, model = with_examples(kind), scene(kind).model
    ours = {str(experiment.resample): shown.compute(experiment)["resampled"] for experiment in (RESAMPLED, LAST_ONLY)}
    for index, example in enumerate(shown.examples):
        T = len(example.tokens)
        own = oracle.forward(model, np.array([example.tokens]))
        u = oracle.pair_direction(model, np.array(example.answer), np.array(example.other))
        scale = own.scale_final[0, -1]  # the adversarial prompt's own clean scale
        for column, label in enumerate(shown.context.heads):
            layer, head = head_index(label)
            for row, tokens in enumerate(shown.tokens):
                got = {variant: array[index, column, row] for variant, array in ours.items()}
                if example.label == "long" or row == example.prompt:
                    assert np.isnan(list(got.values())).all()
                    continue
                elsewhere = oracle.forward(model, tokens[None, :T])  # the text's first T tokens and nothing else
                written = {
                    "all_positions": elsewhere.heads[layer, head, 0, T - 1],
                    "last_position": resampled_last(shown, layer, own, row, T)[head],
                }
                for variant, vector in written.items():
                    centred = vector - vector.mean() if model.center else vector
                    assert_close(got[variant], centred @ u / scale, 1e-8)


@pytest.mark.parametrize("experiment", [RESAMPLED, LAST_ONLY], ids=["all", "last"])
def test_a_mined_example_knows_its_prompt_in_any_micro_batch(experiment: ResampledDLA) -> None:
    shown = with_examples("native")
    together = shown.compute(experiment)["resampled"]
    assert np.isnan(together).any((0, 1)).tolist() == [True, True, True]  # the text that is too long
    assert np.isnan(together[:3]).any((0, 1)).tolist() == [False, True, False]
    for size in (1, 2):
        assert_close(shown.compute(experiment, micro_batch=size)["resampled"], together)


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_ways_to_resample_differ(kind: str) -> None:
    shown = with_examples(kind)
    pair = [shown.compute(experiment)["resampled"][0] for experiment in (RESAMPLED, LAST_ONLY)]
    assert np.abs(pair[0] - pair[1]).max() > 1e-3
    # A head that attends to nothing but its own position could not tell; at T = 1 both are the same.
    single = replace(shown, examples=(replace(shown.examples[0], tokens=(0,)),))
    pair = [single.compute(experiment)["resampled"][0] for experiment in (RESAMPLED, LAST_ONLY)]
    assert_close(pair[0], pair[1])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_before_the_pass_equals_the_oracle(kind: str) -> None:
    shown, model = with_examples(kind), scene(kind).model
    once = shown.prepared(RESAMPLED)
    for index, example in enumerate(shown.examples):
        run = oracle.forward(model, np.array([example.tokens]))
        logits = run.logits[0, -1]
        assert [once["first"][index], once["second"][index]] == np.argsort(-logits)[:2].tolist()
        assert_close(once["logit_diff"][index], logits[example.answer] - logits[example.other])
        assert (once["logit_diff"][index] > 0) or example.label == "full"
        u = oracle.pair_direction(model, np.array(example.answer), np.array(example.other))
        for value, label in zip(once["clean"][index], shown.context.heads, strict=True):
            vector = oracle.written(run, label)
            assert_close(value, oracle.dla(model, run, vector, u)[0, -1])


def test_a_silent_head_has_no_dla_and_moves_nothing_else_of_its_layer() -> None:
    shown = with_examples("native")
    silent = shown.with_model(scaled_head(shown.model, "L2H1", 0))
    before, after = (each.compute(RESAMPLED)["resampled"][0] for each in (shown, silent))
    column = shown.context.heads.index("L2H1")
    assert_close(after[column], np.zeros(3))
    # In the last layer only the final scale changes, one factor for all other heads.
    factor = np.delete(after, column, 0) / np.delete(before, column, 0)
    assert_close(factor, np.full_like(factor, factor.flat[0]), 1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_mined_candidates_equal_the_oracle(kind: str) -> None:
    shown, at = scene(kind), mined_positions(scene(kind).context)
    assert at == range(4, 10)
    ours, rows = shown.compute(MINING), slice(at.start, at.stop)
    first, second = top2(kind)
    assert np.array_equal(ours["first"], first[:, rows])
    assert np.array_equal(ours["second"], second[:, rows])
    assert np.array_equal(ours["actual"], shown.tokens[:, 5:11])
    expected = oracle.dla(shown.model, shown.clean, shown.writer, direction(kind, "top2"))
    assert_close(ours["writer_dla"], expected[:, rows])


@pytest.mark.parametrize(("positions", "expected"), [(1024, range(4, 32)), (33, range(4, 32)), (32, range(4, 31))])
def test_mining_looks_at_positions_4_to_31_that_have_a_next_token(positions: int, expected: range) -> None:
    context = replace(scene("native").context, n_positions=positions)
    assert mined_positions(context) == expected
    assert MINING.layout(context).sizes == {"prompt": 3, "position": len(expected)}


def test_prompts_too_short_to_mine_are_refused() -> None:
    with pytest.raises(ReproError, match=r"prompts of 5 tokens are too short .* at least 6 are needed"):
        MINING.layout(replace(scene("native").context, n_positions=5))
    assert MINING.layout(replace(scene("native").context, n_positions=6)).sizes["position"] == 1
