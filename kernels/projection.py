"""Projection of every component on every head in one launch: head outputs live only in registers."""

import triton
import triton.language as tl


@triton.jit
def project_kernel(
    z_ptr,  # [B, P, H, K] f32, f16 or bf16; rows of K contiguous
    w_ptr,  # [H, K, D] as z; rows of D contiguous
    of_ptr,  # [S, B / W, P, D] as z; rows of D contiguous; absent if S = 0
    num_ptr,  # [S, H, B, P] f32 by strides; absent if S = 0
    norm2_ptr,  # [H, B, P] f32; absent unless NORM
    total_ptr,  # [B, P, D] f32; absent unless TOTAL
    z_b,
    z_p,
    z_h,
    w_h,
    w_k,
    of_s,
    of_b,
    of_p,
    num_s,
    num_h,
    num_w,
    num_b,
    B,
    B_of,
    P,
    H,
    S,
    D,
    K: tl.constexpr,
    BK: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BS: tl.constexpr,
    BH: tl.constexpr,
    NORM: tl.constexpr,
    TOTAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_t, i_b, i_c = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    i_h0 = i_c % tl.cdiv(H, BH) * BH
    i_s0 = i_c // tl.cdiv(H, BH) * BS
    o_t = i_t * BT + tl.arange(0, BT)
    o_h = i_h0 + tl.arange(0, BH)
    m_t = o_t < P
    o_row = o_t.to(tl.int64)

    p_z = z_ptr + i_b * z_b + o_row[:, None] * z_p
    p_of = of_ptr + (i_b % B_of) * of_b + o_row[:, None] * of_p
    b_nums = ()
    for _ in tl.static_range(BS):
        b_nums = b_nums + (tl.zeros([BT, BH], tl.float32),)
    b_norm2 = tl.zeros([BT, BH], tl.float32)

    for i_d in range(0, D, BD):
        o_d = i_d + tl.arange(0, BD)
        m_d = o_d < D
        # Read once here and used for every head below: this is why the loop over heads is the inner one.
        b_ofs = ()
        for s in tl.static_range(BS):
            p_s = p_of + (i_s0 + s).to(tl.int64) * of_s + o_d[None, :]
            b_ofs = b_ofs + (tl.load(p_s, mask=m_t[:, None] & m_d[None, :] & (i_s0 + s < S), other=0.0),)
        b_total = tl.zeros([BT, BD], tl.float32)
        for i_h in range(i_h0, min(i_h0 + BH, H)):
            b_head = tl.zeros([BT, BD], tl.float32)
            for i_k in tl.static_range(0, K, BK):
                o_k = i_k + tl.arange(0, BK)
                m_k = o_k < K
                p_w = w_ptr + i_h.to(tl.int64) * w_h + o_k[:, None] * w_k + o_d[None, :]
                b_z = tl.load(p_z + i_h * z_h + o_k[None, :], mask=m_t[:, None] & m_k[None, :], other=0.0)
                b_w = tl.load(p_w, mask=m_k[:, None] & m_d[None, :], other=0.0)
                b_head = tl.dot(b_z, b_w, b_head, input_precision=PRECISION)
            m_h = (o_h == i_h)[None, :]
            b_new = ()
            for s in tl.static_range(BS):
                b_dot = tl.sum(b_ofs[s].to(tl.float32) * b_head, 1)
                b_new = b_new + (b_nums[s] + tl.where(m_h, b_dot[:, None], 0.0),)
            b_nums = b_new
            if NORM:
                b_norm2 += tl.where(m_h, tl.sum(b_head * b_head, 1)[:, None], 0.0)
            if TOTAL:
                b_total += b_head
        if TOTAL:
            p_total = total_ptr + (i_b * P + o_row[:, None]) * D + o_d[None, :]
            tl.store(p_total, b_total, mask=m_t[:, None] & m_d[None, :])

    m_out = m_t[:, None] & (o_h < H)[None, :]
    o_out = o_row[:, None] + o_h[None, :].to(tl.int64) * num_h + i_b // B_of * num_w + i_b % B_of * num_b
    for s in tl.static_range(BS):
        tl.store(num_ptr + o_out + (i_s0 + s).to(tl.int64) * num_s, b_nums[s], mask=m_out & (i_s0 + s < S))
    if NORM and i_s0 == 0:
        tl.store(norm2_ptr + (o_h[None, :].to(tl.int64) * B + i_b) * P + o_row[:, None], b_norm2, mask=m_out)
