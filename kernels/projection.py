# Kernels are typed by the comments beside their pointers, which a type checker cannot read.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=False
# mypy: disable-error-code=assignment
"""Projection of every component on every head in one launch: head outputs live only in registers."""

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from repro.kernels import outputs, shapes
from repro.kernels.launch import precision as precisions
from repro.kernels.launch import tuning
from repro.kernels.launch.launch import Argument, CompileSpec, Launch, kind, named_strides, pow2, rows

# (vendor, kind of input) -> block sizes, the default first, the rest tried within `tuning()`: BT positions, BD of D,
# BK of K, at most BS components and BH heads a program. A component's tile stays in registers for BH heads.
PROJECT_BLOCKS: Mapping[tuple[str, str], tuple[tuning.Blocks, ...]] = {
    ("cuda", "ieee"): (
        {"BT": 32, "BD": 64, "BK": 32, "BS": 5, "BH": 8, "num_warps": 8, "num_stages": 2},
        {"BT": 32, "BD": 32, "BK": 32, "BS": 9, "BH": 8, "num_warps": 8, "num_stages": 2},
    ),
    ("cuda", "tf32x3"): (
        {"BT": 32, "BD": 64, "BK": 32, "BS": 5, "BH": 8, "num_warps": 8, "num_stages": 2},
        {"BT": 16, "BD": 64, "BK": 64, "BS": 9, "BH": 8, "num_warps": 8, "num_stages": 2},
    ),
    ("cuda", "half"): (
        {"BT": 32, "BD": 64, "BK": 64, "BS": 9, "BH": 8, "num_warps": 8, "num_stages": 2},
        {"BT": 64, "BD": 32, "BK": 64, "BS": 9, "BH": 8, "num_warps": 8, "num_stages": 2},
        {"BT": 32, "BD": 64, "BK": 64, "BS": 5, "BH": 8, "num_warps": 8, "num_stages": 3},
    ),
    ("hip", "ieee"): ({"BT": 16, "BD": 64, "BK": 64, "BS": 5, "BH": 8, "num_warps": 4, "num_stages": 2},),
    ("hip", "half"): ({"BT": 16, "BD": 64, "BK": 64, "BS": 10, "BH": 8, "num_warps": 4, "num_stages": 2},),
}
# The same for vectors: nothing is formed, the sums of BS components stay in registers.
VECTOR_BLOCKS: Mapping[str, tuple[tuning.Blocks, ...]] = {
    "cuda": (
        {"BT": 8, "BD": 128, "BS": 5, "num_warps": 4, "num_stages": 2},
        {"BT": 8, "BD": 128, "BS": 3, "num_warps": 4, "num_stages": 3},
    ),
    "hip": ({"BT": 16, "BD": 128, "BS": 5, "num_warps": 4, "num_stages": 2},),
}


@triton.jit
def project_kernel(
    z_ptr,  # [W B, P, H, K] f32, f16 or bf16; rows of K contiguous
    w_ptr,  # [H, K, D] as z; rows of D contiguous
    of_ptr,  # [S, B, P, D] f32, f16 or bf16; rows of D contiguous
    num_ptr,  # [W, H, S, B, P] f32 by strides
    norm2_ptr,  # [H, B, P] f32; absent unless NORM
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
    i_t, i_wb, i_c = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    i_w, i_b = i_wb // B, i_wb % B
    i_h0 = i_c % tl.cdiv(H, BH) * BH
    i_s0 = i_c // tl.cdiv(H, BH) * BS
    o_t = i_t * BT + tl.arange(0, BT)
    o_h = i_h0 + tl.arange(0, BH)
    m_t = o_t < P
    o_row = o_t.to(tl.int64)

    p_z = z_ptr + i_wb * z_b + o_row[:, None] * z_p
    p_of = of_ptr + i_b * of_b + o_row[:, None] * of_p
    b_nums = ()
    for _ in tl.static_range(BS):
        b_nums = b_nums + (tl.zeros([BT, BH], tl.float32),)  # noqa: RUF005
    b_norm2 = tl.zeros([BT, BH], tl.float32)

    for i_d in range(0, D, BD):
        o_d = i_d + tl.arange(0, BD)
        m_d = o_d < D
        # Read once here and used for every head below: this is why the loop over heads is the inner one.
        b_ofs = ()
        for s in tl.static_range(BS):
            p_s = p_of + (i_s0 + s).to(tl.int64) * of_s + o_d[None, :]
            m_ts = o_t < tl.where(i_s0 + s < S, P, 0)
            b_of = tl.load(p_s, mask=m_ts[:, None] & m_d[None, :], other=0.0)
            b_ofs = b_ofs + (b_of,)  # noqa: RUF005
        p_zh = p_z + i_h0 * z_h
        p_wh = w_ptr + i_h0.to(tl.int64) * w_h + o_d[None, :]
        for i_h in range(i_h0, min(i_h0 + BH, H)):
            b_head = tl.zeros([BT, BD], tl.float32)
            for i_k in tl.static_range(0, K, BK):
                o_k = i_k + tl.arange(0, BK)
                m_k = o_k < K
                b_z = tl.load(p_zh + o_k[None, :], mask=m_t[:, None] & m_k[None, :], other=0.0)
                b_w = tl.load(p_wh + o_k[:, None] * w_k, mask=m_k[:, None] & m_d[None, :], other=0.0)
                b_head = tl.dot(b_z, b_w, b_head, input_precision=PRECISION)
            p_zh += z_h
            p_wh += w_h
            # Registers have no index, so the head's column is picked by a comparison.
            m_h = (o_h == i_h)[None, :]
            b_sums = ()
            for s in tl.static_range(BS):
                b_dot = tl.sum(b_ofs[s].to(tl.float32) * b_head, 1)
                b_sums = b_sums + (b_nums[s] + tl.where(m_h, b_dot[:, None], 0.0),)  # noqa: RUF005
            b_nums = b_sums
            if NORM:
                b_norm2 += tl.where(m_h, tl.sum(b_head * b_head, 1)[:, None], 0.0)

    p_num = num_ptr + i_w * num_w + o_h[None, :].to(tl.int64) * num_h + i_b * P + o_row[:, None]
    for s in tl.static_range(BS):
        m_ts = o_t < tl.where(i_s0 + s < S, P, 0)
        tl.store(p_num + (i_s0 + s).to(tl.int64) * num_s, b_nums[s], mask=m_ts[:, None] & (o_h < H)[None, :])
    if NORM and i_s0 == 0:
        tl.store(
            norm2_ptr + (o_h[None, :].to(tl.int64) * B + i_b) * P + o_row[:, None],
            b_norm2,
            mask=m_t[:, None] & (o_h < H)[None, :],
        )


@triton.jit
def onto_vectors_kernel(
    v_ptr,  # [M, B, P, D] f32, f16 or bf16; rows of D contiguous
    of_ptr,  # [S, B, P, D] f32, f16 or bf16; rows of D contiguous
    num_ptr,  # [S, M, B, P] f32
    norm2_ptr,  # [M, B, P] f32
    v_m,
    v_b,
    v_p,
    of_s,
    of_b,
    of_p,
    B,
    P,
    S,
    D,
    M,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BS: tl.constexpr,
):
    i_t, i_mb, i_s0 = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2) * BS
    i_m, i_b = i_mb // B, i_mb % B
    o_t = i_t * BT + tl.arange(0, BT)
    m_t = o_t < P
    o_row = o_t.to(tl.int64)
    p_v = v_ptr + i_m * v_m + i_b * v_b + o_row[:, None] * v_p
    b_nums = ()
    for _ in tl.static_range(BS):
        b_nums = b_nums + (tl.zeros([BT, BD], tl.float32),)  # noqa: RUF005
    b_norm2 = tl.zeros([BT, BD], tl.float32)

    for i_d in range(0, D, BD):
        o_d = i_d + tl.arange(0, BD)
        m_td = m_t[:, None] & (o_d < D)[None, :]
        b_v = tl.load(p_v + o_d[None, :], mask=m_td, other=0.0).to(tl.float32)
        b_sums = ()
        for s in tl.static_range(BS):
            p_of = of_ptr + (i_s0 + s).to(tl.int64) * of_s + i_b * of_b + o_row[:, None] * of_p + o_d[None, :]
            m_ts = o_t < tl.where(i_s0 + s < S, P, 0)
            b_of = tl.load(p_of, mask=m_ts[:, None] & (o_d < D)[None, :], other=0.0).to(tl.float32)
            b_sums = b_sums + (b_nums[s] + b_of * b_v,)  # noqa: RUF005
        b_nums = b_sums
        b_norm2 += b_v * b_v

    for s in tl.static_range(BS):
        p_num = num_ptr + (((i_s0 + s).to(tl.int64) * M + i_m) * B + i_b) * P + o_row
        tl.store(p_num, tl.sum(b_nums[s], 1), mask=o_t < tl.where(i_s0 + s < S, P, 0))
    if i_s0 == 0:
        tl.store(norm2_ptr + i_mb * P + o_row, tl.sum(b_norm2, 1), mask=m_t)


def projection(z: Tensor, W_O: Tensor, of: Tensor, *, precision: str = "ieee") -> tuple[Tensor, Tensor]:
    """Compute inner products of components with every head's output, and the heads' squared norms, in one launch.

    num[s, h, b, t] = <of[s, b, t], z[b, t, h] W_O[h]>,  norm2[h, b, t] = |z[b, t, h] W_O[h]|^2
    (PR(a, b) of arXiv 2310.07325 is num / norm2)

    z:   [prompt, pos, head, d_head]        W_O: [head, d_head, d_model], of z's dtype: float32, float16 or bfloat16
    of:  [component, prompt, pos, d_model], in activation units
    precision: "ieee", or for float32 "tf32x3"
    Returns num [component, head, prompt, pos] and norm2 [head, prompt, pos], float32, squared activation units.
    Raises ShapeError naming both shapes if they do not fit, UnsupportedError for a dtype or precision that does not
    exist on the device. Agreement: tests/kernels/test_projection.py.
    """
    dims = shapes.projection(z, W_O, of)
    vendor = precisions.check("projection", z.device, precision, z=z, W_O=W_O)
    precisions.check("projection", z.device, "ieee", of=of)
    B, P, H, S = (dims[name] for name in "BPHS")
    num = outputs.empty((S, H, B, P), torch.float32, z.device)
    norm2 = outputs.empty((H, B, P), torch.float32, z.device)
    project(z, W_O, of, num.transpose(0, 1)[None], norm2, precision, vendor).run()
    return num, norm2


def projection_onto_vectors(v: Tensor, of: Tensor, *, precision: str = "ieee") -> tuple[Tensor, Tensor]:
    """Compute inner products of components with vectors at every position, and squared norms, in one launch.

    num[s, m, b, t] = <of[s, b, t], v[m, b, t]>,  norm2[m, b, t] = |v[m, b, t]|^2
    (PR(a, b) of arXiv 2310.07325 is num / norm2)

    v:   [vector, prompt, pos, d_model]     of: [component, prompt, pos, d_model], in activation units
    precision: taken for likeness; there is no matrix product here, so all multiply alike
    Returns num [component, vector, prompt, pos] and norm2 [vector, prompt, pos], float32, squared activation units.
    Raises ShapeError naming both shapes if they do not fit, UnsupportedError for a dtype or precision that does not
    exist on the device. Agreement: tests/kernels/test_projection.py.
    """
    dims = shapes.projection_onto_vectors(v, of)
    vendor = precisions.check("projection_onto_vectors", v.device, precision, v=v)
    precisions.check("projection_onto_vectors", v.device, "ieee", of=of)
    B, P, S, M = (dims[name] for name in "BPSM")
    num = outputs.empty((S, M, B, P), torch.float32, v.device)
    norm2 = outputs.empty((M, B, P), torch.float32, v.device)
    project_onto_vectors(v, of, num, norm2, vendor).run()
    return num, norm2


def project(
    z: Tensor, W_O: Tensor, of: Tensor, num: Tensor, norm2: Tensor | None, precision: str, vendor: str
) -> Launch:
    """Launch what writes num [writer, head, component, prompt, pos] and, unless None, norm2 [head, prompt, pos].

    z: [writer * prompt, pos, head, d_head]; the rest as in `projection`. `num` may lie in memory in any order of its
    first three dimensions.
    """
    z, W_O, of = rows(z), rows(W_O), rows(of)
    (_, P, H, K), (S, B, _, D), W = z.shape, of.shape, len(num)
    arguments: dict[str, Argument] = {"z_ptr": z, "w_ptr": W_O, "of_ptr": of, "num_ptr": num, "norm2_ptr": norm2}
    numbers = named_strides("z", z, "b p h") | named_strides("w", W_O, "h k") | named_strides("of", of, "s b p")
    numbers |= named_strides("num", num, "w h s") | {"B": B, "P": P, "H": H, "S": S, "D": D}

    def build(blocks: tuning.Blocks) -> Launch:
        chunks = triton.cdiv(S, blocks["BS"])
        # Components are spread evenly over as few programs as hold them: nine in fives are five and four.
        constants = {**blocks, "BK": min(blocks["BK"], pow2(K)), "BS": triton.cdiv(S, chunks)}
        # All of a head's dimensions are loaded ahead together, so wide heads leave room for no second stage.
        constants["num_stages"] = blocks["num_stages"] if K <= 128 else 1
        grid = (triton.cdiv(P, blocks["BT"]), W * B, chunks * triton.cdiv(H, blocks["BH"]))
        constants |= {"K": K, "NORM": norm2 is not None, "PRECISION": precision}
        return Launch(project_kernel, arguments | numbers, constants, grid)

    key = ("project", z.shape, of.shape, z.dtype, of.dtype, precision, str(z.device))
    return tuning.choose(key, PROJECT_BLOCKS[vendor, kind(z.dtype, precision)], build)


def project_onto_vectors(v: Tensor, of: Tensor, num: Tensor, norm2: Tensor, vendor: str) -> Launch:
    """Return the launch that writes num [component, vector, prompt, pos] and norm2 [vector, prompt, pos]."""
    v, of = rows(v), rows(of)
    (M, B, P, D), S = v.shape, len(of)
    arguments: dict[str, Argument] = {"v_ptr": v, "of_ptr": of, "num_ptr": num, "norm2_ptr": norm2}
    numbers = named_strides("v", v, "m b p") | named_strides("of", of, "s b p")
    numbers |= {"B": B, "P": P, "S": S, "D": D, "M": M}

    def build(blocks: tuning.Blocks) -> Launch:
        chunks = triton.cdiv(S, blocks["BS"])
        constants = {**blocks, "BS": triton.cdiv(S, chunks)}
        grid = (triton.cdiv(P, blocks["BT"]), M * B, chunks)
        return Launch(onto_vectors_kernel, arguments | numbers, constants, grid)

    key = ("project_onto_vectors", v.shape, of.shape, v.dtype, of.dtype, str(v.device))
    return tuning.choose(key, VECTOR_BLOCKS[vendor], build)


def compile_specs(
    dtype: torch.dtype, shape: Mapping[str, int], vendor: str = "cuda", precision: str = "ieee"
) -> dict[str, CompileSpec]:
    """Return kernel name -> what the compiler needs for this module's launches at a shape {B, P, H, K, D, S}."""
    B, P, H, K, D, S = (shape[name] for name in "BPHKDS")

    def tensor(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=of, device="meta")

    z, W_O, of = tensor(B, P, H, K), tensor(H, K, D), tensor(S, B, P, D)
    num, norm2 = tensor(1, H, S, B, P, of=torch.float32), tensor(H, B, P, of=torch.float32)
    launches = {
        "projection": project(z, W_O, of, num, norm2, precision, vendor),
        "projection_onto_vectors": project_onto_vectors(tensor(1, B, P, D), of, num[0, 0, :, None], norm2[:1], vendor),
    }
    return {name: launch.compile_spec() for name, launch in launches.items()}
