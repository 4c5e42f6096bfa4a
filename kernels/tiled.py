"""The kernels for CPUs: plain torch over tiles that stay in cache, with memory bounded by TILE_BYTES."""

import math
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import TypeAlias

import torch
from torch import Tensor

from repro.kernels import fused, outputs, shapes
from repro.kernels.parallel import each

# The size of the largest temporary: one tile of head outputs, of scores or of logits. Beyond the second-level cache of
# two cores of today, and not by much: smaller tiles spend more in starting products than they save in memory.
TILE_BYTES = 4 << 20
# Positions whose head outputs are formed together, few enough that one tile holds all heads of a small model.
TILE_POSITIONS = 128
# Queries that attend together: more, because their scores are a wider tile and their keys are read again for each.
TILE_QUERIES = 128

# Weights of some heads, their inputs at some positions, and where their inner products and norms go. Such views are
# made for whole prompts, before the threads start: a thread gives Python's lock away at every call of torch, also for
# a view, and with twenty small calls a tile two threads were hardly faster than one.
Part: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


@torch.no_grad()
def projection(z: Tensor, W_O: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `reference.projection` tile by tile; where the compiled loop is there, it does (`fused`).

    Memory beyond the results: one tile of head outputs for each thread, or in the compiled loop a copy of W_O and a few
    positions. The same bits for any number of threads. Agreement: tests/kernels/test_projection.py.
    """
    dims = shapes.projection(z, W_O, of)
    if fused.serves(z, W_O, of):
        return fused.projection(z, W_O, of)
    B, P, H, D, S = (dims[name] for name in "BPHDS")
    dtype = shapes.at_least_fp32(z, W_O, of)
    num = outputs.empty((S, H, B, P), dtype, z.device)
    norm2 = outputs.empty((H, B, P), dtype, z.device)
    weights = W_O.to(dtype)
    together = evenly(H, fit(TILE_POSITIONS * D, dtype))
    jobs: list[tuple[Tensor, tuple[Part, ...]]] = []
    for b in range(B):
        parts = [
            zip(
                repeat(weights[h]),
                z[b, :, h].transpose(0, 1).split(TILE_POSITIONS, 1),  # [BH, BT, K]
                num[:, h, b].permute(2, 0, 1).split(TILE_POSITIONS),  # [BT, S, BH]
                norm2[h, b].split(TILE_POSITIONS, 1),  # [BH, BT]
            )
            for h in tiles(H, together)
        ]
        jobs += zip(of[:, b].transpose(0, 1).split(TILE_POSITIONS), zip(*parts, strict=True), strict=True)

    def start() -> Callable[[tuple[Tensor, tuple[Part, ...]]], None]:
        tile = weights.new_empty(together * TILE_POSITIONS * D)

        def project(job: tuple[Tensor, tuple[Part, ...]]) -> None:
            directions, parts = job
            directions = directions.to(dtype)  # [BT, S, D]
            for weight, inputs, dots, norms in parts:
                heads = _product(inputs.to(dtype), weight, tile)  # [BH, BT, D]
                dots.copy_(torch.bmm(directions, heads.permute(1, 2, 0)))
                torch.linalg.vector_norm(heads, dim=-1, out=norms)

        return project

    each(jobs, start)
    return num, norm2.square_()


@torch.no_grad()
def projection_onto_vectors(v: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `reference.projection_onto_vectors` tile by tile; where the compiled loop is there, it does (`fused`).

    The same bits for any number of threads. Agreement: tests/kernels/test_projection.py.
    """
    dims = shapes.projection_onto_vectors(v, of)
    if fused.serves(v, of):
        return fused.projection_onto_vectors(v, of)
    B, P, D, S, M = (dims[name] for name in "BPDSM")
    dtype = shapes.at_least_fp32(v, of)
    num = outputs.empty((S, M, B, P), dtype, v.device)
    norm2 = outputs.empty((M, B, P), dtype, v.device)

    step = fit((S + M) * D, dtype)
    jobs = [
        job
        for b in range(B)
        for job in zip(
            v[:, b].split(step, 1),  # [M, BT, D]
            of[:, b].transpose(0, 1).split(step),  # [BT, S, D]
            num[:, :, b].permute(2, 0, 1).split(step),  # [BT, S, M]
            norm2[:, b].split(step, 1),  # [M, BT]
            strict=True,
        )
    ]

    def project(job: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        vectors, directions, dots, norms = job
        vectors = vectors.to(dtype)
        dots.copy_(torch.bmm(directions.to(dtype), vectors.permute(1, 2, 0)))
        torch.linalg.vector_norm(vectors, dim=-1, out=norms)

    each(jobs, lambda: project)
    return num, norm2.square_()


@torch.no_grad()
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
    """Compute `reference.v_composition` over tiles of queries: no pattern is ever stored.

    Memory beyond the results: the values of one prompt and one tile. Agreement: tests/kernels/test_v_composition.py.
    """
    dims = shapes.v_composition(q, k, writer, scale, W_V, W_O, onto, total=total)
    B, P, H, K, G, W, D = (dims[name] for name in "BPHKGWD")
    N = dims.get("N", 0)
    dtype = shapes.at_least_fp32(q, k, writer, scale, W_V, W_O)
    dots = None if onto is None else outputs.empty((W, H, N, B, P), dtype, q.device)
    summed = outputs.empty((W, B, P, D), dtype, q.device) if total else None
    alpha = K**-0.5 if softmax_scale is None else softmax_scale
    # <z W_O, onto> costs W (K D + N D) products a head, <z, onto W_O^T> costs N (K D + W K); the sum needs the first.
    form = total or W * D * (K + N) <= N * K * (D + W)

    group = H // G
    future = torch.full((TILE_QUERIES, TILE_QUERIES), -math.inf, dtype=dtype, device=q.device).triu_(1)
    for g in tiles(G, fit(TILE_QUERIES * group * max(P, D), dtype)):
        heads = slice(g.start * group, g.stop * group)
        weight = W_O[heads].to(dtype)
        # Scores are done with before head outputs are formed, and normed writers before either: one tile serves all.
        tile = weight.new_empty(len(weight) * TILE_QUERIES * max(P, D))
        for b in range(B):
            keys = k[b, :, g].permute(1, 2, 0).to(dtype)
            values = _values(writer[:, b], scale[b], W_V[g], center, tile)
            for t in tiles(P, TILE_QUERIES):
                z = _attend(q[b, t, heads].to(dtype), keys[:, :, : t.stop], values[:, :, : t.stop], future, alpha, tile)
                directions = None if onto is None else onto[:, b, t].to(dtype)
                if dots is not None and directions is not None and not form:
                    dots[:, heads, :, b, t] = _dots_unformed(z, weight, directions)
                for w in range(W if form else 0):
                    vcomp = _product(z[:, w], weight, tile)
                    if dots is not None and directions is not None:
                        dots[w, heads, :, b, t] = _dots(vcomp, directions)
                    if summed is not None and g.start == 0:
                        torch.sum(vcomp, 0, out=summed[w, b, t])
                    elif summed is not None:
                        summed[w, b, t] += vcomp.sum(0)
    return dots, summed


@torch.no_grad()
def top2_logits(
    resid: Tensor, W_U: Tensor, b_U: Tensor | None, chosen: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute `reference.top2_logits` over tiles of the vocabulary: no row of logits is ever stored.

    Every row needs two logits above minus infinity; NaN is above all. Memory beyond the results: one tile of logits.
    Agreement: tests/kernels/test_top2_logits.py.
    """
    dims = shapes.top2_logits(resid, W_U, b_U, chosen)
    T, V = dims["T"], dims["V"]
    dtype = shapes.at_least_fp32(resid, W_U)
    values = outputs.empty((T, 2), dtype, resid.device)
    ids = torch.empty((T, 2), dtype=torch.int64, device=resid.device)
    picked = None if chosen is None else outputs.empty((T, dims["C"]), dtype, resid.device)
    for t in tiles(T, 8 * TILE_POSITIONS):
        rows = resid[t].to(dtype)
        best = rows.new_full((rows.shape[0], 2), -math.inf)
        best_ids = torch.arange(2, device=resid.device).repeat(len(rows), 1)
        for v in tiles(V, fit(rows.shape[0], dtype)):
            weight = W_U[:, v].to(dtype)
            logits = rows @ weight if b_U is None else torch.addmm(b_U[v].to(dtype), rows, weight)
            _merge_top2(best, best_ids, logits, v.start)
            if chosen is not None and picked is not None:
                place = chosen[t].long() - v.start
                here = (place >= 0) & (place < logits.shape[1])
                found = logits.gather(1, place.clamp(0, logits.shape[1] - 1))
                picked[t] = torch.where(here, found, picked[t])
        values[t], ids[t] = best, best_ids
    return values, ids, picked


def tiles(size: int, step: int) -> Iterator[slice]:
    """Return slices of at most `step` that cover `size`."""
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def evenly(size: int, step: int) -> int:
    """Return the step that covers `size` in as few parts, all of about one size: nine in eights are five and four."""
    return -(-size // -(-size // step))


def fit(elements: int, dtype: torch.dtype) -> int:
    """Return how many times `elements` fit in a tile, at least once."""
    return max(TILE_BYTES // (elements * dtype.itemsize), 1)


def _product(a: Tensor, b: Tensor, tile: Tensor) -> Tensor:
    """Return the batched matrix product, written into the front of a tile that is used again and again."""
    shape = (a.shape[0], a.shape[1], b.shape[2])
    return torch.bmm(a, b, out=tile[: math.prod(shape)].view(shape))


def _dots(heads: Tensor, directions: Tensor) -> Tensor:
    """Multiply [head, pos, d_model] and [direction, pos, d_model] -> [head, direction, pos], position by position."""
    return torch.bmm(directions.transpose(0, 1), heads.permute(1, 2, 0)).permute(2, 1, 0)


def _dots_unformed(z: Tensor, weight: Tensor, directions: Tensor) -> Tensor:
    """Compute <z W_O, direction> as <z, direction W_O^T>: [head, writer, pos, K] -> [writer, head, direction, pos]."""
    read = torch.matmul(directions, weight.transpose(1, 2)[:, None])
    return torch.einsum("hwtk,hntk->whnt", z, read)


def _values(writer: Tensor, scale: Tensor, W_V: Tensor, center: bool, tile: Tensor) -> Tensor:
    """Return values [writer, group, pos, d_head] of every writer's normed output [writer, pos, d_model]."""
    (W, P, D), (G, _, K) = writer.shape, W_V.shape
    weight = W_V.to(tile.dtype)
    values = tile.new_empty((W, G, P, K))
    for w in range(W):
        for i in tiles(P, len(tile) // D):
            x = writer[w, i].to(tile.dtype)
            normed = torch.div(x, scale[i, None].to(tile.dtype), out=tile[: x.numel()].view(x.shape))
            if center:
                normed -= normed.mean(-1, keepdim=True)
            torch.bmm(normed.expand(G, -1, -1), weight, out=values[w, :, i])
    return values


def _attend(q: Tensor, keys: Tensor, values: Tensor, future: Tensor, alpha: float, tile: Tensor) -> Tensor:
    """Attend causally: the last queries [pos, head, d_head] on all keys -> [head, writer, pos, d_head]."""
    (T, H, K), (G, _, P), W = q.shape, keys.shape, len(values)
    rows = q.view(T, G, H // G, K).permute(1, 2, 0, 3).reshape(G, H // G * T, K)
    scores = tile[: G * rows.shape[1] * P].view(G, -1, P)
    torch.baddbmm(scores, rows, keys, beta=0, alpha=alpha, out=scores)
    scores.view(H, T, P)[:, :, P - T :] += future[:T, :T]
    torch.softmax(scores, -1, out=scores)
    z = tile.new_empty((W, G, H // G * T, K))
    for w in range(W):
        torch.bmm(scores, values[w], out=z[w])
    return z.view(W, G, H // G, T, K).permute(1, 2, 0, 3, 4).flatten(0, 1)


def _merge_top2(best: Tensor, best_ids: Tensor, logits: Tensor, start: int) -> None:
    """Update the running two best of every row by a tile of logits whose first token is `start`."""
    # One pass finds the rows with news, few after the first tiles; of equal logits the earlier, lower id stays. Asked
    # the other way round, so that NaN, which is larger than every number, is news.
    (rows,) = (~(logits.amax(1) <= best[:, 1])).nonzero(as_tuple=True)
    if not len(rows):
        return
    tile = logits[rows]
    first, first_id = tile.max(1, keepdim=True)
    second, second_id = tile.scatter_(1, first_id, -math.inf).max(1, keepdim=True)
    values = torch.cat([best[rows], first, second], 1)
    ids = torch.cat([best_ids[rows], first_id + start, second_id + start], 1)
    best[rows], order = (kept[:, :2] for kept in values.sort(dim=1, descending=True, stable=True))
    best_ids[rows] = ids.gather(1, order)
