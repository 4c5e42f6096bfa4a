"""The kernels as plain einsum: the definition that every kernel is compared with, in any float dtype."""

import torch
from torch import Tensor

from repro.kernels import shapes


def projection(z: Tensor, W_O: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    """Compute inner products of every component with every head's output, and the heads' squared norms.

    num[s, h, b, t] = <of[s, b, t], z[b, t, h] W_O[h]>,  norm2[h, b, t] = |z[b, t, h] W_O[h]|^2
    (the projection ratio of arXiv 2310.07325, equation for PR(a, b), is num / norm2)

    z:   [prompt, pos, head, d_head]        W_O: [head, d_head, d_model]
    of:  [component, prompt, pos, d_model], in activation units
    Returns num [component, head, prompt, pos] and norm2 [head, prompt, pos] in squared activation units, float32 or
    wider; the ratio is the caller's, NaN where a head wrote nothing.
    Raises ShapeError naming both shapes if they do not fit. Agreement: tests/kernels/test_projection.py.
    """
    shapes.projection(z, W_O, of)
    dtype = shapes.at_least_fp32(z, W_O, of)
    heads = torch.einsum("bphk,hkd->hbpd", z.to(dtype), W_O.to(dtype))
    num = torch.einsum("sbpd,hbpd->shbp", of.to(dtype), heads)
    return num, torch.einsum("hbpd,hbpd->hbp", heads, heads)


def projection_onto_vectors(v: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    """Compute inner products of every component with vectors at every position, and the vectors' squared norms.

    num[s, m, b, t] = <of[s, b, t], v[m, b, t]>,  norm2[m, b, t] = |v[m, b, t]|^2
    (PR(a, b) of arXiv 2310.07325 is num / norm2)

    v:   [vector, prompt, pos, d_model]     of: [component, prompt, pos, d_model], in activation units
    Returns num [component, vector, prompt, pos] and norm2 [vector, prompt, pos], squared activation units, float32 or
    wider.
    Raises ShapeError naming both shapes if they do not fit. Agreement: tests/kernels/test_projection.py.
    """
    shapes.projection_onto_vectors(v, of)
    dtype = shapes.at_least_fp32(v, of)
    v = v.to(dtype)
    return torch.einsum("sbpd,mbpd->smbp", of.to(dtype), v), torch.einsum("mbpd,mbpd->mbp", v, v)


def gram(z: Tensor, W_O: Tensor, vectors: Tensor) -> Tensor:
    """Return inner products of all nodes with all nodes at every position.

    G[i, j, b, t] = <x_i[b, t], x_j[b, t]>, with the nodes x = the heads' outputs z[b, t, h] W_O[h], then the vectors
    (a site is the sum of the nodes written before it, so PR(site, w) of arXiv 2310.07325 is a sum of G / G[w, w])

    z:   [prompt, pos, head, d_head], heads of all layers       W_O: [head, d_head, d_model]
    vectors: [vector, prompt, pos, d_model]: embedding, positions, MLP outputs, biases; in activation units
    Returns G [node, node, prompt, pos] in squared activation units, float32 or wider.
    Raises ShapeError naming both shapes if they do not fit. Agreement: tests/kernels/test_gram.py.
    """
    shapes.gram(z, W_O, vectors)
    nodes = _nodes(z, W_O, vectors)
    return torch.einsum("ibpd,jbpd->ijbp", nodes, nodes)


def gram_sums(z: Tensor, W_O: Tensor, vectors: Tensor, strata: Tensor) -> Tensor:
    """Return inner products of all nodes with all nodes, summed over the positions of every stratum.

    sums[s, b, i, j] = sum_{t in stratum s of prompt b} <x_i[b, t], x_j[b, t]>, nodes as in `gram`

    z, W_O, vectors: as for `gram`          strata: [stratum, prompt, pos], bool; a position may be in several or none
    Returns sums [stratum, prompt, node, node] in squared activation units, float32 or wider; zero for a stratum
    without positions. What lies outside every stratum does not count, whatever it is.
    Raises ShapeError naming both shapes if they do not fit. Agreement: tests/kernels/test_gram.py.
    """
    shapes.gram_sums(z, W_O, vectors, strata)
    nodes = _nodes(z, W_O, vectors)
    inside = (nodes.masked_fill(~mask[..., None], 0) for mask in strata)
    return torch.stack([torch.einsum("ibpd,jbpd->bij", part, part) for part in inside])


def _nodes(z: Tensor, W_O: Tensor, vectors: Tensor) -> Tensor:
    """Return what every node wrote, [node, prompt, pos, d_model]: heads, then vectors."""
    dtype = shapes.at_least_fp32(z, W_O, vectors)
    heads = torch.einsum("bphk,hkd->hbpd", z.to(dtype), W_O.to(dtype))
    return torch.cat([heads, vectors.to(dtype)])


def v_composition(
    q: Tensor,
    k: Tensor,
    writer: Tensor,
    scale: Tensor,
    W_V: Tensor,
    W_O: Tensor,
    onto: Tensor | None,
    *,
    center: bool,
    total: bool = True,
    softmax_scale: float | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute what each head writes because a writer wrote: its normed output through the head's own OV circuit.

    vcomp[w, h, b, t] = sum_{i <= t} A[b, h, t, i] LN(writer)[w, b, i] W_V[h's group] W_O[h]
    with A = softmax of the causal scores q k^T softmax_scale, LN(x) = (x - mean(x) if center else x) / scale;
    dots[w, h, n, b, t] = <vcomp[w, h, b, t], onto[n, b, t]>,  total[w, b, t] = sum_h vcomp[w, h, b, t]
    (V-composition of arXiv 2310.07325, with the clean run's pattern and norm scale)

    q:      [prompt, pos, head, d_head]     k: [prompt, pos, group, d_head], rotary already applied
    writer: [writer, prompt, pos, d_model]  scale: [prompt, pos], the clean run's norm scale
    W_V:    [group, d_model, d_head]        W_O: [head, d_head, d_model]
    onto:   [direction, prompt, pos, d_model] or None      softmax_scale: d_head ** -0.5 if None
    Returns dots [writer, head, direction, prompt, pos] (None without onto) and total [writer, prompt, pos, d_model]
    (None unless asked), float32 or wider, in the writer's units (dots: times those of onto).
    Raises ShapeError naming both shapes if they do not fit. Agreement: tests/kernels/test_v_composition.py.
    """
    dims = shapes.v_composition(q, k, writer, scale, W_V, W_O, onto, total=total)
    dtype = shapes.at_least_fp32(q, k, writer, scale, W_V, W_O)
    group = dims["H"] // dims["G"]
    q, k, x, W_V, W_O = (tensor.to(dtype) for tensor in (q, k, writer, W_V, W_O))
    k, W_V = k.repeat_interleave(group, dim=2), W_V.repeat_interleave(group, dim=0)

    if center:
        x = x - x.mean(-1, keepdim=True)
    values = torch.einsum("wbpd,hdk->wbphk", x / scale.to(dtype)[..., None], W_V)
    scores = torch.einsum("bthk,bihk->bhti", q, k) * (dims["K"] ** -0.5 if softmax_scale is None else softmax_scale)
    future = torch.ones(dims["P"], dims["P"], dtype=torch.bool, device=q.device).triu(1)
    pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
    z = torch.einsum("bhti,wbihk->wbthk", pattern, values)
    vcomp = torch.einsum("wbthk,hkd->whbtd", z, W_O)

    dots = None if onto is None else torch.einsum("whbtd,nbtd->whnbt", vcomp, onto.to(dtype))
    return dots, vcomp.sum(1) if total else None


def top2_logits(
    resid: Tensor, W_U: Tensor, b_U: Tensor | None, chosen: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the two largest logits of every row with their token ids, and the logits of chosen tokens.

    logits[t] = resid[t] W_U + b_U;  ids[t, 0], ids[t, 1] = first and second prediction, of equal logits the lower id

    resid:  [row, d_model], the normed residual stream      W_U: [d_model, vocab]    b_U: [vocab] or None
    chosen: [row, choice], int token ids, or None. Every row needs two logits above minus infinity. NaN is larger than
    every number: a row that holds one has NaN as its first value, and the lowest token that is NaN as its first id.
    Returns values [row, 2] in logits, ids [row, 2] int64, chosen_values [row, choice] (None without chosen), float32
    or wider. Raises ShapeError naming both shapes if they do not fit. Agreement: tests/kernels/test_top2_logits.py.
    """
    shapes.top2_logits(resid, W_U, b_U, chosen)
    dtype = shapes.at_least_fp32(resid, W_U)
    logits = torch.einsum("td,dv->tv", resid.to(dtype), W_U.to(dtype))
    if b_U is not None:
        logits = logits + b_U.to(dtype)
    chosen_values = None if chosen is None else logits.gather(1, chosen.long())
    first, first_id = logits.max(-1, keepdim=True)
    second, second_id = logits.scatter(1, first_id, -torch.inf).max(-1, keepdim=True)
    return torch.cat([first, second], -1), torch.cat([first_id, second_id], -1), chosen_values
