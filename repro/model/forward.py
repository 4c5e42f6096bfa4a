"""A decoder's forward pass on processed weights: every site and head of a few prompts, nothing more.

Weights are as TransformerLens leaves them after processing (norms folded, writing weights and unembedding centred,
value biases folded), so the stream here is the stream that direct logit attribution is defined on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.model.folder import Shape
from repro.model.linear import linear


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding: tables [n_ctx, rotated/2] and which dimensions pair up."""

    cos: Tensor
    sin: Tensor
    adjacent: bool
    """Pairs (2i, 2i+1) where true, (i, i + half) where false."""


@dataclass(frozen=True)
class Block:
    """Processed weights of one layer. H heads, G key/value heads, K = d_head, D = d_model, M = d_mlp.

    The products of the forward are computed in the type of W_QKV; W_V and W_O are those that measures read.
    """

    W_QKV: Tensor  # [D, (H + 2G) K]
    b_QKV: Tensor  # [(H + 2G) K]
    W_V: Tensor  # [G, D, K]
    W_O: Tensor  # [H, K, D]
    b_O: Tensor  # [D]
    W_in: Tensor  # [D, M]
    b_in: Tensor  # [M]
    W_gate: Tensor | None  # [D, M]
    b_gate: Tensor | None  # [M]
    W_out: Tensor  # [M, D]
    b_out: Tensor  # [D]
    q_norm: Tensor | None = None  # [K]
    k_norm: Tensor | None = None  # [K]
    """Weights of RMS norms of every query and key before rotation, where the model has them."""
    rotated: bool = True
    """Whether queries and keys of this layer are rotated, if the model has rotary positions."""


@dataclass(frozen=True)
class Model:
    """A decoder with processed weights."""

    shape: Shape
    center: bool
    """LayerNorm subtracts the mean; RMSNorm does not."""
    eps: float
    act: str
    softmax_scale: float
    W_E: Tensor  # [V, D]
    W_pos: Tensor | None  # [n_ctx, D]
    rotary: Rotary | None
    blocks: tuple[Block, ...]
    W_U: Tensor  # [D, V]
    b_U: Tensor  # [V]
    parallel: bool = False
    """Attention and MLP of a layer both read resid_pre; else the MLP reads resid_mid."""
    longest: int | None = None
    """Positions up to which it was compared with the original; None: what binds anywhere in its context was refused."""

    def mlp_site(self, layer: int) -> int:
        """Return which site the MLP of a layer reads."""
        return 2 * layer if self.parallel else 2 * layer + 1


@dataclass(frozen=True)
class Attention:
    """What the heads of one layer saw and wrote: q [B,P,H,K], k and v [B,P,G,K] (q and k rotated), z [B,P,H,K]."""

    q: Tensor
    k: Tensor
    v: Tensor
    z: Tensor


def norm_scale(model: Model, x: Tensor) -> Tensor:
    """Return the denominator of the layer norm of x [..., D]: sqrt(mean(x²) + eps), x centred first for LayerNorm."""
    if model.center:
        # The norm's own by-product: a sixth of the time of a variance.
        return torch.native_layer_norm(x, (x.shape[-1],), None, None, model.eps)[2].squeeze(-1).reciprocal()
    return torch.sqrt(x.square().mean(dim=-1) + model.eps)


def normed(model: Model, x: Tensor) -> Tensor:
    """Return x [..., D] after the (weightless) norm."""
    if model.center:
        return F.layer_norm(x, (x.shape[-1],), eps=model.eps)
    return F.rms_norm(x, (x.shape[-1],), eps=model.eps)


def embed(model: Model, tokens: Tensor) -> Tensor:
    """Return resid_pre0 [B, P, D] of tokens [B, P]."""
    x = F.embedding(tokens, model.W_E)
    return x if model.W_pos is None else x + model.W_pos[: tokens.shape[1]]


def rotate(rotary: Rotary, x: Tensor) -> Tensor:
    """Return x [B, P, heads, K] with its leading dimensions rotated by position."""
    half = rotary.cos.shape[1]
    cos, sin = rotary.cos[: x.shape[1], None, :], rotary.sin[: x.shape[1], None, :]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    if rotary.adjacent:
        a, b = turned[..., 0::2], turned[..., 1::2]
        out = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = turned[..., :half], turned[..., half:]
        out = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return torch.cat((out, rest), dim=-1) if rest.shape[-1] else out


def attend(model: Model, layer: int, resid: Tensor) -> Attention:
    """Return the attention of one layer reading `resid` [B, P, D]: queries, keys, values, and the heads' z."""
    block, shape = model.blocks[layer], model.shape
    B, P, _ = resid.shape
    x = normed(model, resid)
    qkv = linear(x.view(B * P, -1), block.W_QKV, block.b_QKV).view(B, P, -1, shape.d_head)
    q, k, v = qkv.split((shape.n_heads, shape.n_kv_heads, shape.n_kv_heads), dim=2)
    if block.q_norm is not None and block.k_norm is not None:
        q, k = (F.rms_norm(x, x.shape[-1:], w, model.eps) for x, w in ((q, block.q_norm), (k, block.k_norm)))
    if model.rotary is not None and block.rotated:
        q, k = rotate(model.rotary, q).to(v.dtype), rotate(model.rotary, k).to(v.dtype)
    z = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        is_causal=True,
        scale=model.softmax_scale,
        enable_gqa=shape.n_kv_heads != shape.n_heads,
    ).transpose(1, 2)
    return Attention(*(part.to(resid.dtype) for part in (q, k, v, z)))


def mlp(model: Model, layer: int, resid: Tensor) -> Tensor:
    """Return the output of one layer's MLP reading `resid` [B, P, D], bias included."""
    return mlp_of_normed(model, layer, normed(model, resid))


def mlp_of_normed(model: Model, layer: int, read: Tensor) -> Tensor:
    """Return the output of one layer's MLP whose norm has been applied already: `read` [B, P, D]."""
    block = model.blocks[layer]
    x = read.view(-1, read.shape[-1])
    if block.W_gate is None or block.b_gate is None:
        hidden = linear(x, block.W_in, block.b_in, model.act)
    else:
        hidden = linear(x, block.W_in, block.b_in).mul_(linear(x, block.W_gate, block.b_gate, model.act))
    return linear(hidden, block.W_out, block.b_out).to(read.dtype).view_as(read)


def attn_out(model: Model, layer: int, z: Tensor) -> Tensor:
    """Return what one layer's attention adds to the stream, `b_O` included: [B, P, D] of z [B, P, H, K]."""
    block = model.blocks[layer]
    flat = linear(z.reshape(-1, z.shape[2] * z.shape[3]), block.W_O.flatten(0, 1).to(block.W_QKV.dtype), block.b_O)
    return flat.to(z.dtype).view(z.shape[0], z.shape[1], -1)


@dataclass(frozen=True)
class Trace:
    """A clean pass over B prompts of P tokens.

    sites [S, B, P, D]: the 2L+1 residual-stream states, then free slots for directions; z [B, P, L H, K]: of all heads,
    layer after layer, which those of `attention` are parts of; mlp_out: per layer [B, P, D]; attention: per
    layer; scale_final [B, P]. In parallel blocks no component reads resid_mid, which TransformerLens does not have
    there: it is resid_pre plus what the attention wrote, so that every site is the sum of what was written before it.
    """

    sites: Tensor
    z: Tensor
    attention: tuple[Attention, ...]
    mlp_out: tuple[Tensor, ...]
    scale_final: Tensor

    @property
    def final(self) -> Tensor:
        """Return the last site, resid_post{L-1}: [B, P, D]."""
        return self.sites[2 * len(self.mlp_out)]


def trace(model: Model, tokens: Tensor, slots: int = 0) -> Trace:
    """Return one clean forward pass of tokens [B, P], stopped before the unembedding.

    slots: free rows behind the sites, so that further directions can share one projection call with them.
    """
    L, H = model.shape.n_layers, model.shape.n_heads
    sites = model.W_E.new_empty((2 * L + 1 + slots, *tokens.shape, model.shape.d_model))
    z = model.W_E.new_empty((*tokens.shape, L * H, model.shape.d_head))
    sites[0] = embed(model, tokens)
    attention, mlps = [], []
    for layer in range(L):
        own = z[:, :, layer * H : (layer + 1) * H]
        seen = attend(model, layer, sites[2 * layer])
        seen = replace(seen, z=own.copy_(seen.z))
        torch.add(sites[2 * layer], attn_out(model, layer, seen.z), out=sites[2 * layer + 1])
        out = mlp(model, layer, sites[model.mlp_site(layer)])
        torch.add(sites[2 * layer + 1], out, out=sites[2 * layer + 2])
        attention.append(seen)
        mlps.append(out)
    return Trace(sites, z, tuple(attention), tuple(mlps), norm_scale(model, sites[2 * L]))


def forward_from(model: Model, layer: int, resid_pre: Tensor, resid_mid: Tensor) -> Tensor:
    """Return the sites from `resid_mid{layer}` on, when the stream there is `resid_mid` [B, P, D]: [S', B, P, D].

    Everything after that site runs normally, with its own patterns and norm scales. resid_pre [B, P, D]: the stream
    before the layer, which its MLP reads where blocks are parallel.
    """
    first = 2 * layer
    sites = torch.empty(
        (2 * (model.shape.n_layers - layer) + 1, *resid_mid.shape), dtype=resid_mid.dtype, device=resid_mid.device
    )
    sites[0], sites[1] = resid_pre, resid_mid
    for n in range(layer, model.shape.n_layers):
        pre, mid, post = sites[2 * n - first : 2 * n - first + 3]
        if n > layer:
            torch.add(pre, attn_out(model, n, attend(model, n, pre).z), out=mid)
        torch.add(mid, mlp(model, n, sites[model.mlp_site(n) - first]), out=post)
    return sites[1:]


def logits(model: Model, resid: Tensor) -> Tensor:
    """Return the logits [..., V] of final residuals [..., D]; only for short prompts, never for whole contexts."""
    return normed(model, resid) @ model.W_U + model.b_U
