"""A decoder's forward pass on processed weights: every site and head of a few prompts, nothing more.

Weights are as TransformerLens leaves them after processing (norms folded, writing weights and unembedding centred,
value biases folded), so the stream here is the stream that direct logit attribution is defined on.

Where what attention or MLP writes goes through a norm of its own (Gemma 2 and 3, OLMo 2), a head's output is what it
adds to the stream with the scale of that norm held: its weights are in W_O, and z is divided by its scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.model.attention import mixed
from repro.model.decoder import Attention, Model, Rotary
from repro.model.linear import linear


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


def read(model: Model, x: Tensor) -> Tensor:
    """Return what attention and MLP read of the stream x [..., D]: after the (weightless) norm, where they have one."""
    return normed(model, x) if model.pre_norm else x


def read_scale(model: Model, x: Tensor) -> Tensor:
    """Return by what attention and MLP divide x [..., D]: `norm_scale`, or 1 where they read through no norm."""
    return norm_scale(model, x) if model.pre_norm else torch.ones_like(x[..., 0])


def post_gain(model: Model, out: Tensor, weights: Tensor | None) -> Tensor:
    """Return one over the scale of a norm after attention or MLP; out [..., D]: what it reads, times its weights."""
    if weights is None:
        return torch.ones_like(out[..., 0])
    return torch.rsqrt((out / weights).square().mean(-1) + model.eps)


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
    x = read(model, resid)
    qkv = linear(x.reshape(B * P, -1), block.W_QKV, block.b_QKV).view(B, P, -1, shape.d_head)
    q, k, v = qkv.split((shape.n_heads, shape.n_kv_heads, shape.n_kv_heads), dim=2)
    if block.q_norm is not None and block.k_norm is not None:
        q, k = (F.rms_norm(x, w.shape, w, model.eps) for x, w in ((q, block.q_norm), (k, block.k_norm)))
    rotary = model.rotary_of(layer)
    if rotary is not None:
        q, k = rotate(rotary, q).to(v.dtype), rotate(rotary, k).to(v.dtype)
    q, k, v, z = (part.to(resid.dtype) for part in (q, k, v, mixed(model, layer, q, k, v)))
    gain = attention_gain(model, layer, z)
    return Attention(q, k, v, z if block.attn_post is None else z * gain[..., None, None], gain)


def attention_gain(model: Model, layer: int, mix: Tensor) -> Tensor:
    """Return one over the scale of the norm after a layer's attention [B, P]; mix: the mixed values [B, P, H, K]."""
    weights = model.blocks[layer].attn_post
    return post_gain(model, mix[..., 0, :] if weights is None else attn_out(model, layer, mix), weights)


def mlp(model: Model, layer: int, resid: Tensor) -> Tensor:
    """Return the output of one layer's MLP reading `resid` [B, P, D], bias included."""
    return mlp_of_normed(model, layer, read(model, resid))


def mlp_of_normed(model: Model, layer: int, read: Tensor, gain: Tensor | None = None) -> Tensor:
    """Return the output of one layer's MLP whose norm has been applied already: `read` [B, P, D].

    gain: one over the scale of the norm after it [B, P], if not its own (`mlp_gain`).
    """
    out, weights = mlp_unscaled(model, layer, read), model.blocks[layer].mlp_post
    if weights is None:
        return out
    return out * (post_gain(model, out, weights) if gain is None else gain)[..., None]


def mlp_gain(model: Model, layer: int, resid: Tensor) -> Tensor:
    """Return one over the scale of the norm after a layer's MLP that reads `resid` [..., D]; 1 where there is none."""
    weights = model.blocks[layer].mlp_post
    return post_gain(model, resid if weights is None else mlp_unscaled(model, layer, read(model, resid)), weights)


def mlp_unscaled(model: Model, layer: int, read: Tensor) -> Tensor:
    """Return what one layer's MLP writes of `read` [..., D], not yet divided by the scale of the norm after it."""
    block = model.blocks[layer]
    x = read.reshape(-1, read.shape[-1])
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
