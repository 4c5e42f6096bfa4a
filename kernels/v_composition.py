"""V-composition on Triton: four launches that share one small array, z, and never store a pattern.

Values are formed beforehand, because inside the attention every block of queries would form them again. z, the mixed
values before W_O, is stored, because it is d_head / d_model of the size of head outputs, and the projection kernel
then reads each direction once for eight heads rather than once for every head.
"""

from collections.abc import Mapping

import torch
import triton
from torch import Tensor

from repro.kernels import outputs, shapes
from repro.kernels.attention import attend_kernel, sum_heads_kernel, values_kernel
from repro.kernels.launch import precision as precisions
from repro.kernels.launch import tuning
from repro.kernels.launch.launch import Argument, Launch, Tiling, named_strides, pow2, row_of, rows
from repro.kernels.projection import project

# (vendor, kind of input) -> block sizes, the default first, the rest tried within `tuning()`: BT positions, BD of D.
VALUES_BLOCKS: Mapping[tuple[str, str], tuple[tuning.Blocks, ...]] = {
    ("cuda", "ieee"): ({"BT": 32, "BD": 32, "num_warps": 4, "num_stages": 2},),
    ("cuda", "tf32x3"): ({"BT": 64, "BD": 32, "num_warps": 4, "num_stages": 2},),
    ("cuda", "half"): ({"BT": 64, "BD": 64, "num_warps": 4, "num_stages": 3},),
    ("hip", "ieee"): ({"BT": 32, "BD": 32, "num_warps": 4, "num_stages": 2},),
    ("hip", "half"): ({"BT": 64, "BD": 64, "num_warps": 4, "num_stages": 2},),
}
# BT queries, BI keys, BW writers that share the pattern of a program; for one writer and heads of at most 64.
ATTEND_BLOCKS: Mapping[tuple[str, str], tuple[tuning.Blocks, ...]] = {
    ("cuda", "ieee"): ({"BT": 32, "BI": 32, "BW": 1, "num_warps": 4, "num_stages": 2},),
    ("cuda", "tf32x3"): (
        {"BT": 64, "BI": 16, "BW": 1, "num_warps": 4, "num_stages": 2},
        {"BT": 128, "BI": 16, "BW": 1, "num_warps": 8, "num_stages": 2},
    ),
    ("cuda", "half"): (
        {"BT": 128, "BI": 64, "BW": 1, "num_warps": 8, "num_stages": 2},
        {"BT": 64, "BI": 64, "BW": 1, "num_warps": 4, "num_stages": 2},
    ),
    ("hip", "ieee"): ({"BT": 64, "BI": 32, "BW": 1, "num_warps": 4, "num_stages": 1},),
    ("hip", "half"): ({"BT": 64, "BI": 32, "BW": 1, "num_warps": 4, "num_stages": 2},),
}
# The same for several writers: each has sums of its own, so that blocks of queries or keys are smaller.
SHARED_BLOCKS: Mapping[tuple[str, str], tuple[tuning.Blocks, ...]] = {
    ("cuda", "ieee"): ({"BT": 32, "BI": 32, "BW": 2, "num_warps": 4, "num_stages": 2},),
    ("cuda", "tf32x3"): ({"BT": 32, "BI": 32, "BW": 4, "num_warps": 8, "num_stages": 2},),
    ("cuda", "half"): ({"BT": 128, "BI": 32, "BW": 4, "num_warps": 8, "num_stages": 2},),
    ("cuda80", "half"): ({"BT": 64, "BI": 32, "BW": 2, "num_warps": 8, "num_stages": 2},),
    ("hip", "ieee"): ({"BT": 64, "BI": 32, "BW": 2, "num_warps": 4, "num_stages": 1},),
    ("hip", "half"): ({"BT": 64, "BI": 32, "BW": 4, "num_warps": 4, "num_stages": 2},),
}
# The same for heads of 128 dimensions; wider ones take smaller blocks again.
WIDE_BLOCKS: Mapping[tuple[str, str], tuple[tuning.Blocks, ...]] = {
    ("cuda", "ieee"): ({"BT": 32, "BI": 16, "BW": 1, "num_warps": 4, "num_stages": 2},),
    ("cuda", "tf32x3"): ({"BT": 32, "BI": 32, "BW": 1, "num_warps": 8, "num_stages": 2},),
    ("cuda", "half"): ({"BT": 128, "BI": 32, "BW": 1, "num_warps": 8, "num_stages": 2},),
    ("hip", "ieee"): ({"BT": 32, "BI": 32, "BW": 1, "num_warps": 4, "num_stages": 1},),
    ("hip", "half"): ({"BT": 64, "BI": 32, "BW": 1, "num_warps": 4, "num_stages": 2},),
}
# BT rows, BD of D, BK of K.
SUM_BLOCKS: Mapping[tuple[str, str], tuple[tuning.Blocks, ...]] = {
    ("cuda", "ieee"): ({"BT": 64, "BD": 64, "BK": 32, "num_warps": 8, "num_stages": 2},),
    ("cuda", "tf32x3"): ({"BT": 128, "BD": 64, "BK": 32, "num_warps": 8, "num_stages": 2},),
    ("cuda80", "tf32x3"): ({"BT": 64, "BD": 64, "BK": 32, "num_warps": 8, "num_stages": 2},),
    ("cuda", "half"): ({"BT": 64, "BD": 128, "BK": 64, "num_warps": 4, "num_stages": 3},),
    ("hip", "ieee"): ({"BT": 64, "BD": 64, "BK": 32, "num_warps": 4, "num_stages": 2},),
    ("hip", "half"): ({"BT": 64, "BD": 64, "BK": 64, "num_warps": 4, "num_stages": 2},),
}


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
    precision: str = "ieee",
) -> tuple[Tensor | None, Tensor | None]:
    """Compute `reference.v_composition`, flash-style over blocks of queries: no pattern is ever stored.

    q, k, W_V and W_O share a dtype: float32, float16 or bfloat16. precision: "ieee", or for float32 "tf32x3". Returns
    float32. Memory beyond that: the mixed values of all heads and writers, twice. Raises UnsupportedError for a dtype
    or precision that does not exist on the device. Agreement: tests/kernels/test_v_composition.py.
    """
    dims = shapes.v_composition(q, k, writer, scale, W_V, W_O, onto, total=total)
    vendor = precisions.check("v_composition", q.device, precision, q=q, k=k, W_V=W_V, W_O=W_O)
    for name, tensor in {"writer": writer, "scale": scale, "onto": onto}.items():
        precisions.check("v_composition", q.device, "ieee", **{name: q if tensor is None else tensor})
    B, P, H, K, G, W, D = (dims[name] for name in "BPHKGWD")
    values = outputs.empty((W, B, P, G, K), q.dtype, q.device)
    z = outputs.empty((W, B, P, H, K), q.dtype, q.device)
    alpha = K**-0.5 if softmax_scale is None else softmax_scale
    if by_library(q.dtype, precision):
        normed_values(writer, scale, W_V, values, center)
    else:
        form_values(writer, scale, W_V, values, center, precision, vendor).run()
    attend(q, k, values, z, alpha, precision, vendor).run()
    dots, summed = None, None
    if onto is not None:
        dots = outputs.empty((W, H, len(onto), B, P), torch.float32, q.device)
        project(z.flatten(0, 1), W_O, onto, dots, None, precision, vendor)
    if total:
        summed = outputs.empty((W, B, P, D), torch.float32, q.device)
        if by_library(q.dtype, precision):
            torch.mm(z.view(-1, H * K), W_O.reshape(H * K, D), out=summed.view(-1, D))
        else:
            sum_heads(z.view(W * B * P, H, K), W_O, summed, precision, vendor).run()
    return dots, summed


def by_library(dtype: torch.dtype, precision: str) -> bool:
    """Return whether plain products are the vendor's: whole float32, which no tile of ours multiplies as fast."""
    return dtype == torch.float32 and precision == "ieee"


def normed_values(writer: Tensor, scale: Tensor, W_V: Tensor, values: Tensor, center: bool) -> None:
    """Write values [writer, prompt, pos, group, d_head] of the normed writers, by the vendor's matrix product."""
    (W, B, P, D), (G, _, K) = writer.shape, W_V.shape
    normed = writer.float() - writer.float().mean(-1, keepdim=True) if center else writer.float()
    normed = (normed / scale.float()[..., None]).reshape(1, W * B * P, D)
    torch.bmm(normed.expand(G, -1, -1), W_V, out=values.view(-1, G, K).transpose(0, 1))


def form_values(
    writer: Tensor, scale: Tensor, W_V: Tensor, values: Tensor, center: bool, precision: str, vendor: str
) -> Launch:
    """Return the launch that writes values [writer, prompt, pos, group, d_head] of the normed writers."""
    writer, W_V = rows(writer), rows(W_V)
    (W, B, P, D), (G, _, K) = writer.shape, W_V.shape
    tensors: dict[str, Argument] = {"writer_ptr": writer, "scale_ptr": scale, "wv_ptr": W_V, "v_ptr": values}

    def build(blocks: tuning.Blocks) -> Launch:
        numbers = named_strides("writer", writer, "w b p") | named_strides("scale", scale, "b p")
        numbers |= named_strides("wv", W_V, "g d") | {"B": B, "P": P, "G": G, "D": D}
        blocks = narrower(blocks, 64, pow2(K))
        n_t, steps = triton.cdiv(P, blocks["BT"]), triton.cdiv(D, blocks["BD"])
        tiling = Tiling(
            flop=2.0 * n_t * W * B * G * blocks["BT"] * pow2(K) * steps * blocks["BD"],
            reads={"writer_ptr": G * (1 + center), "wv_ptr": n_t * W * B},
            steps=steps * (1 + center / 2),
        )
        constants = {**blocks, "K": K, "BK": pow2(K), "CENTER": center, "PRECISION": precision}
        return Launch(values_kernel, tensors | numbers, constants, (n_t, W * B, G), tiling)

    candidates = row_of(VALUES_BLOCKS, vendor, W_V.dtype, precision)
    return tuning.choose("values", tensors, (center, precision, vendor), candidates, build)


def attend(q: Tensor, k: Tensor, values: Tensor, z: Tensor, alpha: float, precision: str, vendor: str) -> Launch:
    """Return the launch that writes z [writer, prompt, pos, head, d_head], causal attention on the writers' values."""
    q, k = rows(q), rows(k)
    (B, P, H, K), (W, _, _, G, _) = q.shape, values.shape
    tensors: dict[str, Argument] = {"q_ptr": q, "k_ptr": k, "v_ptr": values, "z_ptr": z}

    def build(blocks: tuning.Blocks) -> Launch:
        numbers = named_strides("q", q, "b p h") | named_strides("k", k, "b p g")
        numbers |= {"W": W, "B": B, "P": P, "H": H, "G": G}
        blocks = narrower(blocks, 128, pow2(K))
        n_t, n_w = triton.cdiv(P, blocks["BT"]), triton.cdiv(W, blocks["BW"])
        # Blocks of keys that a block of queries sees, summed over blocks of queries.
        seen = sum(triton.cdiv(min((t + 1) * blocks["BT"], P), blocks["BI"]) for t in range(n_t))
        tiling = Tiling(
            flop=2.0 * B * H * n_w * seen * blocks["BT"] * blocks["BI"] * pow2(K) * (1 + blocks["BW"]),
            reads={
                "q_ptr": n_w,
                "k_ptr": H // G * n_w * seen * blocks["BI"] / P,
                "v_ptr": H // G * seen * blocks["BI"] / P,
            },
            steps=seen / n_t,
        )
        constants = {**blocks, "K": K, "BK": pow2(K), "PRECISION": precision}
        scale = {"softmax_scale": float(alpha)}
        return Launch(attend_kernel, tensors | numbers | scale, constants, (B * H, n_w, n_t), tiling)

    table = WIDE_BLOCKS if pow2(K) > 64 else SHARED_BLOCKS if W > 1 else ATTEND_BLOCKS
    return tuning.choose(
        "attend", tensors, (alpha, precision, vendor), row_of(table, vendor, q.dtype, precision), build
    )


def sum_heads(z: Tensor, W_O: Tensor, total: Tensor, precision: str, vendor: str) -> Launch:
    """Return the launch that writes total [row, d_model], the sum of the head outputs of z [row, head, d_head]."""
    W_O = rows(W_O)
    (R, H, K), D = z.shape, W_O.shape[2]
    tensors: dict[str, Argument] = {"z_ptr": z, "w_ptr": W_O, "total_ptr": total}

    def build(blocks: tuning.Blocks) -> Launch:
        numbers = named_strides("w", W_O, "h k") | {"R": R, "H": H, "D": D}
        blocks = {**blocks, "BK": min(blocks["BK"], pow2(K))}
        n_d, n_r = triton.cdiv(D, blocks["BD"]), triton.cdiv(R, blocks["BT"])
        steps = H * triton.cdiv(K, blocks["BK"])
        tiling = Tiling(
            flop=2.0 * n_d * n_r * blocks["BT"] * blocks["BD"] * steps * blocks["BK"],
            reads={"z_ptr": n_d, "w_ptr": n_r},
            steps=steps,
        )
        constants = {**blocks, "K": K, "PRECISION": precision}
        return Launch(sum_heads_kernel, tensors | numbers, constants, (n_d, n_r), tiling)

    candidates = row_of(SUM_BLOCKS, vendor, z.dtype, precision)
    return tuning.choose("sum_heads", tensors, (precision, vendor), candidates, build)


def narrower(blocks: tuning.Blocks, most: int, BK: int) -> dict[str, int]:
    """Return blocks for heads of BK dimensions: a table suits `most`, and what a wider head adds is taken from them."""
    times = max(BK // most, 1)
    return {name: max(16, size // times) if name in ("BT", "BI") else size for name, size in blocks.items()}


def launches(
    dtype: torch.dtype, shape: Mapping[str, int], vendor: str = "cuda", precision: str = "ieee"
) -> dict[str, Launch]:
    """Return kernel name -> this module's launches at {B, P, H, G, K, D, W}, of tensors without numbers.

    The projection onto directions is the projection kernel, without norms; see its module for it. Products by the
    vendor's library are no launches of ours.
    """
    B, P, H, G, K, D, W = (shape[name] for name in "BPHGKDW")

    def tensor(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=of, device="meta")

    W_V, W_O, values, z = tensor(G, D, K), tensor(H, K, D), tensor(W, B, P, G, K), tensor(W, B, P, H, K)
    scale, total = tensor(B, P, of=torch.float32), tensor(W * B * P, D, of=torch.float32)
    mixed = attend(z[0], tensor(B, P, G, K), values, z, K**-0.5, precision, vendor)
    if by_library(dtype, precision):
        return {"v_composition.attend": mixed}
    return {
        "v_composition.values": form_values(tensor(W, B, P, D), scale, W_V, values, True, precision, vendor),
        "v_composition.attend": mixed,
        "v_composition.sum_heads": sum_heads(z.view(W * B * P, H, K), W_O, total, precision, vendor),
    }
