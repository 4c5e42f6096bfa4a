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
    """Compute `reference.gram` tile by tile.

    Memory beyond the result: one tile of nodes, but at least one position's. Agreement: tests/kernels/test_gram.py.
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
    """Compute `reference.gram_sums` tile by tile; what lies outside every stratum is not read.

    Memory beyond the result: one tile of nodes, but at least one position's; the products of single positions never
    exist. Agreement: tests/kernels/test_gram.py.
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
