"""Net effects against three other ways: dense matrices by hand, autograd, explicit paths; and they are complete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from repro.labels import writers
from repro.measures.batch import Engine
from repro.model import forward as forward_pass
from repro.model import net_effect
from repro.model.decoder import Model
from repro.model.folder import Shape
from repro.model.forward import Trace, logits, norm_scale, rotate, trace
from repro.model.linear import ACTIVATIONS, derivative, secant
from repro.model.net_effect import FORMS, TOGETHER, Effects, net_effects
from tests.scenes import KINDS, model, prompts, scaled_head, single_precision

ROW, LENGTH = 1, 13
TARGETS = torch.tensor([2, 3, 5, 8, 9, 11])
assert len(TARGETS) > TOGETHER, "more than one group, the last of them short"


class Seen:
    """A model, a clean pass of two prompts, and a pair of tokens at every target of the second one."""

    def __init__(self, given: Model) -> None:
        self.model = given
        self.tokens = torch.from_numpy(prompts(2, LENGTH, seed=3)).long()
        with torch.inference_mode():
            self.run: Trace = trace(given, self.tokens)
            self.scores = logits(given, self.run.final[ROW, TARGETS])
            self.pair = self.scores.topk(2).indices.T
            u = given.W_U.T[self.pair[0]] - given.W_U.T[self.pair[1]]
            # direction() needs no kernels
            self.direction = Engine(given, None).direction(u, self.run.scale_final[ROW, TARGETS])  # type: ignore[arg-type]
        self.labels = writers(given.shape.n_layers, given.shape.n_heads, given.W_pos is not None)

    @property
    def difference(self) -> Tensor:
        """The logit difference at every target, without the unembedding's bias."""
        ids, b = torch.arange(len(TARGETS)), self.model.b_U
        return self.scores[ids, self.pair[0]] - self.scores[ids, self.pair[1]] - b[self.pair[0]] + b[self.pair[1]]

    def effects(self, form: str) -> Effects:
        with torch.inference_mode():
            return net_effects(self.model, self.run, self.tokens, ROW, TARGETS, self.direction, (form,))[form]


@pytest.fixture(scope="module", params=KINDS)
def seen(request: pytest.FixtureRequest) -> Seen:
    """A toy of each kind in float64."""
    return Seen(model(request.param))


def sources(here: Seen, found: Effects) -> Tensor:
    """What the embeddings and all biases add up to: [T]."""
    embeddings = [i for i, label in enumerate(here.labels) if "embed" in label]
    return found.nodes[embeddings].sum(0) + found.rest


# ------------------------------------------------------------------------------------------------------- completeness


@pytest.mark.parametrize("form", ["held", "halves"])
def test_embeddings_and_biases_add_up_to_the_logit_difference(seen: Seen, form: str) -> None:
    found = seen.effects(form)
    torch.testing.assert_close(sources(seen, found), seen.difference, rtol=1e-9, atol=1e-9)
    # Negative control: without the biases they do not, nor where a model has none (Llama's kind) without the embedding.
    less = found.rest if bool(found.rest.any()) else found.nodes[0]
    assert not torch.allclose(sources(seen, found) - less, seen.difference, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("form", ["held", "halves"])
def test_single_precision_is_complete_too(seen: Seen, form: str) -> None:
    here = Seen(single_precision(seen.model))
    off = (sources(here, here.effects(form)) - here.difference).abs().max()
    assert float(off) <= 1e-4 * float(here.difference.abs().max().clamp_min(1))


def test_the_gradient_is_not_complete(seen: Seen) -> None:
    found = seen.effects("gradient")
    assert not torch.allclose(sources(seen, found), seen.difference, rtol=1e-2, atol=1e-2)


# ------------------------------------------------------------------------------------------------------------ autograd


def centred(given: Model, x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True) if given.center else x


def pass_with(given: Model, tokens: Tensor, form: str, gain: Callable[[str], Tensor]) -> Tensor:
    """A forward of one prompt [P] in plain torch, every node's output times a gain; what is held is detached.

    Returns the normed final stream [P, D].
    """
    shape, P = given.shape, len(tokens)
    H, G, K = shape.n_heads, shape.n_kv_heads, shape.d_head
    moves = form == "gradient"

    def held(x: Tensor) -> Tensor:
        return x if moves else x.detach()

    def norm(x: Tensor) -> Tensor:
        y = centred(given, x)
        return y / held(torch.sqrt(y.square().mean(-1, keepdim=True) + given.eps))

    def product(a: Tensor, b: Tensor, times: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        if form == "held":
            return times(a.detach(), b)
        return times(a, b) if moves else (times(a, b.detach()) + times(a.detach(), b)) / 2

    def read(x: Tensor) -> Tensor:
        return norm(x) if given.pre_norm else x

    def turned(x: Tensor, weight: Tensor | None, layer: int) -> Tensor:
        if weight is not None:
            over = tuple(range(-weight.ndim, 0))
            x = x / held(torch.sqrt(x.square().mean(over, keepdim=True) + given.eps)) * weight
        block, rotary = given.blocks[layer], given.rotary
        if block.window is not None and given.rotary_local is not None:
            rotary = given.rotary_local
        return rotate(rotary, x[None])[0] if rotary is not None and block.rotated else x

    def after(outs: Tensor, weights: Tensor | None) -> Tensor:
        """What the norm after attention or MLP, if there is one, makes of each thing that is written: [n, P, D]."""
        if weights is None:
            return outs
        return outs / held(torch.sqrt((outs.sum(0) / weights).square().mean(-1, keepdim=True) + given.eps))

    x = gain("embed") * given.W_E[tokens]
    if given.W_pos is not None:
        x = x + gain("pos_embed") * given.W_pos[:P]
    back = torch.arange(P)[:, None] - torch.arange(P)
    for layer, block in enumerate(given.blocks):
        parts = (read(x) @ block.W_QKV + block.b_QKV).view(P, -1, K).split((H, G, G), 1)
        q, k = turned(parts[0], block.q_norm, layer), turned(parts[1], block.k_norm, layer)
        unread, outs = (back < 0) | (back >= (block.window or P)), []
        for head in range(H):
            own_q, own_k, v = q[:, head], k[:, head * G // H], parts[2][:, head * G // H]
            S = product(own_q, own_k, lambda a, b: a @ b.T) * given.softmax_scale
            if form == "held":
                S = S.detach()
            if given.score_cap is not None:
                S = given.score_cap * torch.tanh(S / given.score_cap)
            A = S.masked_fill(unread, -torch.inf).softmax(-1)
            outs.append(product(A, v, lambda a, b: a @ b) @ block.W_O[head])
        gains = torch.stack([gain(f"L{layer}H{head}") for head in range(H)])
        written = x + block.b_O + (gains[:, None, None] * after(torch.stack(outs), block.attn_post)).sum(0)
        y = read(x if given.parallel else written)
        u = y @ block.W_in + block.b_in
        if block.W_gate is None or block.b_gate is None:
            hidden = ACTIVATIONS[given.act](u) if moves else u * secant(given.act, u).detach()
        else:
            gate = y @ block.W_gate + block.b_gate
            open_ = ACTIVATIONS[given.act](gate) if moves else gate * secant(given.act, gate).detach()
            hidden = product(open_, u, lambda a, b: a * b)
        x = written + gain(f"MLP{layer}") * after((hidden @ block.W_out + block.b_out)[None], block.mlp_post)[0]
    return norm(x)


@pytest.mark.parametrize("form", FORMS)
def test_effects_are_the_gradients_of_a_gain(seen: Seen, form: str) -> None:
    """d/dg of the logit difference where a node writes g h, in a forward of its own in which the same is held."""
    gains = torch.ones(len(seen.labels), dtype=torch.float64, requires_grad=True)
    final = pass_with(seen.model, seen.tokens[ROW], form, lambda label: gains[seen.labels.index(label)])
    torch.testing.assert_close(
        final.detach() @ seen.model.W_U, logits(seen.model, seen.run.final)[ROW] - seen.model.b_U
    )
    u = (seen.model.W_U.T[seen.pair[0]] - seen.model.W_U.T[seen.pair[1]]).clone()
    differences = (final[TARGETS] * u).sum(-1)
    expected = torch.stack([torch.autograd.grad(d, gains, retain_graph=True)[0] for d in differences], 1)
    found = seen.effects(form).nodes
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    # Negative control: the forms differ from one another.
    assert not torch.allclose(
        seen.effects("held" if form != "held" else "gradient").nodes, expected, rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_derivatives_and_secants_of_activations(act: str) -> None:
    step = 1e-5
    with torch.inference_mode():
        x = torch.linspace(-4, 4, 41, dtype=torch.float64) + 1e-3
        expected = (ACTIVATIONS[act](x + step) - ACTIVATIONS[act](x - step)) / (2 * step)
        torch.testing.assert_close(derivative(act, x), expected, rtol=0, atol=1e-8)
        torch.testing.assert_close(secant(act, x) * x, ACTIVATIONS[act](x))
        assert torch.isfinite(secant(act, torch.zeros(1)))
    # Negative control: the secant is another slope, but for ReLU's.
    assert (float((secant(act, x) - expected).abs().max()) > 0.1) is (act != "relu")


# ------------------------------------------------------------------------------------- a two-layer model, all by hand


def two_layers() -> Model:
    """A small LayerNorm model of two layers with two heads, made of random numbers."""
    given = model("native")
    small = Shape(2, given.shape.n_heads, given.shape.n_kv_heads, *list(vars(given.shape).values())[3:])
    return replace(given, shape=small, blocks=given.blocks[:2])


def by_matrices(here: Seen) -> dict[str, np.ndarray]:
    """Net effects of a two-layer model, from every component as one dense matrix over (position, d_model).

    With M_c the matrix of a component that reads the stream, the effect of what is written at a step is
    d (1 + M_4) (1 + M_3) … h over the steps after it.
    """
    given, run, D = here.model, here.run, here.model.shape.d_model
    eye, mean = np.eye(LENGTH), np.eye(D) - np.ones((D, D)) / D
    steps, heads, mlps = [], {}, {}
    for layer, block in enumerate(given.blocks):
        W_O, W_V = block.W_O.numpy(), block.W_V.numpy()
        pre, mid = (run.sites[s, ROW] for s in (2 * layer, 2 * layer + 1))
        read = np.diag(1 / norm_scale(given, pre).numpy())
        total = np.zeros((LENGTH * D, LENGTH * D))
        for head in range(given.shape.n_heads):
            q, k = (getattr(run.attention[layer], n)[ROW, :, head].numpy() for n in "qk")
            A = np.zeros((LENGTH, LENGTH))
            for t in range(LENGTH):
                weights = np.exp(given.softmax_scale * (k[: t + 1] @ q[t]))
                A[t, : t + 1] = weights / weights.sum()
            total += np.kron(A @ read, (mean @ W_V[head] @ W_O[head]).T)
            heads[layer, head] = (run.attention[layer].z[ROW, :, head].numpy() @ W_O[head]).ravel()
        steps.append(total)
        x, scale = centred(given, mid).numpy(), norm_scale(given, mid).numpy()
        u = x / scale[:, None] @ block.W_in.numpy() + block.b_in.numpy()
        g = ACTIVATIONS[given.act](torch.from_numpy(u)).numpy() / u
        total = np.zeros_like(total)
        for t in range(LENGTH):
            single = np.outer(eye[t], eye[t])
            total += np.kron(single, (mean / scale[t] @ block.W_in.numpy() * g[t] @ block.W_out.numpy()).T)
        steps.append(total)
        mlps[layer] = run.mlp_out[layer][ROW].numpy().ravel()
    found: dict[str, list[float]] = {label: [] for label in here.labels}
    for t, d in zip(TARGETS.tolist(), here.direction.numpy(), strict=True):
        slope = np.kron(eye[t], d)
        for layer in (1, 0):
            found[f"MLP{layer}"].append(float(slope @ mlps[layer]))
            slope = slope + slope @ steps[2 * layer + 1]
            for head in range(given.shape.n_heads):
                found[f"L{layer}H{head}"].append(float(slope @ heads[layer, head]))
            slope = slope + slope @ steps[2 * layer]
        found["embed"].append(float(slope @ given.W_E[here.tokens[ROW]].numpy().ravel()))
        assert given.W_pos is not None
        found["pos_embed"].append(float(slope @ given.W_pos[:LENGTH].numpy().ravel()))
    return {label: np.array(values) for label, values in found.items()}


def test_a_two_layer_model_by_hand() -> None:
    here = Seen(two_layers())
    expected, found = by_matrices(here), here.effects("held").nodes
    for label, effects in zip(here.labels, found, strict=True):
        np.testing.assert_allclose(effects, expected[label], rtol=1e-9, atol=1e-9, err_msg=label)
    # Negative control: what a head does is more than what it does directly.
    at = here.run.attention[0].z[ROW, TARGETS, 0] @ here.model.blocks[0].W_O[0]
    assert not np.allclose((at * here.direction).sum(-1), expected["L0H0"], rtol=1e-2, atol=1e-2)


def test_a_head_of_the_last_layer_has_its_dla_and_what_its_mlp_makes_of_it(seen: Seen) -> None:
    """The MLP of the last layer has its DLA, and a silent head nothing."""
    last = seen.model.shape.n_layers - 1
    dla = (seen.run.mlp_out[last][ROW, TARGETS] * seen.direction).sum(-1)
    for form in ("held", "halves"):
        torch.testing.assert_close(seen.effects(form).nodes[-1], dla, rtol=1e-9, atol=1e-9)
    silent = Seen(scaled_head(seen.model, "L0H0", 0))
    assert float(silent.effects("held").nodes[silent.labels.index("L0H0")].abs().max()) == 0


# --------------------------------------------------------------------------------------------------------------- passes


def test_a_batch_of_targets_goes_down_once_for_each_form_and_forward_not_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three passes a batch of targets: one backward for each of the three forms, on the clean forward that is there."""
    seen = Seen(model(KINDS[0]))
    down: list[str] = []
    whole = net_effect._through

    def through(run: Any, one: Any, group: slice, stop: int) -> tuple[Tensor, Tensor]:
        down.append(one.form)
        return whole(run, one, group, stop)

    def forward(*arguments: Any) -> Any:
        raise AssertionError("another forward pass")

    monkeypatch.setattr(net_effect, "_through", through)
    for name in ("trace", "logits"):
        monkeypatch.setattr(forward_pass, name, forward)
    with torch.inference_mode():
        net_effect.net_effects(seen.model, seen.run, seen.tokens, ROW, TARGETS, seen.direction, FORMS)
    batches = -(-len(TARGETS) // TOGETHER)
    assert {form: down.count(form) for form in FORMS} == dict.fromkeys(FORMS, batches * seen.model.shape.n_layers)
    assert len(FORMS) == 3
