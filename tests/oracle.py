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

    The scale of what is left is that of the stream with it (`frozen`), its own, or one that is given.
    """

    layer: int
    removed: Array
    scale: str = "frozen"
    mlp: bool = False
    given: Array | None = None  # [B, P]

    def read(self, model: Any, x: Array) -> Array:
        """What the norm makes of the stream x [B, P, D] without what is removed."""
        scale = scale_of(model, x) if self.scale == "frozen" else None
        return normed(model, x - self.removed, scale if self.given is None else self.given)


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


def rotated(rotary: Any, x: Array) -> Array:
    """[P, K] with pair after pair turned by the position's angle, as complex numbers."""
    turn = plain(rotary.cos)[: len(x)] + 1j * plain(rotary.sin)[: len(x)]
    pairs, out = turn.shape[1], x.copy()
    for pair in range(pairs):
        a, b = (2 * pair, 2 * pair + 1) if rotary.adjacent else (pair, pair + pairs)
        turned = (x[:, a] + 1j * x[:, b]) * turn[:, pair]
        out[:, a], out[:, b] = turned.real, turned.imag
    return out


def pattern_of(q: Array, k: Array, softmax_scale: float) -> Array:
    """The causal attention pattern [P, P] of queries and keys [P, K], row by row."""
    pattern = np.zeros((len(q), len(q)))
    for t in range(len(q)):
        scores = k[: t + 1] @ q[t] * softmax_scale
        weights = np.exp(scores - scores.max())
        pattern[t, : t + 1] = weights / weights.sum()
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


def mlp_out(model: Any, layer: int, x: Array, edits: tuple[Edit, ...] = ()) -> Array:
    """What an MLP writes when it reads the stream x [B, P, D], bias included."""
    block, read = model.blocks[layer], normed(model, x)
    for edit in edits:
        read = edit.read(model, x) if edit.mlp and edit.layer == layer else read
    inner = read @ plain(block.W_in) + plain(block.b_in)
    if block.W_gate is None:
        inner = activation(model.act, inner)
    else:
        inner = inner * activation(model.act, read @ plain(block.W_gate) + plain(block.b_gate))
    return inner @ plain(block.W_out) + plain(block.b_out)


def attention(model: Any, layer: int, x: Array, edits: tuple[Edit, ...]) -> tuple[Array, ...]:
    """q, k, v, patterns and head outputs of a layer that reads x [B, P, D], each with leading dimensions [H, B]."""
    value_input = normed(model, x)
    for edit in edits:
        value_input = edit.read(model, x) if not edit.mlp and edit.layer == layer else value_input
    parts: list[list[tuple[Array, ...]]] = []
    for head in range(model.shape.n_heads):
        w = head_weights(model, layer, head)
        parts.append([])
        for row, values in zip(normed(model, x), value_input, strict=True):
            q, k = row @ w["W_Q"] + w["b_Q"], row @ w["W_K"] + w["b_K"]
            if model.blocks[layer].q_norm is not None:
                q = q / np.sqrt((q * q).mean(-1, keepdims=True) + model.eps) * plain(model.blocks[layer].q_norm)
                k = k / np.sqrt((k * k).mean(-1, keepdims=True) + model.eps) * plain(model.blocks[layer].k_norm)
            if model.rotary is not None:
                q, k = rotated(model.rotary, q), rotated(model.rotary, k)
            v = values @ w["W_V"] + w["b_V"]
            pattern = pattern_of(q, k, model.softmax_scale)
            parts[head].append((q, k, v, pattern, pattern @ v @ w["W_O"]))
    return tuple(np.array([[row[item] for row in rows] for rows in parts]) for item in range(5))


def forward(model: Any, tokens: Array, *edits: Edit) -> Run:
    """The whole pass over tokens [B, P]; later layers run on whatever stream an edit leaves them."""
    token_part = plain(model.W_E)[tokens]
    position_part = np.zeros_like(token_part)
    if model.W_pos is not None:
        position_part += plain(model.W_pos)[: tokens.shape[1]]
    sites, heads, mlps, seen, scales = [token_part + position_part], [], [], [], []
    for layer in range(model.shape.n_layers):
        scales.append(scale_of(model, sites[-1]))
        q, k, v, pattern, out = attention(model, layer, sites[-1], edits)
        sites.append(sites[-1] + out.sum(0) + plain(model.blocks[layer].b_O))
        mlps.append(mlp_out(model, layer, sites[-2] if model.parallel else sites[-1], edits))
        sites.append(sites[-1] + mlps[-1])
        heads.append(out)
        seen.append((q, k, v, pattern))
    q, k, v, patterns = (np.array(each) for each in zip(*seen, strict=True))
    logits = normed(model, sites[-1]) @ plain(model.W_U) + plain(model.b_U)
    final = scale_of(model, sites[-1])
    arrays = (np.array(sites), np.array(heads), np.array(mlps), patterns, np.array(scales), final, logits, q, k, v)
    return Run(token_part, position_part, *arrays)


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
    """sum_i A[t, i] LN_n(h_w)[i] W_V W_O with the clean pattern and the clean scale of layer n: [B, P, D]."""
    w = head_weights(model, layer, head)
    out = np.zeros_like(writer)
    for b in range(len(writer)):
        read = normed(model, writer[b], run.scales[layer, b])
        for t in range(writer.shape[1]):
            for i in range(t + 1):
                out[b, t] += run.patterns[layer, head, b, t, i] * (read[i] @ w["W_V"] @ w["W_O"])
    return out


def mlp_path(model: Any, run: Run, layer: int, writer: Array) -> Array:
    """What an MLP writes because it reads the writer, its clean gates and scale held: [B, P, D]."""
    block, site = model.blocks[layer], run.sites[2 * layer + (0 if model.parallel else 1)]
    x, read = normed(model, site), normed(model, writer, scale_of(model, site))
    if block.W_gate is None:
        u = x @ plain(block.W_in) + plain(block.b_in)
        gate = activation(model.act, u) / u
    else:
        gate = activation(model.act, x @ plain(block.W_gate) + plain(block.b_gate))
    return (gate * (read @ plain(block.W_in))) @ plain(block.W_out)


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
