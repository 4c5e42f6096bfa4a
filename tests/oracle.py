"""A second, plain forward pass in numpy, written from the formulas alone: one head and one prompt at a time.

Nothing here calls the package: a model's tensors are read as plain arrays, patterns are explicit [pos, pos] matrices,
and edits are made where they are defined (in the value input, in one position's query, key and value), not by algebra.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import erf

Array = np.ndarray


@dataclass(frozen=True)
class Edit:
    """What is taken out of the value input of every head of one layer, or of its MLP's input: removed [B, P, D].

    The scale of what is left is that of the stream with it (`frozen`), its own, or one that is given; so is that of a
    norm of what the layer then writes, if there is one.
    """

    layer: int
    removed: Array
    scale: str = "frozen"
    mlp: bool = False
    given: Array | None = None  # [B, P]
    given_after: Array | None = None  # [B, P]

    def read(self, model: Any, x: Array) -> Array:
        """What the norm makes of the stream x [B, P, D] without what is removed."""
        scale = read_scale(model, x if self.scale == "frozen" else x - self.removed)
        return normed(model, x - self.removed, scale if self.given is None else self.given)

    def scale_after(self, clean: Array, own: Array) -> Array:
        """The scale of the norm after the layer [B, P]: of what it writes without the edit, or with it."""
        if self.given_after is not None:
            return self.given_after
        return clean if self.scale == "frozen" else own


@dataclass(frozen=True)
class Run:
    """Everything of one pass; heads without b_O, MLPs with their bias."""

    token_part: Array  # [B, P, D]
    position_part: Array  # [B, P, D]
    sites: Array  # [2L+1, B, P, D]
    heads: Array  # [L, H, B, P, D]
    mlps: Array  # [L, B, P, D]
    patterns: Array  # [L, H, B, P, P]
    scales: Array  # [L, B, P]
    scale_final: Array  # [B, P]
    logits: Array  # [B, P, V]
    q: Array  # [L, H, B, P, K], rotated
    k: Array  # [L, H, B, P, K], rotated, shared key heads repeated
    v: Array  # [L, H, B, P, K]
    scales_after: Array  # [L, 2, B, P]: of norms after attention and MLP, 1 where there are none


def plain(tensor: Any) -> Array:
    """A tensor as a float64 array."""
    return tensor.detach().cpu().numpy().astype(np.float64)


def activation(name: str, x: Array) -> Array:
    """The nonlinearities of the models here, from their definitions."""
    if name == "gelu":
        return x * (1 + erf(x / np.sqrt(2))) / 2
    if name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    silu = x / (1 + np.exp(-x))
    made = {"relu": np.maximum(x, 0), "relu2": np.maximum(x, 0) ** 2, "silu": silu, "swish": silu}
    return (made | {"quick_gelu": x / (1 + np.exp(-1.702 * x))})[name]


def scale_of(model: Any, x: Array) -> Array:
    """The layer norm's denominator at each position: [B, P] of [B, P, D]."""
    y = x - x.mean(-1, keepdims=True) if model.center else x
    return np.sqrt((y * y).mean(-1) + model.eps)


def normed(model: Any, x: Array, scale: Array | None = None) -> Array:
    """(x - mean(x)) / scale, or x / scale for RMSNorm; its own scale unless one is given."""
    scale = scale_of(model, x) if scale is None else scale
    return (x - x.mean(-1, keepdims=True) if model.center else x) / scale[..., None]


def read_scale(model: Any, x: Array) -> Array:
    """What attention and MLP divide the stream by: [B, P] of [B, P, D]; 1 where they read through no norm."""
    return scale_of(model, x) if model.pre_norm else np.ones(x.shape[:-1])


def read(model: Any, x: Array) -> Array:
    """What attention and MLP read of the stream."""
    return normed(model, x, read_scale(model, x))


def post_scale(model: Any, out: Array, weights: Any) -> Array:
    """The scale of a norm after attention or MLP: [B, P] of what it reads, times its weights [B, P, D]."""
    if weights is None:
        return np.ones(out.shape[:-1])
    return np.sqrt(((out / plain(weights)) ** 2).mean(-1) + model.eps)


def rotary_of(model: Any, layer: int) -> Any:
    """The tables of a layer: layers with a window may have their own."""
    return model.rotary_local if model.blocks[layer].window is not None and model.rotary_local else model.rotary


def rotated(rotary: Any, x: Array) -> Array:
    """[P, K] with pair after pair turned by the position's angle, as complex numbers."""
    turn = plain(rotary.cos)[: len(x)] + 1j * plain(rotary.sin)[: len(x)]
    pairs, out = turn.shape[1], x.copy()
    for pair in range(pairs):
        a, b = (2 * pair, 2 * pair + 1) if rotary.adjacent else (pair, pair + pairs)
        turned = (x[:, a] + 1j * x[:, b]) * turn[:, pair]
        out[:, a], out[:, b] = turned.real, turned.imag
    return out


def pattern_of(model: Any, layer: int, q: Array, k: Array) -> Array:
    """The causal attention pattern [P, P] of queries and keys [P, K] within the layer's window, row by row."""
    pattern = np.zeros((len(q), len(q)))
    for t in range(len(q)):
        first = max(0, t + 1 - (model.blocks[layer].window or len(q)))
        scores = k[first : t + 1] @ q[t] * model.softmax_scale
        if model.score_cap is not None:
            scores = model.score_cap * np.tanh(scores / model.score_cap)
        weights = np.exp(scores - scores.max())
        pattern[t, first : t + 1] = weights / weights.sum()
    return pattern


def head_weights(model: Any, layer: int, head: int) -> dict[str, Array]:
    """One head's own matrices, cut out of the packed ones: W_Q, W_K, W_V [D, K], their biases [K], and W_O [K, D]."""
    block, shape = model.blocks[layer], model.shape
    K, shared = shape.d_head, head // (shape.n_heads // shape.n_kv_heads)
    starts = {"Q": head, "K": shape.n_heads + shared, "V": shape.n_heads + shape.n_kv_heads + shared}
    W, b = plain(block.W_QKV), plain(block.b_QKV)
    cut = {name: slice(start * K, start * K + K) for name, start in starts.items()}
    found = {f"W_{name}": W[:, at] for name, at in cut.items()} | {f"b_{name}": b[at] for name, at in cut.items()}
    return found | {"W_O": plain(block.W_O)[head]}


def mlp_out(model: Any, layer: int, x: Array, edits: tuple[Edit, ...] = ()) -> tuple[Array, Array]:
    """What an MLP writes when it reads the stream x [B, P, D], bias included, and the scale of the norm after it."""
    post = model.blocks[layer].mlp_post
    out = mlp_unscaled(model, layer, read(model, x))
    scale = post_scale(model, out, post)
    for edit in edits:
        if edit.mlp and edit.layer == layer:
            out = mlp_unscaled(model, layer, edit.read(model, x))
            scale = edit.scale_after(scale, post_scale(model, out, post))
    return out / scale[..., None], scale


def mlp_unscaled(model: Any, layer: int, seen: Array) -> Array:
    """What an MLP makes of what its norm lets it see, before any norm after it: [B, P, D]."""
    block = model.blocks[layer]
    inner = seen @ plain(block.W_in) + plain(block.b_in)
    if block.W_gate is None:
        inner = activation(model.act, inner)
    else:
        inner = inner * activation(model.act, seen @ plain(block.W_gate) + plain(block.b_gate))
    return inner @ plain(block.W_out) + plain(block.b_out)


def attention(model: Any, layer: int, x: Array, edits: tuple[Edit, ...]) -> tuple[Array, ...]:
    """q, k, v, patterns and head outputs of a layer that reads x [B, P, D], and the scale of the norm after it.

    All but the last with leading dimensions [H, B].
    """
    block, mine = model.blocks[layer], [edit for edit in edits if not edit.mlp and edit.layer == layer]
    heads = [head_weights(model, layer, head) for head in range(model.shape.n_heads)]
    seen, share = read(model, x), len(heads) // model.shape.n_kv_heads
    q, k, v = (np.array([seen @ w[f"W_{name}"] + w[f"b_{name}"] for w in heads]) for name in "QKV")
    if block.q_norm is not None:
        q, k = query_key_norm(model, q, block.q_norm, 1), query_key_norm(model, k, block.k_norm, share)
    rotary = rotary_of(model, layer)
    if rotary is not None:
        q, k = (np.array([[rotated(rotary, row) for row in rows] for rows in each]) for each in (q, k))
    patterns = np.array(
        [[pattern_of(model, layer, *pair) for pair in zip(*rows, strict=True)] for rows in zip(q, k, strict=True)]
    )
    W_O = np.array([w["W_O"] for w in heads])[:, None]
    out, post = patterns @ v @ W_O, block.attn_post
    scale = post_scale(model, out.sum(0), post)
    for edit in mine:
        v = np.array([edit.read(model, x) @ w["W_V"] + w["b_V"] for w in heads])
        out = patterns @ v @ W_O
        scale = edit.scale_after(scale, post_scale(model, out.sum(0), post))
    return q, k, v, patterns, out / scale[..., None], scale


def query_key_norm(model: Any, x: Array, weights: Any, share: int) -> Array:
    """Queries or keys [H, B, P, K] after their RMS norm: of every head, or of all together.

    share: how many of the heads have the same keys, which count once.
    """
    own = plain(weights)
    if own.ndim == 1:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + model.eps) * own
    scale = np.sqrt((x[::share] ** 2).mean((0, 3), keepdims=True) + model.eps)
    return x / scale * own.repeat(share, 0)[:, None, None]


def forward(model: Any, tokens: Array, *edits: Edit) -> Run:
    """The whole pass over tokens [B, P]; later layers run on whatever stream an edit leaves them."""
    token_part = plain(model.W_E)[tokens]
    position_part = np.zeros_like(token_part)
    if model.W_pos is not None:
        position_part += plain(model.W_pos)[: tokens.shape[1]]
    sites, heads, mlps, seen, scales, after = [token_part + position_part], [], [], [], [], []
    for layer in range(model.shape.n_layers):
        scales.append(read_scale(model, sites[-1]))
        q, k, v, pattern, out, attention_scale = attention(model, layer, sites[-1], edits)
        sites.append(sites[-1] + out.sum(0) + plain(model.blocks[layer].b_O))
        mlp, mlp_scale = mlp_out(model, layer, sites[-2] if model.parallel else sites[-1], edits)
        mlps.append(mlp)
        sites.append(sites[-1] + mlp)
        heads.append(out)
        after.append((attention_scale, mlp_scale))
        seen.append((q, k, v, pattern))
    q, k, v, patterns = (np.array(each) for each in zip(*seen, strict=True))
    logits = normed(model, sites[-1]) @ plain(model.W_U) + plain(model.b_U)
    final = scale_of(model, sites[-1])
    arrays = (np.array(sites), np.array(heads), np.array(mlps), patterns, np.array(scales), final, logits, q, k, v)
    return Run(token_part, position_part, *arrays, np.array(after))


def written(run: Run, label: str) -> Array:
    """What a node wrote: [B, P, D]."""
    if label.startswith("MLP"):
        return run.mlps[int(label[3:])]
    layer, head = label[1:].split("H")
    return run.heads[int(layer), int(head)]


def ratio(a: Array, b: Array) -> Array:
    """PR(a, b) = <a, b> / <b, b> over the last axis, NaN where b = 0."""
    norm2 = (b * b).sum(-1)
    return np.where(norm2 > 0, (a * b).sum(-1) / np.where(norm2 > 0, norm2, 1), np.nan)


def v_composition(model: Any, run: Run, layer: int, head: int, writer: Array) -> Array:
    """sum_i A[t, i] LN_n(h_w)[i] W_V W_O with the clean pattern and the clean scales of layer n: [B, P, D]."""
    w = head_weights(model, layer, head)
    out = np.zeros_like(writer)
    for b in range(len(writer)):
        seen = normed(model, writer[b], run.scales[layer, b])
        for t in range(writer.shape[1]):
            for i in range(t + 1):
                out[b, t] += run.patterns[layer, head, b, t, i] * (seen[i] @ w["W_V"] @ w["W_O"])
    return out / run.scales_after[layer, 0, ..., None]


def mlp_path(model: Any, run: Run, layer: int, writer: Array) -> Array:
    """What an MLP writes because it reads the writer, its clean gates and scale held: [B, P, D]."""
    block, site = model.blocks[layer], run.sites[2 * layer + (0 if model.parallel else 1)]
    x, seen = read(model, site), normed(model, writer, read_scale(model, site))
    if block.W_gate is None:
        u = x @ plain(block.W_in) + plain(block.b_in)
        gate = activation(model.act, u) / u
    else:
        gate = activation(model.act, x @ plain(block.W_gate) + plain(block.b_gate))
    return (gate * (seen @ plain(block.W_in))) @ plain(block.W_out) / run.scales_after[layer, 1, ..., None]


def dla(model: Any, run: Run, vector: Array, u: Array) -> Array:
    """<(v - mean(v)) / scale_f, u> at every position: [B, P] of v and u [B, P, D]; no mean for RMSNorm."""
    centred = vector - vector.mean(-1, keepdims=True) if model.center else vector
    return (centred * u).sum(-1) / run.scale_final


def pair_direction(model: Any, first: Array, second: Array) -> Array:
    """u = W_U[:, first] - W_U[:, second]: [..., D] of token ids."""
    W_U = plain(model.W_U)
    return np.moveaxis(W_U[:, first], 0, -1) - np.moveaxis(W_U[:, second], 0, -1)


def summands(model: Any, run: Run, site: int) -> dict[str, Array]:
    """Everything written before a site, by name: [B, P, D] each."""
    parts = {"tokens": run.token_part, "positions": run.position_part}
    for layer in range(model.shape.n_layers):
        if site >= 2 * layer + 1:
            parts |= {f"L{layer}H{head}": out for head, out in enumerate(run.heads[layer])}
            parts[f"b_O{layer}"] = np.broadcast_to(plain(model.blocks[layer].b_O), run.token_part.shape)
        if site >= 2 * layer + 2:
            parts[f"MLP{layer}"] = run.mlps[layer]
    return parts
