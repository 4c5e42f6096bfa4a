# Kernels are typed by the comments beside their pointers, which a type checker cannot read.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=False
# mypy: disable-error-code=assignment
"""The Triton kernels of V-composition: values of normed writers, causal attention on them, and the sum over heads."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["B", "P"])
def values_kernel(
    writer_ptr,  # [W, B, P, D] f32, f16 or bf16; rows of D contiguous
    scale_ptr,  # [B, P] f32, f16 or bf16
    wv_ptr,  # [G, D, K] f32, f16 or bf16; rows of K contiguous
    v_ptr,  # [W, B, P, G, K] as wv
    writer_w,
    writer_b,
    writer_p,
    scale_b,
    scale_p,
    wv_g,
    wv_d,
    B,
    P,
    G,
    D,
    K: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
    CENTER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # One program forms the values of BT positions for one group of heads: the writer's rows are read twice, for their
    # mean and for the product, the second time from cache; W_V is read once for each BT positions, from L2.
    i_t, i_wb, i_g = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    i_w, i_b = i_wb // B, i_wb % B
    o_t = i_t * BT + tl.arange(0, BT)
    o_k = tl.arange(0, BK)
    m_t, m_k = o_t < P, o_k < K
    o_row = o_t.to(tl.int64)

    p_x = writer_ptr + i_w * writer_w + i_b * writer_b + o_row[:, None] * writer_p
    b_mean = tl.zeros([BT], tl.float32)
    if CENTER:
        b_sum = tl.zeros([BT, BD], tl.float32)
        for i_d in range(0, D, BD):
            o_d = i_d + tl.arange(0, BD)
            b_sum += tl.load(p_x + o_d[None, :], mask=m_t[:, None] & (o_d < D)[None, :], other=0.0).to(tl.float32)
        b_mean = tl.sum(b_sum, 1) / D

    b_v = tl.zeros([BT, BK], tl.float32)
    p_wv = wv_ptr + i_g.to(tl.int64) * wv_g + o_k[None, :]
    for i_d in range(0, D, BD):
        o_d = i_d + tl.arange(0, BD)
        m_td = m_t[:, None] & (o_d < D)[None, :]
        b_x = tl.load(p_x + o_d[None, :], mask=m_td, other=0.0).to(tl.float32)  # [BT, BD]
        b_x = tl.where(m_td, b_x - b_mean[:, None], 0.0)
        b_wv = tl.load(p_wv + o_d[:, None] * wv_d, mask=(o_d < D)[:, None] & m_k[None, :], other=0.0)  # [BD, BK]
        b_v = tl.dot(b_x.to(b_wv.dtype), b_wv, b_v, input_precision=PRECISION)  # [BT, BK]
    b_scale = tl.load(scale_ptr + i_b * scale_b + o_row * scale_p, mask=m_t, other=1.0).to(tl.float32)
    b_v = b_v / b_scale[:, None]
    p_v = v_ptr + (((i_wb * P + o_row[:, None]) * G + i_g) * K + o_k[None, :])
    tl.store(p_v, b_v.to(v_ptr.dtype.element_ty), mask=m_t[:, None] & m_k[None, :])


@triton.jit(do_not_specialize=["W", "B", "P"])
def attend_kernel(
    q_ptr,  # [B, P, H, K] f32, f16 or bf16; rows of K contiguous
    k_ptr,  # [B, P, G, K] as q; rows of K contiguous
    v_ptr,  # [W, B, P, G, K] as q
    z_ptr,  # [W, B, P, H, K] as q
    q_b,
    q_p,
    q_h,
    k_b,
    k_p,
    k_g,
    W,
    B,
    P,
    H,
    G,
    softmax_scale,
    K: tl.constexpr,
    BT: tl.constexpr,
    BI: tl.constexpr,
    BK: tl.constexpr,
    BW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # One program mixes the values of BW writers for BT queries of a head: keys and values pass by in blocks of BI, once
    # for each block of queries, with a running maximum and sum, so that no pattern is ever stored; writers share the
    # pattern, which is the dearer half. The last queries attend to most and come first, for all heads together, so that
    # what is left at the end are the short ones.
    i_bh, i_w0 = tl.program_id(0), tl.program_id(1) * BW
    i_t = tl.num_programs(2) - 1 - tl.program_id(2)
    i_b, i_h = (i_bh // H).to(tl.int64), i_bh % H
    i_g = i_h // (H // G)
    o_t = i_t * BT + tl.arange(0, BT)
    o_k = tl.arange(0, BK)
    m_t, m_k = o_t < P, o_k < K
    o_row = o_t.to(tl.int64)

    p_q = q_ptr + i_b * q_b + o_row[:, None] * q_p + i_h * q_h + o_k[None, :]
    b_q = tl.load(p_q, mask=m_t[:, None] & m_k[None, :], other=0.0)  # [BT, BK]
    p_k = k_ptr + i_b * k_b + i_g * k_g
    p_v = v_ptr + (i_b * P * G + i_g) * K
    b_max = tl.full([BT], float("-inf"), tl.float32)
    b_sum = tl.zeros([BT], tl.float32)
    b_zs = ()
    for _ in tl.static_range(BW):
        b_zs = b_zs + (tl.zeros([BT, BK], tl.float32),)  # noqa: RUF005

    # Keys before the block of queries are all visible; only the blocks that hold the diagonal need a comparison.
    i_diagonal = i_t * BT // BI * BI
    for m_stage in tl.static_range(2):
        i_first = i_diagonal * m_stage
        i_last = tl.minimum((i_t + 1) * BT, P) * m_stage + i_diagonal * (1 - m_stage)
        for i_i in range(i_first, i_last, BI):
            o_i = i_i + tl.arange(0, BI)
            m_i = o_i < P
            o_key = o_i.to(tl.int64)
            p_ki = p_k + o_key[None, :] * k_p + o_k[:, None]
            b_k = tl.load(p_ki, mask=m_i[None, :] & m_k[:, None], other=0.0)  # [BK, BI]
            b_s = tl.dot(b_q, b_k, input_precision=PRECISION) * (softmax_scale * LOG2_E)  # [BT, BI]
            if m_stage == 1:
                b_s = tl.where(m_i[None, :] & (o_i[None, :] <= o_t[:, None]), b_s, float("-inf"))
            b_new = tl.maximum(b_max, tl.max(b_s, 1))
            b_shrink = tl.exp2(b_max - b_new)
            b_p = tl.exp2(b_s - b_new[:, None])  # [BT, BI]
            b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
            b_max = b_new
            b_sums = ()
            for w in tl.static_range(BW):
                p_vw = p_v + (i_w0 + w).to(tl.int64) * B * P * G * K + o_key[:, None] * G * K + o_k[None, :]
                m_iw = o_i < tl.where(i_w0 + w < W, P, 0)
                b_v = tl.load(p_vw, mask=m_iw[:, None] & m_k[None, :], other=0.0)  # [BI, BK]
                b_z = tl.dot(b_p.to(b_v.dtype), b_v, b_zs[w] * b_shrink[:, None], input_precision=PRECISION)
                b_sums = b_sums + (b_z,)  # noqa: RUF005
            b_zs = b_sums

    for w in tl.static_range(BW):
        b_z = b_zs[w] / b_sum[:, None]
        p_z = z_ptr + ((((i_w0 + w).to(tl.int64) * B + i_b) * P + o_row[:, None]) * H + i_h) * K + o_k[None, :]
        m_tw = o_t < tl.where(i_w0 + w < W, P, 0)
        tl.store(p_z, b_z.to(z_ptr.dtype.element_ty), mask=m_tw[:, None] & m_k[None, :])


@triton.jit(do_not_specialize=["R"])
def sum_heads_kernel(
    z_ptr,  # [R, H, K] f32, f16 or bf16, contiguous
    w_ptr,  # [H, K, D] as z; rows of D contiguous
    total_ptr,  # [R, D] f32
    w_h,
    w_k,
    R,
    H,
    D,
    K: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # A plain matrix product [R, H K] x [H K, D] in which a head's dimensions are padded to blocks of BK.
    o_d = tl.program_id(0) * BD + tl.arange(0, BD)
    o_r = (tl.program_id(1) * BT + tl.arange(0, BT)).to(tl.int64)
    m_r, m_d = o_r < R, o_d < D
    b_total = tl.zeros([BT, BD], tl.float32)
    p_z = z_ptr + o_r[:, None] * H * K
    p_w = w_ptr + o_d[None, :]
    # Heads and their dimensions in one loop, so that loads run ahead of products however small a head is.
    n_k = tl.cdiv(K, BK)
    for i_hk in range(H * n_k):
        i_h, i_k = i_hk // n_k, i_hk % n_k * BK
        o_k = i_k + tl.arange(0, BK)
        m_k = o_k < K
        b_z = tl.load(p_z + i_h * K + o_k[None, :], mask=m_r[:, None] & m_k[None, :], other=0.0)  # [BT, BK]
        p_hw = p_w + (tl.zeros([BK, 1], tl.int64) + i_h) * w_h + o_k[:, None] * w_k
        b_w = tl.load(p_hw, mask=m_k[:, None] & m_d[None, :], other=0.0)  # [BK, BD]
        b_total = tl.dot(b_z, b_w, b_total, input_precision=PRECISION)  # [BT, BD]
    tl.store(total_ptr + o_r[:, None] * D + o_d[None, :], b_total, mask=m_r[:, None] & m_d[None, :])
