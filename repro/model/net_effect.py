"""The effect of what every node wrote on a logit difference, through all paths, by one pass backward per target.

The pass goes from the logit difference at a target position t down to the embeddings, and at every site it holds
G[s] [D], the slope of that difference in the stream at position s. The effect of a node that wrote h is
sum_s <h[s], G[s]>, with G of the site it writes to. Three forms differ in what counts as a slope:

held      patterns, norm scales and gates of the clean run are constants, so that the model is linear.
halves    a product of two things that both depend on the stream gives each of them half. Pattern x value: the value has
          half; the pattern's half goes through the softmax by its derivative at the clean scores, and of the scores
          q . k, again a product, q and k have half each. Gate x up of a gated MLP: half each, the gate by act(x) / x.
          Norm scales, also those of queries and keys and of norms after attention and MLP, and the ungated act(u) / u
          are held. Through a cap of the scores the slope is its derivative.
gradient  the derivative of the real model (attribution patching): everything moves, norm scales too.

Held and halves are affine in what is written to the stream, so they are complete: at every site sum_s <x[s], G[s]> plus
what the biases after it add is the logit difference, and at the lowest one embed + pos_embed + rest is. `rest` holds
all biases (b_O, b_in, b_gate, b_out, b_Q, b_K). The softmax is no product and no linear map: of the pattern's half its
derivative J explains J S only, and what is left, half of sum_i A_i v_i - sum_i A_i (S_i - sum_j A_j S_j) v_i, is a
constant of the clean run and counted in `rest` as well. So halves are complete by their constant, not because the
scores explain the pattern. The gradient is not complete: nothing is added for what it leaves.

What a node does through others is counted for those others, too: effects of all nodes do not add up, those of all
sources (embeddings and biases) do. Agreement: tests/model/test_net_effect.py, with a two-layer model by hand, with
autograd, and with the sum over explicit paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.model.attention import pattern_of
from repro.model.decoder import Model
from repro.model.forward import Trace, attn_out, mlp_gain, normed, read, read_scale, rotate
from repro.model.linear import ACTIVATIONS, derivative, secant
from repro.model.norm_slopes import through_norm, through_post, through_weighted

FORMS = ("held", "halves", "gradient")
TOGETHER = 4
"""Targets that go backward together: neighbours, so that positions after the last of them cost nothing."""


@dataclass(frozen=True)
class Effects:
    """Net effects of one form on T targets of one prompt, in logits."""

    nodes: Tensor
    """In the order of `repro.labels.writers`: [N, T]."""
    rest: Tensor
    """What biases and constants add, that of the unembedding left out: [T]."""


def net_effects(
    model: Model, trace: Trace, tokens: Tensor, row: int, positions: Tensor, direction: Tensor, forms: Sequence[str]
) -> dict[str, Effects]:
    """Return by form the net effect of every node of one prompt on T targets.

    row: which prompt of the clean pass over tokens [B, P]; positions: the targets, in rising order [T]; direction: d
    with <v, d> = DLA(v) at each target [T, D]; forms: of FORMS; what they read of the clean run is computed once for
    each layer. Returns logits; embed, pos_embed where there is one, and rest add up to the logit difference less that
    of the unembedding's bias (held and halves).
    """
    last = int(positions[-1]) + 1
    T, H, L = len(positions), model.shape.n_heads, model.shape.n_layers
    passes = [_Pass(form, _start(model, trace, row, positions, direction, form, last)) for form in forms]
    groups = [(slice(a, a + TOGETHER), int(positions[a : a + TOGETHER][-1]) + 1) for a in range(0, T, TOGETHER)]
    found: dict[str, list[Tensor]] = {form: [] for form in forms}
    for layer in reversed(range(L)):
        layer_run = _Layer(model, trace, row, layer, last)
        for one in passes:
            heads, mlp = one.slope.new_empty((H, T)), one.slope.new_empty((1, T))
            for group, stop in groups:
                mlp[0, group], heads[:, group] = _through(layer_run, one, group, stop)
            found[one.form] += [mlp, heads]
    embedded = [F.embedding(tokens[row, :last], model.W_E)]
    embedded += [] if model.W_pos is None else [model.W_pos[:last]]
    out = {}
    for one in passes:
        sources = torch.stack([torch.einsum("tpd,pd->t", one.slope, part) for part in embedded])
        out[one.form] = Effects(torch.cat((sources, *reversed(found[one.form]))), one.rest)
    return out


class _Pass:
    """One form on its way down: the slopes G at the present site [T, P, D], and what the biases have added [T]."""

    def __init__(self, form: str, slope: Tensor) -> None:
        self.form = form
        self.slope = slope
        self.rest = slope.new_zeros(len(slope))


def _start(model: Model, trace: Trace, row: int, positions: Tensor, direction: Tensor, form: str, last: int) -> Tensor:
    """Return the slopes in the last site: the direction at the target itself, nothing elsewhere."""
    slope = direction.new_zeros((len(positions), last, direction.shape[-1]))
    at = direction
    if form == "gradient":
        y = normed(model, trace.final[row, positions])
        at = at - y * (at * y).mean(-1, keepdim=True)
    slope[torch.arange(len(positions)), positions] = at
    return slope


class _Layer:
    """What the slopes of one layer depend on, of one prompt's first P positions, each computed at most once."""

    def __init__(self, model: Model, trace: Trace, row: int, layer: int, last: int) -> None:
        self.model, self.block, self.layer = model, model.blocks[layer], layer
        self.seen = replace(
            trace.attention[layer], **{n: x[row : row + 1, :last] for n, x in vars(trace.attention[layer]).items()}
        )
        self.mlp_out = trace.mlp_out[layer][row, :last]
        pre, mid = (trace.sites[site][row, :last] for site in (2 * layer, model.mlp_site(layer)))
        self.pre, self.pre_scale = read(model, pre), read_scale(model, pre)
        self.read, self.read_scale = read(model, mid), read_scale(model, mid)
        self.mlp_gain = mlp_gain(model, layer, mid)
        self.A = pattern_of(model, layer, self.seen, 0, torch.arange(last))  # [H, P, P]

    def weight(self, name: str) -> Tensor:
        """Return a matrix or bias in the type of what is measured; products of the forward may be in bf16."""
        value = getattr(self.block, name)
        assert isinstance(value, Tensor)
        return value.to(self.pre.dtype)

    @cached_property
    def unrotated(self) -> Tensor:
        """Return queries and keys before norm and rotation: [P, H + G, K]."""
        shape = self.model.shape
        n = (shape.n_heads + shape.n_kv_heads) * shape.d_head
        flat = self.pre @ self.weight("W_QKV")[:, :n] + self.weight("b_QKV")[:n]
        return flat.view(len(flat), -1, shape.d_head)

    @cached_property
    def attn_out(self) -> Tensor:
        """Return what the heads write together: [P, D]."""
        return attn_out(self.model, self.layer, self.seen.z)[0]

    @cached_property
    def cap_slopes(self) -> Tensor | None:
        """Return the derivatives of capped scores in what they are of, 1 - tanh²: [H, P, P]; None without a cap."""
        if self.model.score_cap is None:
            return None
        q, k = self.seen.q[0], self.seen.k[0].repeat_interleave(self.model.shape.n_heads // self.seen.k.shape[2], 1)
        scores = torch.einsum("thk,ihk->hti", q, k) * (self.model.softmax_scale / self.model.score_cap)
        return 1 - scores.tanh_().square_()

    @cached_property
    def hidden(self) -> tuple[Tensor, Tensor | None]:
        """Return what enters the units of the MLP, and what enters their gates: [P, M] each."""
        up = self.read @ self.weight("W_in") + self.weight("b_in")
        gated = self.block.W_gate is not None
        return up, self.read @ self.weight("W_gate") + self.weight("b_gate") if gated else None

    @cached_property
    def factors(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Return by form the slopes of a hidden unit in what enters it and in what enters its gate: [P, M] each."""
        up, gate = self.hidden
        act = self.model.act
        if gate is None:
            held = secant(act, up)
            return {"held": (held, None), "halves": (held, None), "gradient": (derivative(act, up), None)}
        open_ = ACTIVATIONS[act](gate)
        return {
            "held": (open_, None),
            "halves": (open_ / 2, up * secant(act, gate) / 2),
            "gradient": (open_, up * derivative(act, gate)),
        }


def _through(run: _Layer, one: _Pass, group: slice, stop: int) -> tuple[Tensor, Tensor]:
    """Take the slopes of some targets down through one layer; return the effects of its MLP [T'] and heads [H, T']."""
    slope = one.slope[group, :stop]
    mlp = torch.einsum("tpd,pd->t", slope, run.mlp_out[:stop])
    read = _through_mlp(run, one, group, stop, slope)
    below = slope if run.model.parallel else slope + read
    heads, values = _through_heads(run, one, group, stop, below)
    one.slope[group, :stop] = below + values + read if run.model.parallel else below + values
    return mlp, heads


def _through_mlp(run: _Layer, one: _Pass, group: slice, stop: int, slope: Tensor) -> Tensor:
    """Return the slopes in what the MLP reads, and count its biases."""
    up, gate = (None if x is None else x[:stop] for x in run.factors[one.form])
    assert up is not None
    slope = through_post(one.form, slope, run.mlp_out[:stop], run.block.mlp_post, run.mlp_gain[:stop])
    flat = slope.reshape(-1, slope.shape[-1])
    hidden = (flat @ run.weight("W_out").T).view(*slope.shape[:2], -1)
    to_gate = None if gate is None else hidden * gate
    hidden = hidden.mul_(up)
    one.rest[group] += slope.sum(1) @ run.weight("b_out") + hidden.sum(1) @ run.weight("b_in")
    back = hidden @ run.weight("W_in").T
    if to_gate is not None:
        back += to_gate @ run.weight("W_gate").T
        one.rest[group] += to_gate.sum(1) @ run.weight("b_gate")
    return through_norm(run.model, one.form, back, run.read[:stop], run.read_scale[:stop])


def _through_heads(run: _Layer, one: _Pass, group: slice, stop: int, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return the effects of the heads [H, T'] and the slopes in the stream that they read."""
    shape, T = run.model.shape, len(slope)
    H, G, K = shape.n_heads, shape.n_kv_heads, shape.d_head
    W_O, z, A = run.block.W_O.flatten(0, 1).T, run.seen.z[0, :stop], run.A[:, :stop, :stop]
    onto = (slope.reshape(-1, slope.shape[-1]) @ W_O).view(T, stop, H, K)  # slopes in z
    own = onto * z
    heads = own.sum((1, 3)).T
    one.rest[group] += slope.sum(1) @ run.weight("b_O")
    if run.block.attn_post is not None:  # heads write through the norm together: slopes in what they mix are others
        gain = run.seen.gain[0, :stop]
        inner = through_post(one.form, slope, run.attn_out[:stop], run.block.attn_post, gain)
        onto = (inner.reshape(-1, slope.shape[-1]) @ W_O).view(T, stop, H, K)
        own = onto * (z / gain[:, None, None])
    # Destinations are rows of the pattern; targets lie beside d_head, so that one product a head does for all of them.
    beside = onto.permute(2, 1, 0, 3).reshape(H, stop, T * K)
    values = torch.bmm(A.transpose(1, 2), beside).view(H, stop, T, K).unflatten(0, (G, H // G)).sum(1)
    to_v = values.permute(2, 1, 0, 3).reshape(T, stop, G * K)
    n = (H + G) * K
    if one.form == "held":
        back = to_v @ run.weight("W_QKV")[:, n:].T
        one.rest[group] += to_v.sum(1) @ run.weight("b_QKV")[n:]
    else:
        to_v = to_v / 2 if one.form == "halves" else to_v
        packed = torch.cat((_through_pattern(run, one, group, stop, onto, own), to_v), -1)
        back = packed @ run.weight("W_QKV").T
        one.rest[group] += packed.sum(1) @ run.weight("b_QKV")
    return heads, through_norm(run.model, one.form, back, run.pre[:stop], run.pre_scale[:stop])


def _through_pattern(run: _Layer, one: _Pass, group: slice, stop: int, onto: Tensor, own: Tensor) -> Tensor:
    """Return the slopes in queries and keys, before norm and rotation: [T', P, (H + G) K].

    dA = <slope in z, v>, dS = A (dA - sum_i A dA): the derivative of the softmax. onto: slopes in z [T', P, H, K];
    own: their products with z.
    """
    model, shape, T = run.model, run.model.shape, len(onto)
    H, G, K = shape.n_heads, shape.n_kv_heads, shape.d_head
    q, k, v = (getattr(run.seen, name)[0, :stop] for name in "qkv")
    to_q, to_k = onto.new_empty((T, stop, H, K)), onto.new_zeros((T, stop, G, K))
    means = own.sum(-1)  # sum_i A dA, as z = A v
    for head in range(H):
        shared = head * G // H
        dS = (onto[:, :, head].reshape(-1, K) @ v[:, shared].T).view(T, stop, stop)
        dS.sub_(means[:, :, head, None]).mul_(run.A[head, :stop, :stop])
        if run.cap_slopes is not None:
            dS.mul_(run.cap_slopes[head, :stop, :stop])
        to_q[:, :, head] = dS @ k[:, shared]
        to_k[:, :, shared] += dS.transpose(1, 2) @ q[:, head]
    factor = model.softmax_scale / (4 if one.form == "halves" else 1)  # half of the product, half of the scores
    to_q, to_k = to_q.mul_(factor), to_k.mul_(factor)
    if one.form == "halves":
        explained = (to_q * q).sum((1, 2, 3)) + (to_k * k).sum((1, 2, 3))
        one.rest[group] += own.sum((1, 2, 3)) / 2 - explained
    packed = torch.cat((to_q, to_k), 2)
    rotary = model.rotary_of(run.layer)
    if rotary is not None:
        packed = rotate(replace(rotary, sin=-rotary.sin), packed).to(packed.dtype)
    block = run.block
    if block.q_norm is None or block.k_norm is None:
        return packed.flatten(2)
    raw = run.unrotated[:stop]
    to_q = through_weighted(model, one.form, packed[:, :, :H], raw[:, :H], run.weight("q_norm"))
    to_k = through_weighted(model, one.form, packed[:, :, H:], raw[:, H:], run.weight("k_norm"))
    return torch.cat((to_q, to_k), 2).flatten(2)
