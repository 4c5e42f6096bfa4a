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
from repro.kernels.launch.launch import Argument, CompileSpec, Launch, kind, named_strides, pow2, rows
from repro.kernels.projection import project

# (vendor, kind of input) -> block sizes, the default first, the rest tried within `tuning()`: BT positions, BD of D.
VALUES_BLOCKS: Mapping[tuple[str, str], tuple[tuning.Blocks, ...]] = {
    ("cuda", "ieee"): ({"BT": 32, "BD": 32, "num_warps": 4, "num_stages": 2},),
    ("cuda", "tf32x3"): ({"BT": 64, "BD": 32, "num_warps": 4, "num_stages": 2},),
    ("cuda", "half"): ({"BT": 64, "BD": 64, "num_warps": 4, "num_stages": 3},),
    ("hip", "ieee"): ({"BT": 32, "BD": 32, "num_warps": 4, "num_stages": 2},),
    ("hip", "half"): ({"BT": 64, "BD": 64, "num_warps": 4, "num_stages": 2},),
}
# BT queries, BI keys, at most BW writers that share the pattern of a program.
ATTEND_BLOCKS: Mapping[tuple[str, str], tuple[tuning.Blocks, ...]] = {
    ("cuda", "ieee"): ({"BT": 32, "BI": 32, "BW": 2, "num_warps": 4, "num_stages": 2},),
    ("cuda", "tf32x3"): (
        {"BT": 64, "BI": 16, "BW": 1, "num_warps": 4, "num_stages": 2},
        {"BT": 128, "BI": 16, "BW": 1, "num_warps": 8, "num_stages": 2},
    ),
    ("cuda", "half"): (
        {"BT": 128, "BI": 64, "BW": 1, "num_warps": 8, "num_stages": 2},
        {"BT": 64, "BI": 64, "BW": 2, "num_warps": 4, "num_stages": 2},
    ),
    ("hip", "ieee"): ({"BT": 64, "BI": 32, "BW": 1, "num_warps": 4, "num_stages": 1},),
    ("hip", "half"): ({"BT": 64, "BI": 32, "BW": 1, "num_warps": 4, "num_stages": 2},),
}
# BT rows, BD of D, BK of K.
SUM_BLOCKS: Mapping[tuple[str, str], tuple[tuning.Blocks, ...]] = {
    ("cuda", "ieee"): ({"BT": 64, "BD": 64, "BK": 32, "num_warps": 8, "num_stages": 2},),
    ("cuda", "tf32x3"): ({"BT": 64, "BD": 64, "BK": 32, "num_warps": 8, "num_stages": 2},),
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
    """Compute what each head writes because a writer wrote, flash-style over blocks of queries; no pattern is stored.

    vcomp[w, h, b, t] = sum_{i <= t} A[b, h, t, i] LN(writer)[w, b, i] W_V[h's group] W_O[h]
    with A = softmax of the causal scores q k^T softmax_scale, LN(x) = (x - mean(x) if center else x) / scale;
    dots[w, h, n, b, t] = <vcomp[w, h, b, t], onto[n, b, t]>,  total[w, b, t] = sum_h vcomp[w, h, b, t]
    (V-composition of arXiv 2310.07325, with the clean run's pattern and norm scale)

    q:      [prompt, pos, head, d_head]     k: [prompt, pos, group, d_head], rotary already applied
    writer: [writer, prompt, pos, d_model]  scale: [prompt, pos], the clean run's norm scale
    W_V:    [group, d_model, d_head]        W_O: [head, d_head, d_model]
    onto:   [direction, prompt, pos, d_model] or None      softmax_scale: d_head ** -0.5 if None
    q, k, W_V and W_O share a dtype: float32, float16 or bfloat16. precision: "ieee", or for float32 "tf32x3"
    Returns dots [writer, head, direction, prompt, pos] (None without onto) and total [writer, prompt, pos, d_model]
    (None unless asked), float32, in the writer's units (dots: times those of onto). Memory beyond that: the mixed
    values of all heads and writers, twice.
    Raises ShapeError naming both shapes if they do not fit, UnsupportedError for a dtype or precision that does not
    exist on the device. Agreement: tests/kernels/test_v_composition.py.
    """
    dims = shapes.v_composition(q, k, writer, scale, W_V, W_O, onto, total=total)
    vendor = precisions.check("v_composition", q.device, precision, q=q, k=k, W_V=W_V, W_O=W_O)
    for name, tensor in {"writer": writer, "scale": scale, "onto": onto}.items():
        precisions.check("v_composition", q.device, "ieee", **{name: q if tensor is None else tensor})
    B, P, H, K, G, W, D = (dims[name] for name in "BPHKGWD")
    values = outputs.empty((W, B, P, G, K), q.dtype, q.device)
    z = outputs.empty((W, B, P, H, K), q.dtype, q.device)
    alpha = K**-0.5 if softmax_scale is None else softmax_scale
    form_values(writer, scale, W_V, values, center, precision, vendor).run()
    attend(q, k, values, z, alpha, precision, vendor).run()
    dots, summed = None, None
    if onto is not None:
        dots = outputs.empty((W, H, len(onto), B, P), torch.float32, q.device)
        project(z.flatten(0, 1), W_O, onto, dots, None, precision, vendor).run()
    if total:
        summed = outputs.empty((W, B, P, D), torch.float32, q.device)
        sum_heads(z.view(W * B * P, H, K), W_O, summed, precision, vendor).run()
    return dots, summed


def form_values(
    writer: Tensor, scale: Tensor, W_V: Tensor, values: Tensor, center: bool, precision: str, vendor: str
) -> Launch:
    """Launch what writes values [writer, prompt, pos, group, d_head] of the normed writers, in their dtype."""
    writer, W_V = rows(writer), rows(W_V)
    (W, B, P, D), (G, _, K) = writer.shape, W_V.shape
    arguments: dict[str, Argument] = {"writer_ptr": writer, "scale_ptr": scale, "wv_ptr": W_V, "v_ptr": values}
    numbers = named_strides("writer", writer, "w b p") | named_strides("scale", scale, "b p")
    numbers |= named_strides("wv", W_V, "g d") | {"B": B, "P": P, "G": G, "D": D}

    def build(blocks: tuning.Blocks) -> Launch:
        constants = {**_narrower(blocks, pow2(K)), "K": K, "BK": pow2(K), "CENTER": center, "PRECISION": precision}
        return Launch(values_kernel, arguments | numbers, constants, (triton.cdiv(P, constants["BT"]), W * B, G))

    key = ("values", writer.shape, W_V.shape, W_V.dtype, precision, str(W_V.device))
    return tuning.choose(key, VALUES_BLOCKS[vendor, kind(W_V.dtype, precision)], build)


def attend(q: Tensor, k: Tensor, values: Tensor, z: Tensor, alpha: float, precision: str, vendor: str) -> Launch:
    """Launch what writes z [writer, prompt, pos, head, d_head], causal attention on every writer's values."""
    q, k = rows(q), rows(k)
    (B, P, H, K), (W, _, _, G, _) = q.shape, values.shape
    arguments: dict[str, Argument] = {"q_ptr": q, "k_ptr": k, "v_ptr": values, "z_ptr": z}
    numbers = named_strides("q", q, "b p h") | named_strides("k", k, "b p g")
    numbers |= {"W": W, "B": B, "P": P, "H": H, "G": G}

    def build(blocks: tuning.Blocks) -> Launch:
        blocks = _narrower(blocks, pow2(K))
        BW = min(blocks["BW"], W)
        constants = {**blocks, "K": K, "BK": pow2(K), "BW": BW, "PRECISION": precision}
        grid = (triton.cdiv(P, blocks["BT"]), B * H, triton.cdiv(W, BW))
        return Launch(attend_kernel, arguments | numbers | {"softmax_scale": float(alpha)}, constants, grid)

    key = ("attend", q.shape, values.shape, q.dtype, precision, str(q.device))
    return tuning.choose(key, ATTEND_BLOCKS[vendor, kind(q.dtype, precision)], build)


def sum_heads(z: Tensor, W_O: Tensor, total: Tensor, precision: str, vendor: str) -> Launch:
    """Return the launch that writes total [row, d_model], the sum of the head outputs of z [row, head, d_head]."""
    W_O = rows(W_O)
    (R, H, K), D = z.shape, W_O.shape[2]
    arguments: dict[str, Argument] = {"z_ptr": z, "w_ptr": W_O, "total_ptr": total}
    numbers = named_strides("w", W_O, "h k") | {"R": R, "H": H, "D": D}

    def build(blocks: tuning.Blocks) -> Launch:
        constants = {**blocks, "K": K, "BK": min(blocks["BK"], pow2(K)), "PRECISION": precision}
        grid = (triton.cdiv(D, blocks["BD"]), triton.cdiv(R, blocks["BT"]))
        return Launch(sum_heads_kernel, arguments | numbers, constants, grid)

    key = ("sum_heads", z.shape, D, z.dtype, precision, str(z.device))
    return tuning.choose(key, SUM_BLOCKS[vendor, kind(z.dtype, precision)], build)


def _narrower(blocks: tuning.Blocks, BK: int) -> dict[str, int]:
    """Return blocks for heads of BK dimensions: tables suit 64, and what a wider head adds is taken from the rest."""
    times = max(BK // 64, 1)
    shrunk = {name: max(16, size // times) if name in ("BT", "BI") else size for name, size in blocks.items()}
    return shrunk | ({"BW": 1} if "BW" in blocks and times > 1 else {})


def compile_specs(
    dtype: torch.dtype, shape: Mapping[str, int], vendor: str = "cuda", precision: str = "ieee"
) -> dict[str, CompileSpec]:
    """Return kernel name -> what the compiler needs for this module's launches at {B, P, H, G, K, D, W}.

    The projection onto directions is the projection kernel, without norms; see its module for it.
    """
    B, P, H, G, K, D, W = (shape[name] for name in "BPHGKDW")

    def tensor(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=of, device="meta")

    W_V, W_O, values, z = tensor(G, D, K), tensor(H, K, D), tensor(W, B, P, G, K), tensor(W, B, P, H, K)
    scale, total = tensor(B, P, of=torch.float32), tensor(W * B * P, D, of=torch.float32)
    launches = {
        "v_composition.values": form_values(tensor(W, B, P, D), scale, W_V, values, True, precision, vendor),
        "v_composition.attend": attend(z[0], tensor(B, P, G, K), values, z, K**-0.5, precision, vendor),
        "v_composition.sum_heads": sum_heads(z.view(W * B * P, H, K), W_O, total, precision, vendor),
    }
    return {name: launch.compile_spec() for name, launch in launches.items()}
