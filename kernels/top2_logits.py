# Kernels are typed by the comments beside their pointers, which a type checker cannot read.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=False
# mypy: disable-error-code=assignment
"""Unembedding fused with a running top 2 on Triton: logits live only in registers."""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from repro.kernels import outputs, shapes
from repro.kernels.launch import precision as precisions
from repro.kernels.launch import tuning
from repro.kernels.launch.launch import Argument, CompileSpec, Launch, kind, named_strides, rows

# (vendor, kind of input) -> block sizes, the default first, the rest tried within `tuning()`: BT rows, BV tokens, BD of
# D, and TILES tiles of BV tokens a program.
TOP2_BLOCKS: Mapping[tuple[str, str], tuple[tuning.Blocks, ...]] = {
    ("cuda", "ieee"): ({"BT": 64, "BV": 64, "BD": 32, "TILES": 32, "num_warps": 8, "num_stages": 2},),
    ("cuda", "tf32x3"): ({"BT": 64, "BV": 64, "BD": 32, "TILES": 32, "num_warps": 8, "num_stages": 2},),
    ("cuda", "half"): (
        {"BT": 128, "BV": 128, "BD": 64, "TILES": 16, "num_warps": 8, "num_stages": 3},
        {"BT": 128, "BV": 64, "BD": 64, "TILES": 32, "num_warps": 4, "num_stages": 3},
    ),
    ("hip", "ieee"): ({"BT": 64, "BV": 64, "BD": 32, "TILES": 32, "num_warps": 4, "num_stages": 2},),
    ("hip", "half"): ({"BT": 128, "BV": 64, "BD": 64, "TILES": 32, "num_warps": 4, "num_stages": 2},),
}
# BT rows, BD of D.
CHOSEN_BLOCKS: tuple[tuning.Blocks, ...] = ({"BT": 16, "BD": 128, "num_warps": 4, "num_stages": 2},)


@triton.jit
def top2_kernel(
    resid_ptr,  # [T, D] f32, f16 or bf16; rows of D contiguous
    w_ptr,  # [D, V] as resid, by strides
    bias_ptr,  # [V] f32, f16 or bf16; absent if there is none
    value_ptr,  # [T, C, 2] f32: the best two of every program's share of the vocabulary
    id_ptr,  # [T, C, 2] i64
    resid_t,
    w_d,
    w_v,
    bias_v,
    T,
    D,
    V,
    V_READ,
    C,
    BT: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
    TILES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Neighbouring programs read the same columns of W_U: rows are the fast axis of the grid.
    i_t, i_c = tl.program_id(0), tl.program_id(1)
    o_t = i_t * BT + tl.arange(0, BT)
    m_t = o_t < T
    o_row = o_t.to(tl.int64)
    p_x = resid_ptr + o_row[:, None] * resid_t
    b_first = tl.full([BT], float("-inf"), tl.float32)
    b_second = tl.full([BT], float("-inf"), tl.float32)
    b_first_id = tl.full([BT], V, tl.int32)
    b_second_id = tl.full([BT], V, tl.int32)

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
            b_x = tl.load(p_x + o_d[None, :], mask=m_t[:, None] & m_d[None, :], other=0.0)
            b_w = tl.load(p_w + o_d.to(tl.int64)[:, None] * w_d, mask=m_d[:, None] & m_read[None, :], other=0.0)
            b_logit = tl.dot(b_x, b_w, b_logit, input_precision=PRECISION)
        if bias_ptr is not None:
            b_logit += tl.load(bias_ptr + o_v * bias_v, mask=m_v, other=0.0).to(tl.float32)[None, :]
        b_logit = tl.where(m_v[None, :], b_logit, float("-inf"))

        # Of equal logits the lowest id; ids only grow from tile to tile, so an equal one seen earlier stays.
        b_new = tl.max(b_logit, 1)
        b_new_id = tl.min(tl.where(b_logit == b_new[:, None], o_v[None, :], V), 1)
        b_rest = tl.where(o_v[None, :] == b_new_id[:, None], float("-inf"), b_logit)
        b_next = tl.max(b_rest, 1)
        b_next_id = tl.min(
            tl.where((b_rest == b_next[:, None]) & (o_v[None, :] != b_new_id[:, None]), o_v[None, :], V), 1
        )
        m_first, m_demoted = b_new > b_first, b_first >= b_next
        b_second_id = tl.where(
            m_first,
            tl.where(m_demoted, b_first_id, b_next_id),
            tl.where(b_new > b_second, b_new_id, b_second_id),
        )
        b_second = tl.where(m_first, tl.maximum(b_first, b_next), tl.maximum(b_new, b_second))
        b_first_id = tl.where(m_first, b_new_id, b_first_id)
        b_first = tl.maximum(b_first, b_new)

    o_out = (o_row * C + i_c) * 2
    tl.store(value_ptr + o_out, b_first, mask=m_t)
    tl.store(value_ptr + o_out + 1, b_second, mask=m_t)
    tl.store(id_ptr + o_out, b_first_id.to(tl.int64), mask=m_t)
    tl.store(id_ptr + o_out + 1, b_second_id.to(tl.int64), mask=m_t)


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
        b_sum += b_x * tl.load(p_w, mask=m_td & m_id[:, None], other=0.0).to(tl.float32)
    b_value = tl.sum(b_sum, 1)
    if bias_ptr is not None:
        b_value += tl.load(bias_ptr + b_id * bias_v, mask=m_t & m_id, other=0.0).to(tl.float32)
    tl.store(value_ptr + o_t * C + i_c, tl.where(m_id, b_value, float("nan")), mask=m_t)


def top2_logits(
    resid: Tensor, W_U: Tensor, b_U: Tensor | None, chosen: Tensor | None, *, precision: str = "ieee"
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the two largest logits of every row, their token ids, and chosen tokens' logits; none are stored.

    logits[t] = resid[t] W_U + b_U;  ids[t, 0], ids[t, 1] = first and second prediction, of equal logits the lower id

    resid:  [row, d_model], the normed residual stream      W_U: [d_model, vocab] of its dtype    b_U: [vocab] or None
    chosen: [row, choice], int token ids, or None. Every row needs two logits above minus infinity, and none NaN.
    precision: "ieee", or for float32 "tf32x3"
    W_U is read fastest where one of its strides is 1 and the other a multiple of 16: pass the transpose of an
    embedding, or `aligned(W_U)`, made once.
    Returns values [row, 2] in logits, ids [row, 2] int64, chosen_values [row, choice] (None without chosen), float32.
    Raises ShapeError naming both shapes if they do not fit, UnsupportedError for a dtype or precision that does not
    exist on the device. Agreement: tests/kernels/test_top2_logits.py.
    """
    dims = shapes.top2_logits(resid, W_U, b_U, chosen)
    vendor = precisions.check("top2_logits", resid.device, precision, resid=resid, W_U=W_U)
    if b_U is not None:
        precisions.check("top2_logits", resid.device, "ieee", b_U=b_U)
    picked = None
    if chosen is not None:
        picked = outputs.empty((dims["T"], dims["C"]), torch.float32, resid.device)
        choose_logits(resid, W_U, b_U, chosen.long().contiguous(), picked).run()
    values, ids = _best_of_shares(resid, W_U, b_U, precision, vendor)
    return values, ids, picked


def aligned(W_U: Tensor) -> Tensor:
    """Return W_U [d_model, vocab] with rows that start at multiples of 16 elements: a copy, unless it lies so."""
    if 1 in W_U.stride() and max(W_U.stride()) % 16 == 0:
        return W_U
    D, V = W_U.shape
    padded = W_U.new_zeros((D, -(-V // 16) * 16))
    padded[:, :V] = W_U
    return padded[:, :V]


def _best_of_shares(
    resid: Tensor, W_U: Tensor, b_U: Tensor | None, precision: str, vendor: str
) -> tuple[Tensor, Tensor]:
    """Launch the kernel and merge the best two of every share; shares are in the order of ids: ties stay right."""
    launch = top2(resid, W_U, b_U, precision, vendor)
    launch.run()
    shares, share_ids = launch.arguments["value_ptr"], launch.arguments["id_ptr"]
    assert isinstance(shares, Tensor)
    assert isinstance(share_ids, Tensor)
    values, order = shares.flatten(1).sort(dim=1, descending=True, stable=True)
    return values[:, :2].contiguous(), share_ids.flatten(1).gather(1, order[:, :2])


def top2(resid: Tensor, W_U: Tensor, b_U: Tensor | None, precision: str, vendor: str) -> Launch:
    """Return the launch that writes values and ids [row, share, 2], the best two of every share of the vocabulary."""
    resid = rows(resid)
    (T, D), V = resid.shape, W_U.shape[1]
    numbers = named_strides("resid", resid, "t") | named_strides("w", W_U, "d v")
    numbers |= {"bias_v": 0 if b_U is None else b_U.stride(0), "T": T, "D": D, "V": V, "V_READ": _readable(W_U)}

    def build(blocks: tuning.Blocks) -> Launch:
        C = triton.cdiv(V, blocks["BV"] * blocks["TILES"])
        arguments: dict[str, Argument] = {
            "resid_ptr": resid,
            "w_ptr": W_U,
            "bias_ptr": b_U,
            "value_ptr": outputs.empty((T, C, 2), torch.float32, resid.device),
            "id_ptr": torch.empty((T, C, 2), dtype=torch.int64, device=resid.device),
        }
        constants = {**blocks, "PRECISION": precision}
        return Launch(top2_kernel, arguments | numbers | {"C": C}, constants, (triton.cdiv(T, blocks["BT"]), C))

    key = ("top2", resid.shape, W_U.shape, W_U.stride(), resid.dtype, precision, str(resid.device))
    return tuning.choose(key, TOP2_BLOCKS[vendor, kind(resid.dtype, precision)], build)


def _readable(W_U: Tensor) -> int:
    """Return how many columns may be read: a multiple of 16 where memory holds that many, else the vocabulary."""
    (D, V), padded = W_U.shape, -(-W_U.shape[1] // 16) * 16
    end = W_U.storage_offset() + (D - 1) * W_U.stride(0) + (padded - 1) * W_U.stride(1)
    return padded if end < W_U.untyped_storage().nbytes() // W_U.element_size() else V


def choose_logits(resid: Tensor, W_U: Tensor, b_U: Tensor | None, chosen: Tensor, picked: Tensor) -> Launch:
    """Return the launch that writes picked [row, choice], the logits of chosen tokens."""
    resid = rows(resid)
    (T, D), V, C = resid.shape, W_U.shape[1], chosen.shape[1]
    arguments: dict[str, Argument] = {
        "resid_ptr": resid,
        "w_ptr": W_U,
        "bias_ptr": b_U,
        "chosen_ptr": chosen,
        "value_ptr": picked,
    }
    numbers = named_strides("resid", resid, "t") | named_strides("w", W_U, "d v")
    numbers |= {"bias_v": 0 if b_U is None else b_U.stride(0), "T": T, "D": D, "V": V, "C": C}

    def build(blocks: tuning.Blocks) -> Launch:
        return Launch(chosen_kernel, arguments | numbers, blocks, (triton.cdiv(T, blocks["BT"]), C))

    key = ("chosen", resid.shape, C, W_U.stride(), resid.dtype, str(resid.device))
    return tuning.choose(key, CHOSEN_BLOCKS, build)


def compile_specs(
    dtype: torch.dtype, shape: Mapping[str, int], vendor: str = "cuda", precision: str = "ieee"
) -> dict[str, CompileSpec]:
    """Return kernel name -> what the compiler needs for this module's launches at {T, D, V, C}, W_U aligned."""
    T, D, V, C = (shape[name] for name in "TDVC")
    resid = torch.empty((T, D), dtype=dtype, device="meta")
    W_U = aligned(torch.empty((D, V), dtype=dtype, device="meta"))
    bias = torch.empty(V, dtype=dtype, device="meta")
    chosen, picked = (torch.empty((T, C), dtype=of, device="meta") for of in (torch.int64, torch.float32))
    launches = {
        "top2_logits": top2(resid, W_U, bias, precision, vendor),
        "top2_logits.chosen": choose_logits(resid, W_U, bias, chosen, picked),
    }
    return {name: launch.compile_spec() for name, launch in launches.items()}
