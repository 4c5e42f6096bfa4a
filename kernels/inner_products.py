# Kernels are typed by the comments beside their pointers, which a type checker cannot read.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=False
# mypy: disable-error-code=assignment
"""The Triton kernels of the projections: components times heads, or times vectors, as one small product a position."""

import triton
import triton.language as tl


# Numbers of prompts and positions change from batch to batch: no code of their own for those that 16 divides.
@triton.jit(do_not_specialize=["B", "P"])
def project_kernel(
    z_ptr,  # [W, B, P, H, K] f32, f16 or bf16; rows of K contiguous
    w_ptr,  # [H, K, D] as z; rows of D contiguous
    of_ptr,  # [S, B, P, D] f32, f16 or bf16; rows of D contiguous
    num_ptr,  # [W, H, S, B, P] f32 by strides; positions contiguous
    norm2_ptr,  # [H, B, P] f32, contiguous; absent unless NORM
    z_w,
    z_b,
    z_p,
    z_h,
    w_h,
    w_k,
    of_s,
    of_b,
    of_p,
    num_w,
    num_h,
    num_s,
    num_b,
    B,
    P,
    H,
    S,
    D,
    K: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
    BS: tl.constexpr,
    BH: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # One program takes BT positions, all their heads and all their components, and walks along D. At each step it forms
    # BD columns of every head, a batch of products over heads, turns them so that positions come first, and multiplies
    # them with the same columns of every component, a batch of products over positions. So no sum crosses lanes, every
    # component is read once, every head formed once, and z stays in registers. W_O is read once for each BT positions,
    # from L2: that is the price, and why wide or many heads are formed beforehand (see `projection.project`).
    # Programs that share positions run side by side.
    n_h, n_s = tl.cdiv(H, BH), tl.cdiv(S, BS)
    i_wb, i_c, i_t = tl.program_id(1).to(tl.int64), tl.program_id(0) % (n_h * n_s), tl.program_id(0) // (n_h * n_s)
    i_w, i_b = i_wb // B, i_wb % B
    i_h0, i_s0 = i_c % n_h * BH, i_c // n_h * BS
    o_t = i_t * BT + tl.arange(0, BT)
    o_h = i_h0 + tl.arange(0, BH)
    o_s = i_s0 + tl.arange(0, BS)
    o_k = tl.arange(0, BK)
    m_t, m_h, m_s, m_k = o_t < P, o_h < H, o_s < S, o_k < K
    o_row, o_head, o_comp = o_t.to(tl.int64), o_h.to(tl.int64), o_s.to(tl.int64)

    p_z = z_ptr + i_w * z_w + i_b * z_b + o_row[None, :, None] * z_p + o_head[:, None, None] * z_h + o_k[None, None, :]
    m_z = m_h[:, None, None] & m_t[None, :, None] & m_k[None, None, :]
    b_z = tl.load(p_z, mask=m_z, other=0.0)  # [BH, BT, BK]
    p_w = w_ptr + o_head[:, None, None] * w_h + o_k[None, :, None] * w_k
    m_w = m_h[:, None, None] & m_k[None, :, None]
    p_of = of_ptr + i_b * of_b + o_row[:, None, None] * of_p + o_comp[None, :, None] * of_s
    m_of = m_t[:, None, None] & m_s[None, :, None]
    b_num = tl.zeros([BT, BS, BH], tl.float32)
    b_norm2 = tl.zeros([BH, BT], tl.float32)

    for i_d in range(0, D, BD):
        o_d = i_d + tl.arange(0, BD)
        m_d = (o_d < D)[None, None, :]
        b_w = tl.load(p_w + o_d[None, None, :], mask=m_w & m_d, other=0.0)  # [BH, BK, BD]
        b_of = tl.load(p_of + o_d[None, None, :], mask=m_of & m_d, other=0.0)  # [BT, BS, BD]
        b_head = tl.dot(b_z, b_w, input_precision=PRECISION)  # [BH, BT, BD]
        if NORM:
            b_norm2 += tl.sum(b_head * b_head, 2)  # [BH, BT]
        b_turned = tl.permute(b_head, (1, 2, 0)).to(b_z.dtype)  # [BT, BD, BH]
        b_num = tl.dot(b_of.to(b_z.dtype), b_turned, b_num, input_precision=PRECISION)  # [BT, BS, BH]

    p_num = num_ptr + i_w * num_w + i_b * num_b + o_row[:, None, None]
    p_num += o_comp[None, :, None] * num_s + o_head[None, None, :] * num_h
    tl.store(p_num, b_num, mask=m_of & m_h[None, None, :])
    if NORM and i_s0 == 0:
        tl.store(
            norm2_ptr + (o_head[:, None] * B + i_b) * P + o_row[None, :], b_norm2, mask=m_h[:, None] & m_t[None, :]
        )


@triton.jit(do_not_specialize=["P"])
def onto_vectors_kernel(
    v_ptr,  # [M, B, P, D] f32, f16 or bf16; rows of D contiguous
    of_ptr,  # [S, B, P, D] f32, f16 or bf16; rows of D contiguous
    num_ptr,  # [S, M, B, P] f32 by strides; positions contiguous
    norm2_ptr,  # [M, B, P] f32 by strides; positions contiguous; absent unless NORM
    v_m,
    v_b,
    v_p,
    of_s,
    of_b,
    of_p,
    num_s,
    num_m,
    num_b,
    norm2_m,
    norm2_b,
    P,
    S,
    D,
    M,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BS: tl.constexpr,
    BM: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # The same without the first product: at each of BT positions a small product of BS components with BM vectors. A
    # warp has a position of its own, so that nothing crosses warps, and BS and BM hold all there are wherever the sums
    # fit registers: then components and vectors are read once.
    n_m, n_s = tl.cdiv(M, BM), tl.cdiv(S, BS)
    i_b, i_c, i_t = tl.program_id(1).to(tl.int64), tl.program_id(0) % (n_m * n_s), tl.program_id(0) // (n_m * n_s)
    i_m0, i_s0 = i_c % n_m * BM, i_c // n_m * BS
    o_t = i_t * BT + tl.arange(0, BT)
    o_m = i_m0 + tl.arange(0, BM)
    o_s = i_s0 + tl.arange(0, BS)
    m_t, m_m, m_s = o_t < P, o_m < M, o_s < S
    o_row, o_vec, o_comp = o_t.to(tl.int64), o_m.to(tl.int64), o_s.to(tl.int64)

    p_v = v_ptr + i_b * v_b + o_row[:, None, None] * v_p + o_vec[None, :, None] * v_m
    m_v = m_t[:, None, None] & m_m[None, :, None]
    p_of = of_ptr + i_b * of_b + o_row[:, None, None] * of_p + o_comp[None, :, None] * of_s
    m_of = m_t[:, None, None] & m_s[None, :, None]
    b_num = tl.zeros([BT, BS, BM], tl.float32)
    b_norm2 = tl.zeros([BT, BM], tl.float32)

    for i_d in range(0, D, BD):
        o_d = i_d + tl.arange(0, BD)
        m_d = (o_d < D)[None, None, :]
        b_v = tl.load(p_v + o_d[None, None, :], mask=m_v & m_d, other=0.0)  # [BT, BM, BD]
        b_of = tl.load(p_of + o_d[None, None, :], mask=m_of & m_d, other=0.0)  # [BT, BS, BD]
        b_num = tl.dot(b_of.to(b_v.dtype), tl.permute(b_v, (0, 2, 1)), b_num, input_precision=PRECISION)
        if NORM:
            b_square = b_v.to(tl.float32)
            b_norm2 += tl.sum(b_square * b_square, 2)  # [BT, BM]

    p_num = num_ptr + i_b * num_b + o_row[:, None, None]
    p_num += o_comp[None, :, None] * num_s + o_vec[None, None, :] * num_m
    tl.store(p_num, b_num, mask=m_of & m_m[None, None, :])
    if NORM and i_s0 == 0:
        p_norm2 = norm2_ptr + i_b * norm2_b + o_vec[None, :] * norm2_m + o_row[:, None]
        tl.store(p_norm2, b_norm2, mask=m_t[:, None] & m_m[None, :])
