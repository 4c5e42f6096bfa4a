# Kernels are typed by the comments beside their pointers, which a type checker cannot read.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=False
# mypy: disable-error-code=assignment
"""Inner products of all nodes with all nodes on Triton: nodes are formed chunk by chunk, then multiplied in blocks.

Heads are formed beforehand, by the vendor's matrix product, because every block of a Gram matrix would form its rows
and columns again: at 302 nodes in blocks of 64 five times over. A chunk of nodes takes `SCRATCH_BYTES`, however many
positions there are. Both kernels compute the blocks on and above the diagonal and store each twice.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from repro.kernels import outputs, shapes
from repro.kernels.launch import precision as precisions
from repro.kernels.launch import tuning
from repro.kernels.launch.launch import Argument, Launch, Tiling, row_of, rows
from repro.kernels.nodes import form

# The most that the nodes of one chunk of positions take, where one position does not take more.
SCRATCH_BYTES = 256 << 20
# Positions that one program sums: sums of a few positions are added up in turn, so that float32 sums stay short.
SHARE = 8

# (vendor, kind of input) -> block sizes, the default first, the rest tried within `tuning()`: BT positions, BN nodes,
# BD of D.
GRAM_BLOCKS: Mapping[tuple[str, str], tuple[tuning.Blocks, ...]] = {
    ("cuda", "ieee"): ({"BT": 16, "BN": 16, "BD": 32, "num_warps": 8, "num_stages": 2},),
    ("cuda", "tf32x3"): ({"BT": 16, "BN": 16, "BD": 32, "num_warps": 8, "num_stages": 2},),
    ("cuda", "half"): ({"BT": 16, "BN": 16, "BD": 64, "num_warps": 8, "num_stages": 2},),
    ("hip", "ieee"): ({"BT": 16, "BN": 16, "BD": 32, "num_warps": 8, "num_stages": 1},),
    ("hip", "half"): ({"BT": 16, "BN": 16, "BD": 32, "num_warps": 8, "num_stages": 1},),
}
# The same for sums: one position at a time, so its blocks are larger.
SUMS_BLOCKS: Mapping[tuple[str, str], tuple[tuning.Blocks, ...]] = {
    ("cuda", "ieee"): ({"BN": 64, "BD": 32, "num_warps": 8, "num_stages": 2},),
    ("cuda", "tf32x3"): (
        {"BN": 64, "BD": 32, "num_warps": 8, "num_stages": 3},
        {"BN": 64, "BD": 16, "num_warps": 8, "num_stages": 2},
    ),
    ("cuda", "half"): (
        {"BN": 64, "BD": 64, "num_warps": 8, "num_stages": 3},
        {"BN": 64, "BD": 32, "num_warps": 4, "num_stages": 3},
    ),
    ("hip", "ieee"): ({"BN": 64, "BD": 32, "num_warps": 4, "num_stages": 2},),
    ("hip", "half"): ({"BN": 64, "BD": 64, "num_warps": 4, "num_stages": 2},),
}


@triton.jit
def gram_kernel(
    nodes_ptr,  # [N, T, D] f32, f16 or bf16, contiguous
    gram_ptr,  # [N, N, T] f32 by strides; positions contiguous
    gram_i,
    gram_j,
    N,
    T,
    D,
    BT: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # One program multiplies a block of nodes with another at BT positions: a batch of small products, one a position,
    # so that neighbouring lanes store neighbouring positions of G. Every node is read once for each block of nodes;
    # blocks are small because the sums of all BT positions stay in registers.
    i_t, i_i, i_j = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if i_j < i_i:
        return
    o_t = i_t * BT + tl.arange(0, BT)
    o_i = (i_i * BN + tl.arange(0, BN)).to(tl.int64)
    o_j = (i_j * BN + tl.arange(0, BN)).to(tl.int64)
    m_t, m_i, m_j = o_t < T, o_i < N, o_j < N
    p_t = nodes_ptr + o_t[:, None, None].to(tl.int64) * D
    p_x = p_t + o_i[None, :, None] * T * D  # [BT, BN, 1]
    p_y = p_t + o_j[None, None, :] * T * D  # [BT, 1, BN]
    m_x = m_t[:, None, None] & m_i[None, :, None]
    m_y = m_t[:, None, None] & m_j[None, None, :]

    b_gram = tl.zeros([BT, BN, BN], tl.float32)
    for i_d in range(0, D, BD):
        o_d = i_d + tl.arange(0, BD)
        m_d = o_d < D
        b_x = tl.load(p_x + o_d[None, None, :], mask=m_x & m_d[None, None, :], other=0.0)  # [BT, BN, BD]
        b_y = tl.load(p_y + o_d[None, :, None], mask=m_y & m_d[None, :, None], other=0.0)  # [BT, BD, BN]
        b_gram = tl.dot(b_x, b_y, b_gram, input_precision=PRECISION)

    m_xy = m_x & m_j[None, None, :]
    p_g = gram_ptr + o_t[:, None, None]
    tl.store(p_g + o_i[None, :, None] * gram_i + o_j[None, None, :] * gram_j, b_gram, mask=m_xy)
    if i_i != i_j:
        tl.store(p_g + o_j[None, None, :] * gram_i + o_i[None, :, None] * gram_j, b_gram, mask=m_xy)


@triton.jit
def sums_kernel(
    nodes_ptr,  # [N, T, D] f32, f16 or bf16, contiguous
    strata_ptr,  # [S, T] f32: 1 where a position is in a stratum, else 0; rows of T contiguous
    partial_ptr,  # [C, S, N, N] f32, contiguous
    strata_s,
    N,
    T,
    D,
    S,
    SHARE: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # One program sums one stratum's products of two blocks of nodes over SHARE positions. Positions outside the stratum
    # are skipped, so strata that share no position cost together what one over all of them costs. Products of a
    # position are summed apart and then added: what float32 loses grows with D and with SHARE, not with their product.
    n_n = tl.cdiv(N, BN)
    i_i, i_j = tl.program_id(0) // n_n, tl.program_id(0) % n_n
    i_c, i_s = tl.program_id(1), tl.program_id(2)
    if i_j < i_i:
        return
    o_i = (i_i * BN + tl.arange(0, BN)).to(tl.int64)
    o_j = (i_j * BN + tl.arange(0, BN)).to(tl.int64)
    m_i, m_j = o_i < N, o_j < N
    p_x = nodes_ptr + o_i[:, None] * T * D  # [BN, 1]
    p_y = nodes_ptr + o_j[None, :] * T * D  # [1, BN]
    p_stratum = strata_ptr + i_s.to(tl.int64) * strata_s

    b_sum = tl.zeros([BN, BN], tl.float32)
    for i_t in range(i_c * SHARE, tl.minimum((i_c + 1) * SHARE, T)):
        if tl.load(p_stratum + i_t) > 0:
            b_gram = tl.zeros([BN, BN], tl.float32)
            # A chunk's rows of one node fit 32 bits.
            p_xt, p_yt = p_x + i_t * D, p_y + i_t * D
            for i_d in range(0, D, BD):
                o_d = i_d + tl.arange(0, BD)
                m_d = o_d < D
                b_x = tl.load(p_xt + o_d[None, :], mask=m_i[:, None] & m_d[None, :], other=0.0)  # [BN, BD]
                b_y = tl.load(p_yt + o_d[:, None], mask=m_j[None, :] & m_d[:, None], other=0.0)  # [BD, BN]
                b_gram = tl.dot(b_x, b_y, b_gram, input_precision=PRECISION)
            b_sum += b_gram

    p_sum = partial_ptr + (i_c * S + i_s).to(tl.int64) * N * N
    m_ij = m_i[:, None] & m_j[None, :]
    tl.store(p_sum + o_i[:, None] * N + o_j[None, :], b_sum, mask=m_ij)
    if i_i != i_j:
        tl.store(p_sum + o_j[None, :] * N + o_i[:, None], b_sum, mask=m_ij)


def gram(z: Tensor, W_O: Tensor, vectors: Tensor, *, precision: str = "ieee") -> Tensor:
    """Compute `reference.gram` in one launch per chunk of positions.

    All arguments share a dtype, in which heads are kept: float32, float16 or bfloat16. precision: "ieee", or for
    float32 "tf32x3". Returns float32. Memory beyond that: SCRATCH_BYTES. Raises UnsupportedError for a dtype or
    precision that does not exist on the device. Agreement: tests/kernels/test_gram.py.
    """
    dims = shapes.gram(z, W_O, vectors)
    vendor = precisions.check("gram", z.device, precision, z=z, W_O=W_O, vectors=vectors)
    B, P, N = dims["B"], dims["P"], dims["H"] + dims["M"]
    G = outputs.empty((N, N, B, P), torch.float32, z.device)
    scratch, step = _scratch(z, vectors)
    for b in range(B):
        for first in range(0, P, step):
            t = slice(first, min(first + step, P))
            nodes = form(z[b, t], W_O, vectors[:, b, t], scratch)
            multiply(nodes, G[:, :, b, t], precision, vendor).run()
    return G


def gram_sums(z: Tensor, W_O: Tensor, vectors: Tensor, strata: Tensor, *, precision: str = "ieee") -> Tensor:
    """Compute `reference.gram_sums` in one launch per chunk of positions; what lies outside every stratum is not read.

    Dtypes, precision and errors: as for `gram`. Memory beyond the result: SCRATCH_BYTES, and one sum per stratum and
    SHARE of its positions; the products of single positions never leave the registers.
    Agreement: tests/kernels/test_gram.py.
    """
    dims = shapes.gram_sums(z, W_O, vectors, strata)
    vendor = precisions.check("gram_sums", z.device, precision, z=z, W_O=W_O, vectors=vectors)
    B, S, N = dims["B"], dims["S"], dims["H"] + dims["M"]
    sums = outputs.empty((S, B, N, N), torch.float32, z.device).zero_()
    masks = strata.to(torch.float32)
    scratch, step = _scratch(z, vectors)
    for b in range(B):
        # Positions outside every stratum are not even formed.
        for t in strata[:, b].any(0).nonzero()[:, 0].split(step):
            nodes = form(z[b, t], W_O, vectors[:, b, t], scratch)
            partial = outputs.empty((triton.cdiv(nodes.shape[1], SHARE), S, N, N), torch.float32, z.device)
            multiply_and_sum(nodes, masks[:, b, t], partial, precision, vendor).run()
            sums[:, b] += partial.sum(0)
    return sums


def _scratch(z: Tensor, vectors: Tensor) -> tuple[Tensor, int]:
    """Return room for the nodes of one chunk of positions, and how many positions that is."""
    (_, P, H, _), (M, _, _, D) = z.shape, vectors.shape
    N = H + M
    step = chunk(N, D, P, z.element_size())
    return z.new_empty(N * step * D), step


def chunk(N: int, D: int, P: int, size: int) -> int:
    """Return how many of P positions fit the scratch: a multiple of 16, so that whole vectors of G can be stored."""
    return min(max(SCRATCH_BYTES // (N * D * size) // 16 * 16, 16), P)


def multiply(nodes: Tensor, G: Tensor, precision: str, vendor: str) -> Launch:
    """Return the launch that writes G [node, node, pos] of nodes [node, pos, d_model]."""
    N, T, D = nodes.shape
    arguments: dict[str, Argument] = {"nodes_ptr": nodes, "gram_ptr": G}
    numbers = {"gram_i": G.stride(0), "gram_j": G.stride(1), "N": N, "T": T, "D": D}

    def build(blocks: tuning.Blocks) -> Launch:
        n_n, n_t, steps = triton.cdiv(N, blocks["BN"]), triton.cdiv(T, blocks["BT"]), triton.cdiv(D, blocks["BD"])
        pairs = n_n * (n_n + 1) / 2
        tiling = Tiling(
            flop=2.0 * pairs * n_t * blocks["BT"] * blocks["BN"] ** 2 * steps * blocks["BD"],
            reads={"nodes_ptr": 2 * pairs / n_n},
            steps=steps,
        )
        constants = {**blocks, "PRECISION": precision}
        return Launch(gram_kernel, arguments | numbers, constants, (n_t, n_n, n_n), tiling)

    candidates = row_of(GRAM_BLOCKS, vendor, nodes.dtype, precision)
    return tuning.choose("gram", arguments, (precision, vendor), candidates, build)


def multiply_and_sum(nodes: Tensor, strata: Tensor, partial: Tensor, precision: str, vendor: str) -> Launch:
    """Return the launch that writes partial [share, stratum, node, node], sums over SHARE positions of each stratum."""
    strata = rows(strata)
    (N, T, D), S = nodes.shape, len(strata)
    arguments: dict[str, Argument] = {"nodes_ptr": nodes, "strata_ptr": strata, "partial_ptr": partial}
    numbers = {"strata_s": strata.stride(0), "N": N, "T": T, "D": D, "S": S}

    def build(blocks: tuning.Blocks) -> Launch:
        n_n, n_c, steps = triton.cdiv(N, blocks["BN"]), triton.cdiv(T, SHARE), triton.cdiv(D, blocks["BD"])
        pairs = n_n * (n_n + 1) / 2
        # As if every position were in one stratum.
        tiling = Tiling(
            flop=2.0 * pairs * T * blocks["BN"] ** 2 * steps * blocks["BD"],
            reads={"nodes_ptr": 2 * pairs / n_n},
            steps=SHARE * steps / S,
        )
        constants = {**blocks, "SHARE": SHARE, "PRECISION": precision}
        return Launch(sums_kernel, arguments | numbers, constants, (n_n**2, n_c, S), tiling)

    candidates = row_of(SUMS_BLOCKS, vendor, nodes.dtype, precision)
    return tuning.choose("gram_sums", arguments, (precision, vendor), candidates, build)


def launches(
    dtype: torch.dtype, shape: Mapping[str, int], vendor: str = "cuda", precision: str = "ieee"
) -> dict[str, Launch]:
    """Return kernel name -> this module's launches at a shape {P, H, D, S}, of tensors without numbers.

    Two strata of one prompt; nodes are the heads and MLPs of the layers between S sites, an embedding and a bias. As
    many positions as one chunk holds.
    """
    P, H, D, S = (shape[name] for name in "PHDS")
    N = (S - 1) // 2 * (H + 1) + 2
    T = chunk(N, D, P, dtype.itemsize)
    nodes = torch.empty((N, T, D), dtype=dtype, device="meta")
    G, strata, partial = (
        torch.empty(size, dtype=torch.float32, device="meta")
        for size in ((N, N, T), (2, T), (triton.cdiv(T, SHARE), 2, N, N))
    )
    found = {
        "gram": multiply(nodes, G, precision, vendor),
        "gram_sums": multiply_and_sum(nodes, strata, partial, precision, vendor),
    }
    return {
        name: replace(launch, tiling=replace(launch.tiling, calls=triton.cdiv(P, T) * shape["B"]))
        for name, launch in found.items()
        if launch.tiling is not None
    }
