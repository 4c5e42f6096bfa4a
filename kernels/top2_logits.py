# Kernels are typed by the comments beside their pointers, which a type checker cannot read.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=False
# mypy: disable-error-code=assignment
"""Unembedding fused with a running top 2 on Triton: logits live only in registers.

A logit and its token are one 64-bit number whose order is that of the answer: larger logits first, of equal logits the
lower id, NaN before all. So the two best of anything are a maximum and the maximum of the rest, shares of the
vocabulary may be cut and merged anywhere without changing a bit, and whatever the logits are, the ids are tokens.
"""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from repro.kernels import outputs, shapes
from repro.kernels.launch import precision as precisions
from repro.kernels.launch import tuning
from repro.kernels.launch.launch import Argument, Launch, Tiling, named_strides, processors, row_of, rows
from repro.kernels.layout import aligned, readable

# (vendor, kind of input) -> block sizes, the default first, the rest tried within `tuning()`: BT rows, BV tokens, BD of
# D.
TOP2_BLOCKS: Mapping[tuple[str, str], tuple[tuning.Blocks, ...]] = {
    ("cuda", "ieee"): ({"BT": 64, "BV": 64, "BD": 32, "num_warps": 8, "num_stages": 2},),
    ("cuda", "tf32x3"): ({"BT": 128, "BV": 64, "BD": 32, "num_warps": 8, "num_stages": 2},),
    ("cuda80", "tf32x3"): ({"BT": 64, "BV": 64, "BD": 32, "num_warps": 8, "num_stages": 2},),
    ("cuda", "half"): (
        {"BT": 128, "BV": 128, "BD": 64, "num_warps": 8, "num_stages": 3},
        {"BT": 128, "BV": 64, "BD": 64, "num_warps": 4, "num_stages": 3},
    ),
    ("cuda80", "half"): ({"BT": 128, "BV": 128, "BD": 32, "num_warps": 8, "num_stages": 3},),
    ("hip", "ieee"): ({"BT": 64, "BV": 64, "BD": 32, "num_warps": 4, "num_stages": 2},),
    ("hip", "half"): ({"BT": 128, "BV": 64, "BD": 64, "num_warps": 4, "num_stages": 2},),
}
# BT rows, BD of D.
CHOSEN_BLOCKS: tuple[tuning.Blocks, ...] = ({"BT": 16, "BD": 128, "num_warps": 4, "num_stages": 2},)
# Rows whose shares one program merges.
MERGED_ROWS = 16
# Programs for each processor: few, so that each has many tiles, and a whole number, so that none is left over.
WAVES = 2

NOTHING = tl.constexpr(-(2**63))


@triton.jit
def ranked(b_logit, o_id):
    """Return logits and ids as int64 in the order of the answer: NaN first, then by logit, then by lower id."""
    b_bits = (b_logit + 0.0).to(tl.int32, bitcast=True)  # -0 is no less than 0
    b_key = tl.where(b_bits < 0, b_bits ^ 0x7FFFFFFF, b_bits)
    b_key = tl.where(b_logit != b_logit, 0x7FFFFFFF, b_key)
    return (b_key.to(tl.int64) << 32) | (0x7FFFFFFF - o_id).to(tl.int64)


@triton.jit
def top2_kernel(
    resid_ptr,  # [T, D] f32, f16 or bf16; rows of D contiguous
    w_ptr,  # [D, V] as resid, by strides
    bias_ptr,  # [V] f32, f16 or bf16; absent if there is none
    best_ptr,  # [T, C, 2] i64: the best two of every program's share of the vocabulary, ranked
    resid_t,
    w_d,
    w_v,
    bias_v,
    T,
    D,
    V,
    V_READ,
    C,
    TILES,
    BT: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # One program takes BT rows and TILES tiles of BV tokens, one after the other. A tile is a matrix product over D
    # like any other; what is left of it are two numbers a row. Rows are the fast axis of the grid, so that programs
    # that run together read the same columns of W_U, which are then read once from memory and cdiv(T, BT) times from
    # L2; resid is read once for each tile, from L2.
    i_t, i_c = tl.program_id(0), tl.program_id(1)
    o_t = i_t * BT + tl.arange(0, BT)
    m_t = o_t < T
    o_row = o_t.to(tl.int64)
    p_x = resid_ptr + o_row[:, None] * resid_t
    b_first = tl.full([BT], NOTHING, tl.int64)
    b_second = tl.full([BT], NOTHING, tl.int64)

    for i_v in range(i_c * TILES * BV, tl.minimum((i_c + 1) * TILES * BV, V), BV):
        o_v = i_v + tl.arange(0, BV)
        m_v = o_v < V
        # Columns of padding are read, for whole vectors, and masked below.
        m_read = o_v < V_READ
        p_w = w_ptr + o_v.to(tl.int64)[None, :] * w_v
        b_logit = tl.zeros([BT, BV], tl.float32)
        for i_d in range(0, D, BD):
            o_d = i_d + tl.arange(0, BD)
            m_d = o_d < D
            b_x = tl.load(p_x + o_d[None, :], mask=m_t[:, None] & m_d[None, :], other=0.0)  # [BT, BD]
            b_w = tl.load(p_w + o_d.to(tl.int64)[:, None] * w_d, mask=m_d[:, None] & m_read[None, :], other=0.0)
            b_logit = tl.dot(b_x, b_w, b_logit, input_precision=PRECISION)  # [BT, BV]
        if bias_ptr is not None:
            b_logit += tl.load(bias_ptr + o_v * bias_v, mask=m_v, other=0.0).to(tl.float32)[None, :]

        b_rank = tl.where(m_v[None, :], ranked(b_logit, o_v[None, :]), NOTHING)  # [BT, BV]
        b_new = tl.max(b_rank, 1)
        b_next = tl.max(tl.where(b_rank == b_new[:, None], NOTHING, b_rank), 1)
        b_second = tl.maximum(tl.minimum(b_first, b_new), tl.maximum(b_second, b_next))
        b_first = tl.maximum(b_first, b_new)

    p_best = best_ptr + (o_row * C + i_c) * 2
    tl.store(p_best, b_first, mask=m_t)
    tl.store(p_best + 1, b_second, mask=m_t)


@triton.jit
def merge_kernel(
    best_ptr,  # [T, N] i64, contiguous: the best of N / 2 shares, ranked
    value_ptr,  # [T, 2] f32, contiguous
    id_ptr,  # [T, 2] i64, contiguous
    T,
    N,
    BT: tl.constexpr,
    BN: tl.constexpr,
):
    # All shares of BT rows at once; a rank is turned back into the logit and the id that it was made of.
    o_t = tl.program_id(0) * BT + tl.arange(0, BT)
    o_n = tl.arange(0, BN)
    m_t = o_t < T
    o_row = o_t.to(tl.int64)
    b_rank = tl.load(
        best_ptr + o_row[:, None] * N + o_n[None, :], mask=m_t[:, None] & (o_n < N)[None, :], other=NOTHING
    )  # [BT, BN]
    for i_best in tl.static_range(2):
        b_best = tl.max(b_rank, 1)
        b_key = (b_best >> 32).to(tl.int32)
        b_value = tl.where(b_key < 0, b_key ^ 0x7FFFFFFF, b_key).to(tl.float32, bitcast=True)
        tl.store(value_ptr + o_row * 2 + i_best, b_value, mask=m_t)
        tl.store(id_ptr + o_row * 2 + i_best, 0x7FFFFFFF - (b_best & 0x7FFFFFFF), mask=m_t)
        b_rank = tl.where(b_rank == b_best[:, None], NOTHING, b_rank)


@triton.jit
def chosen_kernel(
    resid_ptr,  # [T, D] f32, f16 or bf16; rows of D contiguous
    w_ptr,  # [D, V] as resid, by strides
    bias_ptr,  # [V] f32, f16 or bf16; absent if there is none
    chosen_ptr,  # [T, C] i64, contiguous
    value_ptr,  # [T, C] f32
    resid_t,
    w_d,
    w_v,
    bias_v,
    T,
    D,
    V,
    C,
    BT: tl.constexpr,
    BD: tl.constexpr,
):
    # One choice of BT rows: the column of W_U of each is gathered, so nothing is shared, and sums stay apart per lane
    # until the end.
    o_t = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)
    i_c = tl.program_id(1)
    m_t = o_t < T
    b_id = tl.load(chosen_ptr + o_t * C + i_c, mask=m_t, other=0)
    # Ids on a GPU cannot be checked before the launch without waiting for it: a wrong one gives NaN.
    m_id = (b_id >= 0) & (b_id < V)
    b_sum = tl.zeros([BT, BD], tl.float32)
    for i_d in range(0, D, BD):
        o_d = i_d + tl.arange(0, BD)
        m_td = m_t[:, None] & (o_d < D)[None, :]
        b_x = tl.load(resid_ptr + o_t[:, None] * resid_t + o_d[None, :], mask=m_td, other=0.0).to(tl.float32)
        p_w = w_ptr + o_d.to(tl.int64)[None, :] * w_d + b_id[:, None] * w_v
        b_sum += b_x * tl.load(p_w, mask=m_td & m_id[:, None], other=0.0).to(tl.float32)  # [BT, BD]
    b_value = tl.sum(b_sum, 1)
    if bias_ptr is not None:
        b_value += tl.load(bias_ptr + b_id * bias_v, mask=m_t & m_id, other=0.0).to(tl.float32)
    tl.store(value_ptr + o_t * C + i_c, tl.where(m_id, b_value, float("nan")), mask=m_t)


def top2_logits(
    resid: Tensor, W_U: Tensor, b_U: Tensor | None, chosen: Tensor | None, *, precision: str = "ieee"
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute `reference.top2_logits`; no logits are stored. A row of NaN has NaN as values, and tokens as ids.

    precision: "ieee", or for float32 "tf32x3" or "tf32". W_U is read fastest where one of its strides is 1 and the
    other a multiple of 16: the transpose of an embedding, or `layout.aligned(W_U)`, made once.
    Returns float32 and int64. Raises UnsupportedError for a dtype or precision that does not exist on the device.
    Agreement: tests/kernels/test_top2_logits.py.
    """
    dims = shapes.top2_logits(resid, W_U, b_U, chosen)
    vendor = precisions.check("top2_logits", resid.device, precision, resid=resid, W_U=W_U)
    if b_U is not None:
        precisions.check("top2_logits", resid.device, "ieee", b_U=b_U)
    T = dims["T"]
    picked = None
    if chosen is not None:
        picked = outputs.empty((T, dims["C"]), torch.float32, resid.device)
        choose_logits(resid, W_U, b_U, chosen.long().contiguous(), picked).run()
    values = outputs.empty((T, 2), torch.float32, resid.device)
    ids = torch.empty((T, 2), dtype=torch.int64, device=resid.device)
    best = torch.empty((T, shares(resid, W_U, precision, vendor), 2), dtype=torch.int64, device=resid.device)
    top2(resid, W_U, b_U, best, precision, vendor).run()
    merge(best, values, ids).run()
    return values, ids, picked


def shares(resid: Tensor, W_U: Tensor, precision: str, vendor: str) -> int:
    """Return into how many shares the vocabulary is cut: as many as fill the device's processors WAVES times."""
    blocks = row_of(TOP2_BLOCKS, vendor, resid.dtype, precision)[0]
    n_t, n_v = triton.cdiv(len(resid), blocks["BT"]), triton.cdiv(W_U.shape[1], blocks["BV"])
    most = max(1, WAVES * processors(resid.device) // n_t)
    return triton.cdiv(n_v, triton.cdiv(n_v, most))


def top2(resid: Tensor, W_U: Tensor, b_U: Tensor | None, best: Tensor, precision: str, vendor: str) -> Launch:
    """Return the launch that writes best [row, share, 2], the two best of every share of the vocabulary, ranked."""
    resid = rows(resid)
    (T, D), V, C = resid.shape, W_U.shape[1], best.shape[1]
    tensors: dict[str, Argument] = {"resid_ptr": resid, "w_ptr": W_U, "bias_ptr": b_U, "best_ptr": best}
    read = readable(W_U)

    def build(blocks: tuning.Blocks) -> Launch:
        n_t, tiles = triton.cdiv(T, blocks["BT"]), triton.cdiv(triton.cdiv(V, blocks["BV"]), C)
        numbers = named_strides("resid", resid, "t") | named_strides("w", W_U, "d v")
        numbers |= {"bias_v": 0 if b_U is None else b_U.stride(0), "T": T, "D": D, "V": V, "V_READ": read}
        steps = tiles * triton.cdiv(D, blocks["BD"])
        tiling = Tiling(
            flop=2.0 * n_t * C * steps * blocks["BT"] * blocks["BV"] * blocks["BD"],
            reads={"resid_ptr": C * tiles, "w_ptr": n_t, "bias_ptr": n_t},
            steps=steps,
        )
        constants = {**blocks, "PRECISION": precision}
        return Launch(top2_kernel, tensors | numbers | {"C": C, "TILES": tiles}, constants, (n_t, C), tiling)

    candidates = row_of(TOP2_BLOCKS, vendor, resid.dtype, precision)
    return tuning.choose("top2", tensors, (precision, vendor, read), candidates, build)


def merge(best: Tensor, values: Tensor, ids: Tensor) -> Launch:
    """Return the launch that writes values and ids [row, 2] from the ranked best of every share [row, share, 2]."""
    T, N = len(best), 2 * best.shape[1]
    tensors: dict[str, Argument] = {"best_ptr": best, "value_ptr": values, "id_ptr": ids}

    def build(blocks: tuning.Blocks) -> Launch:
        constants = {**blocks, "BN": triton.next_power_of_2(N)}
        return Launch(merge_kernel, tensors | {"T": T, "N": N}, constants, (triton.cdiv(T, blocks["BT"]),))

    return tuning.choose("merge", tensors, (), ({"BT": MERGED_ROWS, "num_warps": 4, "num_stages": 1},), build)


def choose_logits(resid: Tensor, W_U: Tensor, b_U: Tensor | None, chosen: Tensor, picked: Tensor) -> Launch:
    """Return the launch that writes picked [row, choice], the logits of chosen tokens."""
    resid = rows(resid)
    (T, D), V, C = resid.shape, W_U.shape[1], chosen.shape[1]
    tensors: dict[str, Argument] = {
        "resid_ptr": resid, "w_ptr": W_U, "bias_ptr": b_U, "chosen_ptr": chosen, "value_ptr": picked
    }  # fmt: skip

    def build(blocks: tuning.Blocks) -> Launch:
        numbers = named_strides("resid", resid, "t") | named_strides("w", W_U, "d v")
        numbers |= {"bias_v": 0 if b_U is None else b_U.stride(0), "T": T, "D": D, "V": V, "C": C}
        return Launch(chosen_kernel, tensors | numbers, blocks, (triton.cdiv(T, blocks["BT"]), C))

    return tuning.choose("chosen", tensors, (), CHOSEN_BLOCKS, build)


def launches(
    dtype: torch.dtype, shape: Mapping[str, int], vendor: str = "cuda", precision: str = "ieee"
) -> dict[str, Launch]:
    """Return kernel name -> this module's launches at {T, D, V, C}, W_U aligned, of tensors without numbers."""
    T, D, V, C = (shape[name] for name in "TDVC")
    resid = torch.empty((T, D), dtype=dtype, device="meta")
    W_U = aligned(torch.empty((D, V), dtype=dtype, device="meta"))
    bias = torch.empty(V, dtype=dtype, device="meta")
    n = shares(resid, W_U, precision, vendor)
    best, ids, chosen = (torch.empty(size, dtype=torch.int64, device="meta") for size in ((T, n, 2), (T, 2), (T, C)))
    values, picked = (torch.empty(size, dtype=torch.float32, device="meta") for size in ((T, 2), (T, C)))
    return {
        "top2_logits": top2(resid, W_U, bias, best, precision, vendor),
        "top2_logits.merge": merge(best, values, ids),
        "top2_logits.chosen": choose_logits(resid, W_U, bias, chosen, picked),
    }
