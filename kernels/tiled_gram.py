"""Inner products of all nodes for CPUs: the nodes of a few positions are formed in cache, then multiplied at once.

Summed over positions, a Gram matrix is one product over d_model and positions together: [node, pos d_model] by itself.
"""

import torch
from torch import Tensor

from repro.kernels import outputs, shapes
from repro.kernels.nodes import form
from repro.kernels.tiled import fit, tiles


@torch.no_grad()
def gram(z: Tensor, W_O: Tensor, vectors: Tensor) -> Tensor:
    """Return inner products of all nodes with all nodes at every position, tile by tile.

    G[i, j, b, t] = <x_i[b, t], x_j[b, t]>, with the nodes x = the heads' outputs z[b, t, h] W_O[h], then the vectors
    (a site is the sum of the nodes written before it, so PR(site, w) of arXiv 2310.07325 is a sum of G / G[w, w])

    z:   [prompt, pos, head, d_head], heads of all layers       W_O: [head, d_head, d_model]
    vectors: [vector, prompt, pos, d_model]: embedding, positions, MLP outputs, biases; in activation units
    Returns G [node, node, prompt, pos] in squared activation units, float32 or wider. Memory beyond that: one tile of
    nodes, but at least one position's.
    Raises ShapeError naming both shapes if they do not fit. Agreement: tests/kernels/test_gram.py.
    """
    dims = shapes.gram(z, W_O, vectors)
    B, P, H, D, M = (dims[name] for name in "BPHDM")
    N, dtype = H + M, shapes.at_least_fp32(z, W_O, vectors)
    G = outputs.empty((N, N, B, P), dtype, z.device)
    weight, step = W_O.to(dtype), min(fit(N * (D + N), dtype), P)
    tile = weight.new_empty(N * step * D)
    for b in range(B):
        for t in tiles(P, step):
            nodes = form(z[b, t], weight, vectors[:, b, t], tile)
            # [pos, node, d_model] with itself: one product a position.
            products = torch.bmm(nodes.transpose(0, 1), nodes.permute(1, 2, 0))
            G[:, :, b, t] = products.permute(1, 2, 0)
    return G


@torch.no_grad()
def gram_sums(z: Tensor, W_O: Tensor, vectors: Tensor, strata: Tensor) -> Tensor:
    """Return inner products of all nodes with all nodes, summed over the positions of every stratum, tile by tile.

    sums[s, b, i, j] = sum_{t in stratum s of prompt b} <x_i[b, t], x_j[b, t]>, nodes as in `gram`

    z, W_O, vectors: as for `gram`          strata: [stratum, prompt, pos], bool; a position may be in several or none
    Returns sums [stratum, prompt, node, node] in squared activation units, float32 or wider; zero for a stratum
    without positions. What lies outside every stratum is not read. Memory beyond that: one tile of nodes, but at least
    one position's; the products of single positions never exist.
    Raises ShapeError naming both shapes if they do not fit. Agreement: tests/kernels/test_gram.py.
    """
    dims = shapes.gram_sums(z, W_O, vectors, strata)
    B, P, H, D, M, S = (dims[name] for name in "BPHDMS")
    N, dtype = H + M, shapes.at_least_fp32(z, W_O, vectors)
    sums = outputs.empty((S, B, N, N), dtype, z.device).zero_()
    weight, step = W_O.to(dtype), min(fit(N * D, dtype), P)
    tile = weight.new_empty(N * step * D)
    for s in range(S):
        for b in range(B):
            chosen = strata[s, b].nonzero()[:, 0]
            for t in chosen.split(step):
                flat = form(z[b, t], weight, vectors[:, b, t], tile).view(N, -1)
                sums[s, b].addmm_(flat, flat.T)
    return sums
