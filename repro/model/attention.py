"""Attention weights of one layer: causal, within the layer's window, of scores that may be capped.

A[t, i] = softmax over i of cap tanh(q_t . k_i softmax_scale / cap), for t - window < i <= t; without a cap the scores
are as they are, without a window all i <= t. Everything that needs a pattern makes it here, but for the kernel of
V-composition, which makes plain causal ones (`is_plain`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.model.decoder import Attention, Model


def is_plain(model: Model, layer: int, length: int) -> bool:
    """Return whether a layer's pattern over prompts of some length is the softmax of its causal scores."""
    window = model.blocks[layer].window
    return model.score_cap is None and (window is None or window >= length)


def capped(model: Model, scores: Tensor) -> Tensor:
    """Return cap tanh(scores / cap), or the scores of a model that does not cap them."""
    if model.score_cap is None:
        return scores
    share = scores / model.score_cap
    # In place where no gradient is wanted, of which the backward pass would need what is overwritten.
    return share.tanh() * model.score_cap if share.requires_grad else share.tanh_().mul_(model.score_cap)


def hidden_keys(model: Model, layer: int, positions: Tensor, length: int) -> Tensor:
    """Return which of the first `length` positions the queries at some positions [T] do not read: bool [T, length]."""
    back = positions[:, None] - torch.arange(length, device=positions.device)
    window = model.blocks[layer].window
    return back < 0 if window is None else (back < 0) | (back >= window)


def weights(model: Model, layer: int, scores: Tensor, positions: Tensor) -> Tensor:
    """Return attention weights [..., T, I] of scores q . k softmax_scale of queries at positions [T] with all keys.

    Agreement: tests/model/test_architectures.py.
    """
    hidden = hidden_keys(model, layer, positions.to(scores.device), scores.shape[-1])
    return capped(model, scores).masked_fill(hidden, -torch.inf).softmax(-1)


def pattern_of(model: Model, layer: int, seen: Attention, row: int, positions: Tensor) -> Tensor:
    """Return the attention pattern of what a layer's heads saw, from some destinations of one prompt: [H, T, P]."""
    keys = seen.k[row].repeat_interleave(model.shape.n_heads // model.shape.n_kv_heads, 1)
    scores = torch.einsum("thk,ihk->hti", seen.q[row, positions], keys) * model.softmax_scale
    return weights(model, layer, scores, positions)


def mixed(model: Model, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the values v [B, P, G, K], mixed by the pattern of every head: [B, P, H, K]; q as that, k as v.

    Capped scores are formed prompt by prompt: H P² of them at a time.
    """
    P, share = q.shape[1], q.shape[2] // k.shape[2]
    if model.score_cap is None:
        plain = is_plain(model, layer, P)
        positions = torch.arange(P, device=q.device)
        return F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=None if plain else ~hidden_keys(model, layer, positions, P),
            is_causal=plain,
            scale=model.softmax_scale,
            enable_gqa=share > 1,
        ).transpose(1, 2)
    rows = []
    for queries, keys, values in zip(q, k, v, strict=True):
        scores = torch.einsum("tgsk,igk->gsti", queries.unflatten(1, (-1, share)), keys)
        wide = torch.promote_types(scores.dtype, torch.float32)
        A = weights(model, layer, scores.to(wide) * model.softmax_scale, torch.arange(P, device=q.device))
        rows.append(torch.einsum("gsti,igk->tgsk", A.to(v.dtype), values).flatten(1, 2))
    return torch.stack(rows)
