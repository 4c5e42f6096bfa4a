"""Untrained twins and planted erasers: models in which it is known what a scan may find.

An untrained twin has the architecture of a model and random weights: whatever a scan claims in it is a false claim. A
planted eraser is a component of such a model that reads the space in which one head writes, with orthonormal basis U:

    MLP:   hidden units +u, -u with outputs -a u, +a u for every u in U: act(x) - act(-x) = x for GELU, so that they
           write -a LN(stream) U^T U; of a gated MLP, one unit for every u with a constant gate
    head:  W_V = U^T, W_O = -a U: it writes the same, averaged by its attention pattern. W_Q = W_K = 2 U^T makes it
           attend to its own position and to those that are alike in U

Two components oppose a head in parallel, nothing flowing from one to the other: they erase nothing.

    copy:  a head with the writer's own W_QKV, and -a times its W_O: it reads what the writer has read
    bias:  an MLP with -a times the writer's mean output added to its bias

What a component reads does not depend on its own `a`: path share and clean share are linear in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from repro.labels import head_index, is_head, layer_of
from repro.model.decoder import Block, Model, Rotary
from repro.model.folder import Shape
from repro.model.forward import trace
from repro.model.paths import centred


@dataclass(frozen=True)
class Kind:
    """What of an architecture is not a size."""

    center: bool
    """LayerNorm, which subtracts the mean; RMSNorm does not."""
    act: str
    gated: bool
    positional: bool
    """Learned positions that are added to the stream; else rotary ones."""
    narrow_writing: bool
    """Initialise what writes to the stream by one over the root of 2L narrower, as GPT-2 does."""


KINDS = {
    "gpt2": Kind(center=True, act="gelu_new", gated=False, positional=True, narrow_writing=True),
    "llama": Kind(center=False, act="silu", gated=True, positional=False, narrow_writing=False),
}


def untrained(shape: Shape, kind: Kind, seed: int, scale: float) -> Model:
    """Return a model of random processed weights: N(0, scale²), biases zero, norms without weights, float32.

    What writes to the stream is centred for LayerNorm, as processing does. Agreement: tests/scan/test_controls.py.
    """
    generator = torch.Generator().manual_seed(seed)
    s, D = shape, shape.d_model
    narrow = scale / (2 * s.n_layers) ** 0.5 if kind.narrow_writing else scale

    def drawn(*size: int, scale: float = scale) -> Tensor:
        return torch.randn(size, generator=generator) * scale

    def writing(*size: int, scale: float = narrow) -> Tensor:
        made = drawn(*size, scale=scale)
        return made - made.mean(-1, keepdim=True) if kind.center else made

    def block() -> Block:
        W_QKV = drawn(D, (s.n_heads + 2 * s.n_kv_heads) * s.d_head)
        return Block(
            W_QKV=W_QKV,
            b_QKV=torch.zeros(W_QKV.shape[1]),
            W_V=values_of(W_QKV, shape),
            W_O=writing(s.n_heads, s.d_head, D),
            b_O=torch.zeros(D),
            W_in=drawn(D, s.d_mlp),
            b_in=torch.zeros(s.d_mlp),
            W_gate=drawn(D, s.d_mlp) if kind.gated else None,
            b_gate=torch.zeros(s.d_mlp) if kind.gated else None,
            W_out=writing(s.d_mlp, D),
            b_out=torch.zeros(D),
        )

    W_E = writing(s.d_vocab, D, scale=scale)
    return Model(
        shape=shape,
        center=kind.center,
        eps=1e-5,
        act=kind.act,
        softmax_scale=s.d_head**-0.5,
        W_E=W_E,
        W_pos=writing(s.n_ctx, D, scale=scale) if kind.positional else None,
        rotary=None if kind.positional else rotary_tables(shape),
        blocks=tuple(block() for _ in range(s.n_layers)),
        W_U=(W_E - W_E.mean(0)).T,
        b_U=torch.zeros(s.d_vocab),
    )


def twin(model: Model, seed: int, scale: float | None) -> Model:
    """Return the untrained twin of a model at hand: all that is not a weight is kept, and weights are drawn anew.

    N(0, scale²), what writes to the stream narrower where there is LayerNorm, as `untrained` does it; None: every
    matrix, queries, keys and values apart, with the root mean square that the model's own has, which holds the
    weights of norms before attention and MLP. Biases are zero, weights of norms of queries and keys and of those
    after attention and MLP one: the root mean square of a matrix before such a norm is that without them. What the
    original multiplies by (`Scales`, a layer's factor of scores) multiplies what is drawn, and is part of a root mean
    square. Embedding and unembedding are drawn apart, where the model ties them, too.
    Agreement: tests/scan/test_twin.py.
    """
    generator, shape = torch.Generator().manual_seed(seed), model.shape
    narrow = (2 * shape.n_layers) ** -0.5 if model.center else 1.0
    residual = model.scales.residual

    def drawn(given: Tensor, of: float = 1.0) -> Tensor:
        size = of * scale if scale is not None else float(given.float().square().mean().sqrt())
        return (torch.randn(given.shape, generator=generator) * size).to(given)

    def writing(given: Tensor, post: Tensor | None = None) -> Tensor:
        plain = given if post is None else given.float() / post.float() * residual
        return centred(model, drawn(plain, narrow * residual).to(given))

    def embedding(given: Tensor, of: float = 1.0) -> Tensor:
        return centred(model, drawn(given, of))

    def ones(given: Tensor | None, of: float) -> Tensor | None:
        return None if given is None else torch.full_like(given, of)

    def block(given: Block) -> Block:
        queries, keys = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
        W_Q, W_K, W_V = given.W_QKV.split((queries, keys, keys), 1)
        factor = given.score_factor if given.q_norm is None else 1.0
        W_QKV = torch.cat((drawn(W_Q, factor), drawn(W_K), drawn(W_V)), 1)
        return replace(
            given,
            W_QKV=W_QKV,
            b_QKV=torch.zeros_like(given.b_QKV),
            W_V=values_of(W_QKV, shape).to(given.W_V),
            W_O=writing(given.W_O, given.attn_post),
            b_O=torch.zeros_like(given.b_O),
            W_in=drawn(given.W_in),
            b_in=torch.zeros_like(given.b_in),
            W_gate=None if given.W_gate is None else drawn(given.W_gate),
            b_gate=None if given.b_gate is None else torch.zeros_like(given.b_gate),
            W_out=writing(given.W_out, given.mlp_post),
            b_out=torch.zeros_like(given.b_out),
            q_norm=ones(given.q_norm, given.score_factor),
            k_norm=ones(given.k_norm, 1.0),
            attn_post=ones(given.attn_post, residual),
            mlp_post=ones(given.mlp_post, residual),
        )

    return replace(
        model,
        W_E=embedding(model.W_E, model.scales.embedding),
        W_pos=None if model.W_pos is None else embedding(model.W_pos),
        blocks=tuple(map(block, model.blocks)),
        W_U=drawn(model.W_U, model.scales.logits),
        b_U=torch.zeros_like(model.b_U),
    )


def rotary_tables(shape: Shape) -> Rotary:
    """Return the usual tables: all dimensions of a head turn, base 10,000."""
    half = shape.d_head // 2
    speed = 10_000.0 ** -(torch.arange(half) / half)
    angles = torch.arange(shape.n_ctx)[:, None] * speed
    return Rotary(angles.cos(), angles.sin(), adjacent=False)


def values_of(W_QKV: Tensor, shape: Shape) -> Tensor:
    """Return W_V [G, D, K], the last columns of W_QKV [D, (H + 2G) K]."""
    columns = W_QKV[:, -shape.n_kv_heads * shape.d_head :]
    return columns.unflatten(1, (shape.n_kv_heads, shape.d_head)).transpose(0, 1).contiguous()


def space_of(model: Model, writer: str) -> Tensor:
    """Return an orthonormal basis U [K, D] of the space in which a head writes, as later norms read it."""
    layer, head = head_index(writer)
    rows = centred(model, model.blocks[layer].W_O[head])
    return torch.linalg.qr(rows.T.double())[0].T.to(rows.dtype)


def planted(model: Model, writer: str, components: Sequence[str]) -> Model:
    """Return the model with erasers of one head, a = 1. Several heads of one layer read half of its space each.

    Heads that share a key/value head with an eraser get its values, too, and keep their own output weights: only one
    of them can be an eraser. Agreement: tests/scan/test_controls.py.
    """
    U, per = space_of(model, writer), model.shape.n_heads // model.shape.n_kv_heads
    taken = [(layer, head // per) for layer, head in map(head_index, filter(is_head, components))]
    if len(set(taken)) < len(taken):
        raise ValueError(f"two of {list(components)} share a key/value head")
    for component in components:
        layer = layer_of(component)
        block, alike = model.blocks[layer], [c for c in components if is_head(c) and layer_of(c) == layer]
        if is_head(component):
            part = U if len(alike) == 1 else U.roll(alike.index(component), 0)[: len(U) // 2]
            made = _head(model, block, head_index(component)[1], U, part)
        else:
            made = _mlp(block, U)
        model = _with(model, component, made)
    return model


def copied(model: Model, writer: str, component: str) -> Model:
    """Return the model with a head that reads what another one reads, and writes minus what that one writes."""
    (m, w), (n, c), shape = head_index(writer), head_index(component), model.shape
    source, block = model.blocks[m], model.blocks[n]
    W_QKV, b_QKV, W_O = block.W_QKV.clone(), block.b_QKV.clone(), block.W_O.clone()
    for theirs, ours in zip(_columns(shape, w), _columns(shape, c), strict=True):
        W_QKV[:, ours], b_QKV[ours] = source.W_QKV[:, theirs], source.b_QKV[theirs]
    W_O[c] = -source.W_O[w]
    return _with(model, component, replace(block, W_QKV=W_QKV, b_QKV=b_QKV, W_V=values_of(W_QKV, shape), W_O=W_O))


def opposed(model: Model, writer: str, component: str, tokens: Tensor, strength: float) -> Model:
    """Return the model with an MLP whose bias opposes a head by a constant. tokens: [B, P], for the head's mean."""
    (layer, head), block = head_index(writer), model.blocks[layer_of(component)]
    with torch.no_grad():
        mean = (trace(model, tokens).attention[layer].z[:, :, head] @ model.blocks[layer].W_O[head]).mean((0, 1))
    return _with(model, component, replace(block, b_out=block.b_out - strength * mean))


def scaled(model: Model, component: str, factor: float) -> Model:
    """Return the model with what was planted into a component multiplied by a factor."""
    block = model.blocks[layer_of(component)]
    if is_head(component):
        W_O, head = block.W_O.clone(), head_index(component)[1]
        W_O[head] *= factor
        return _with(model, component, replace(block, W_O=W_O))
    W_out = block.W_out.clone()
    W_out[: _units(model)] *= factor
    return _with(model, component, replace(block, W_out=W_out))


def _units(model: Model) -> int:
    """Return how many hidden units an eraser takes."""
    return model.shape.d_head * (1 if model.blocks[0].W_gate is not None else 2)


def _with(model: Model, component: str, block: Block) -> Model:
    blocks = list(model.blocks)
    blocks[layer_of(component)] = block
    return replace(model, blocks=tuple(blocks))


def _columns(shape: Shape, head: int) -> tuple[slice, slice, slice]:
    """Return which columns of W_QKV are a head's queries, and its key/value head's keys and values."""
    H, G, K = shape.n_heads, shape.n_kv_heads, shape.d_head
    group = head * G // H
    return tuple(slice(i * K, (i + 1) * K) for i in (head, H + group, H + G + group))  # type: ignore[return-value]


def _head(model: Model, block: Block, head: int, space: Tensor, U: Tensor) -> Block:
    """Return the block with a head that erases the directions U, part of the space that it attends by."""
    W_QKV, W_O, n = block.W_QKV.clone(), block.W_O.clone(), len(U)
    queries, keys, values = _columns(model.shape, head)
    W_QKV[:, queries] = W_QKV[:, keys] = 2 * space.T
    W_QKV[:, values] = 0
    W_QKV[:, values][:, :n] = U.T
    W_O[head] = 0
    W_O[head, :n] = -U
    return replace(block, W_QKV=W_QKV, W_V=values_of(W_QKV, model.shape), W_O=W_O)


def _mlp(block: Block, U: Tensor) -> Block:
    W_in, W_out, n = block.W_in.clone(), block.W_out.clone(), len(U)
    W_in[:, :n], W_out[:n] = U.T, -U
    if block.W_gate is None or block.b_gate is None:
        W_in[:, n : 2 * n], W_out[n : 2 * n] = -U.T, U
        return replace(block, W_in=W_in, W_out=W_out)
    W_gate, b_gate = block.W_gate.clone(), block.b_gate.clone()
    W_gate[:, :n], b_gate[:n] = 0, 1
    return replace(block, W_in=W_in, W_out=W_out, W_gate=W_gate, b_gate=b_gate)
