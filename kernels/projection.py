"""Projection of every component on every head or vector on Triton: which kernel, in which tiles, on what.

A few narrow heads are formed inside the kernel, in registers. Many or wide ones are formed beforehand by the vendor's
matrix product, for a chunk of positions that stays in L2, because W_O is K / BT times as many bytes as the heads of BT
positions, and they are written and read once. Which of the two is decided by the declared shape alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import torch
import triton
from torch import Tensor

from repro.kernels import outputs, shapes
from repro.kernels.inner_products import onto_vectors_kernel, project_kernel
from repro.kernels.launch import precision as precisions
from repro.kernels.launch import tuning
from repro.kernels.launch.launch import Argument, Launch, Tiling, named_strides, pow2, row_of, rows

# (vendor, kind of input) -> block sizes: BT positions, BD of D, at most BS components and BH heads a program. None:
# heads are always formed beforehand (IEEE products have no matrix unit to form them faster than the vendor's library
# does; on AMD turning the formed heads through LDS costs more than it saves).
PROJECT_BLOCKS: Mapping[tuple[str, str], tuple[tuning.Blocks, ...]] = {
    ("cuda", "tf32x3"): (
        {"BT": 16, "BD": 16, "BS": 16, "BH": 8, "num_warps": 8, "num_stages": 2},
        {"BT": 16, "BD": 16, "BS": 32, "BH": 8, "num_warps": 8, "num_stages": 2},
    ),
    ("cuda", "half"): (
        {"BT": 32, "BD": 32, "BS": 16, "BH": 8, "num_warps": 8, "num_stages": 2},
        {"BT": 16, "BD": 32, "BS": 16, "BH": 8, "num_warps": 4, "num_stages": 2},
        {"BT": 16, "BD": 32, "BS": 64, "BH": 8, "num_warps": 8, "num_stages": 2},
    ),
    ("cuda", "ieee"): (),
    ("hip", "ieee"): (),
    ("hip", "half"): (),
}
# Heads wider than this would take more registers than there are beside the sums.
WIDEST_FORMED = 64
# The same for vectors: BS components and BM vectors a program, one warp a position.
VECTOR_BLOCKS: Mapping[tuple[str, str], tuple[tuning.Blocks, ...]] = {
    ("cuda", "ieee"): (
        {"BT": 8, "BD": 16, "BS": 16, "BM": 32, "num_warps": 8, "num_stages": 2},
        {"BT": 8, "BD": 16, "BS": 8, "BM": 64, "num_warps": 8, "num_stages": 2},
    ),
    ("cuda", "tf32x3"): (
        {"BT": 4, "BD": 16, "BS": 32, "BM": 32, "num_warps": 4, "num_stages": 2},
        {"BT": 8, "BD": 16, "BS": 16, "BM": 64, "num_warps": 8, "num_stages": 2},
    ),
    ("cuda", "half"): (
        {"BT": 8, "BD": 64, "BS": 16, "BM": 32, "num_warps": 8, "num_stages": 2},
        {"BT": 4, "BD": 32, "BS": 64, "BM": 32, "num_warps": 4, "num_stages": 2},
        {"BT": 4, "BD": 32, "BS": 32, "BM": 64, "num_warps": 4, "num_stages": 2},
    ),
    ("hip", "ieee"): (
        {"BT": 4, "BD": 16, "BS": 16, "BM": 32, "num_warps": 4, "num_stages": 2},
        {"BT": 4, "BD": 16, "BS": 64, "BM": 32, "num_warps": 4, "num_stages": 2},
        {"BT": 4, "BD": 16, "BS": 32, "BM": 64, "num_warps": 4, "num_stages": 2},
    ),
    ("hip", "half"): (
        {"BT": 4, "BD": 32, "BS": 16, "BM": 32, "num_warps": 4, "num_stages": 2},
        {"BT": 4, "BD": 32, "BS": 64, "BM": 32, "num_warps": 4, "num_stages": 2},
        {"BT": 4, "BD": 32, "BS": 32, "BM": 64, "num_warps": 4, "num_stages": 2},
    ),
}
# Heads of one chunk of positions: what stays in the L2 of the cards of today (40 to 50 MB) until it is read.
SCRATCH_BYTES = 24 << 20


def projection(z: Tensor, W_O: Tensor, of: Tensor, *, precision: str = "ieee") -> tuple[Tensor, Tensor]:
    """Compute `reference.projection`.

    z and W_O share a dtype, float32, float16 or bfloat16; precision: "ieee", or for float32 "tf32x3" or "tf32".
    Returns float32. Raises UnsupportedError for a dtype or precision that does not exist on the device. Memory beyond
    the results: SCRATCH_BYTES where heads are formed beforehand. Agreement: tests/kernels/test_projection.py.
    """
    dims = shapes.projection(z, W_O, of)
    vendor = precisions.check("projection", z.device, precision, z=z, W_O=W_O)
    precisions.check("projection", z.device, "ieee", of=of)
    B, P, H, S = (dims[name] for name in "BPHS")
    num = outputs.empty((S, H, B, P), torch.float32, z.device)
    norm2 = outputs.empty((H, B, P), torch.float32, z.device)
    project(z, W_O, of, num.transpose(0, 1)[None], norm2, precision, vendor)
    return num, norm2


def projection_onto_vectors(v: Tensor, of: Tensor, *, precision: str = "ieee") -> tuple[Tensor, Tensor]:
    """Compute `reference.projection_onto_vectors` in one launch.

    precision: "ieee", or for float32 "tf32x3" or "tf32". Returns float32. Raises UnsupportedError for a dtype or
    precision that does not exist on the device. Agreement: tests/kernels/test_projection.py.
    """
    dims = shapes.projection_onto_vectors(v, of)
    vendor = precisions.check("projection_onto_vectors", v.device, precision, v=v)
    precisions.check("projection_onto_vectors", v.device, "ieee", of=of)
    B, P, S, M = (dims[name] for name in "BPSM")
    num = outputs.empty((S, M, B, P), torch.float32, v.device)
    norm2 = outputs.empty((M, B, P), torch.float32, v.device)
    if joinable(v, 1) and joinable(of, 1):
        one_row = [tensor.flatten(at, at + 1).unsqueeze(at) for tensor, at in ((v, 1), (of, 1), (num, 2), (norm2, 1))]
    else:
        one_row = [v, of, num, norm2]
    onto_vectors(one_row[0], one_row[1], one_row[2], one_row[3], precision, vendor).run()
    return num, norm2


def project(z: Tensor, W_O: Tensor, of: Tensor, num: Tensor, norm2: Tensor | None, precision: str, vendor: str) -> None:
    """Write num [writer, head, component, prompt, pos] and, unless None, norm2 [head, prompt, pos].

    z: [writer * prompt, pos, head, d_head]; the rest as in `projection`. `num` may lie in memory in any order of its
    first three dimensions.
    """
    # Both products multiply one type: that of z, unless the components' is wider.
    dtype = torch.promote_types(z.dtype, of.dtype)
    z, W_O, of, W = rows(z.to(dtype)), rows(W_O.to(dtype)), rows(of), len(num)
    z = z.unflatten(0, (W, -1))
    if joinable(z, 1) and joinable(of, 1):
        z, of, num = (tensor.flatten(at, at + 1).unsqueeze(at) for tensor, at in ((z, 1), (of, 1), (num, 3)))
        norm2 = None if norm2 is None else norm2.flatten(1).unsqueeze(1)
    if formed_inside(z, precision, vendor):
        form_and_project(z, W_O, of, num, norm2, precision, vendor).run()
        return
    (W, B, P, H, _), D = z.shape, of.shape[3]
    scratch = z.new_empty(H * chunk(H, D, P, z.element_size()) * D)
    for w, b in product(range(W), range(B)):
        for t in range(0, P, chunk(H, D, P, z.element_size())):
            part = z[w, b, t : t + len(scratch) // (H * D)]
            # The last chunk may be shorter: cut from the front, so that its rows stay dense.
            heads = scratch[: H * len(part) * D].view(H, 1, len(part), D)
            torch.bmm(part.transpose(0, 1), W_O, out=heads[:, 0])
            here = slice(t, t + len(part))
            found = None if norm2 is None else norm2[:, b : b + 1, here]
            onto = num[w, :, :, b : b + 1, here].transpose(0, 1)
            onto_vectors(heads, of[:, b : b + 1, here], onto, found, precision, vendor).run()


def joinable(tensor: Tensor, at: int) -> bool:
    """Return whether dimensions `at` (prompts) and the next (positions) lie in memory as one."""
    return tensor.shape[at] == 1 or tensor.stride(at) == tensor.shape[at + 1] * tensor.stride(at + 1)


def formed_inside(z: Tensor, precision: str, vendor: str) -> bool:
    """Return whether heads are formed in the kernel: few enough for one program, and narrow."""
    candidates = row_of(PROJECT_BLOCKS, vendor, z.dtype, precision)
    return any(z.shape[3] <= blocks["BH"] for blocks in candidates) and z.shape[4] <= WIDEST_FORMED


def chunk(H: int, D: int, P: int, size: int) -> int:
    """Return how many of P positions are formed together: a multiple of 16, so that whole vectors can be stored."""
    return min(max(SCRATCH_BYTES // (H * D * size) // 16 * 16, 16), P)


def form_and_project(
    z: Tensor, W_O: Tensor, of: Tensor, num: Tensor, norm2: Tensor | None, precision: str, vendor: str
) -> Launch:
    """Return the launch that forms heads inside; z [writer, prompt, pos, head, d_head], the rest as for `project`."""
    (W, B, P, H, K), (S, _, _, D) = z.shape, of.shape
    tensors: dict[str, Argument] = {"z_ptr": z, "w_ptr": W_O, "of_ptr": of, "num_ptr": num, "norm2_ptr": norm2}

    def build(blocks: tuning.Blocks) -> Launch:
        numbers = named_strides("z", z, "w b p h") | named_strides("w", W_O, "h k") | named_strides("of", of, "s b p")
        numbers |= named_strides("num", num, "w h s b") | {"B": B, "P": P, "H": H, "S": S, "D": D}
        blocks = {**blocks, "BS": evenly(S, blocks["BS"]), "BK": pow2(K)}
        n_t, n_h, n_s = (triton.cdiv(n, blocks[name]) for n, name in ((P, "BT"), (H, "BH"), (S, "BS")))
        wide = n_t * blocks["BT"] * triton.cdiv(D, blocks["BD"]) * blocks["BD"] * n_h * blocks["BH"] * W * B
        tiling = Tiling(
            flop=2.0 * wide * n_s * (blocks["BK"] + blocks["BS"]),
            reads={"z_ptr": n_s, "w_ptr": n_t * W * B * n_s, "of_ptr": n_h * W},
            steps=triton.cdiv(D, blocks["BD"]),
            formed=n_s,
        )
        constants = {**blocks, "K": K, "NORM": norm2 is not None, "PRECISION": precision}
        return Launch(project_kernel, tensors | numbers, constants, (n_t * n_h * n_s, W * B), tiling)

    table = row_of(PROJECT_BLOCKS, vendor, z.dtype, precision)
    return tuning.choose("project", tensors, (precision, vendor), holding(table, S, H, "BH"), build)


def onto_vectors(v: Tensor, of: Tensor, num: Tensor, norm2: Tensor | None, precision: str, vendor: str) -> Launch:
    """Return the launch that writes num [component, vector, prompt, pos] and norm2 [vector, prompt, pos], or None."""
    v, of = rows(v.to(torch.promote_types(v.dtype, of.dtype))), rows(of)
    (M, B, P, D), S = v.shape, len(of)
    tensors: dict[str, Argument] = {"v_ptr": v, "of_ptr": of, "num_ptr": num, "norm2_ptr": norm2}

    def build(blocks: tuning.Blocks) -> Launch:
        numbers = named_strides("v", v, "m b p") | named_strides("of", of, "s b p") | named_strides("num", num, "s m b")
        numbers |= named_strides("norm2", num[0] if norm2 is None else norm2, "m b")
        numbers |= {"P": P, "S": S, "D": D, "M": M}
        blocks = {**blocks, "BS": evenly(S, blocks["BS"]), "BM": evenly(M, blocks["BM"], 16 if vendor == "hip" else 8)}
        n_t, n_m, n_s = (triton.cdiv(n, blocks[name]) for n, name in ((P, "BT"), (M, "BM"), (S, "BS")))
        wide = n_t * blocks["BT"] * triton.cdiv(D, blocks["BD"]) * blocks["BD"] * B
        tiling = Tiling(
            flop=2.0 * wide * n_s * blocks["BS"] * n_m * blocks["BM"],
            reads={"v_ptr": n_s, "of_ptr": n_m},
            steps=triton.cdiv(D, blocks["BD"]),
        )
        constants = {**blocks, "NORM": norm2 is not None, "PRECISION": precision}
        return Launch(onto_vectors_kernel, tensors | numbers, constants, (n_t * n_m * n_s, B), tiling)

    table = row_of(VECTOR_BLOCKS, vendor, v.dtype, precision)
    return tuning.choose("onto_vectors", tensors, (precision, vendor), holding(table, S, M, "BM"), build)


def holding(table: tuple[tuning.Blocks, ...], S: int, M: int, name: str) -> tuple[tuning.Blocks, ...]:
    """Return candidates ordered by how often they read components, then by how often they read vectors or heads."""
    return tuple(sorted(table, key=lambda blocks: (triton.cdiv(M, blocks[name]), triton.cdiv(S, blocks["BS"]))))


def evenly(size: int, most: int, least: int = 8) -> int:
    """Return the block that covers `size` in as few parts as blocks of `most` do, and no larger than that takes.

    least: NVIDIA's matrix units take 8 rows or columns, AMD's 16.
    """
    parts = triton.cdiv(size, most)
    return min(most, max(least, triton.next_power_of_2(triton.cdiv(size, parts))))


def launches(
    dtype: torch.dtype, shape: Mapping[str, int], vendor: str = "cuda", precision: str = "ieee"
) -> dict[str, Launch]:
    """Return kernel name -> this module's launch at a shape {B, P, H, K, D, S, M}, of tensors without numbers."""
    B, H, K, D, S, M = (shape[name] for name in "BHKDSM")

    def tensor(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=of, device="meta")

    P = B * shape["P"]
    z, of = tensor(1, 1, P, H, K), tensor(S, 1, P, D)
    if formed_inside(z, precision, vendor):
        num, norm2 = tensor(1, H, S, 1, P, of=torch.float32), tensor(H, 1, P, of=torch.float32)
        heads = form_and_project(z, tensor(H, K, D), of, num, norm2, precision, vendor)
    else:
        T = chunk(H, D, P, z.element_size())
        num, norm2 = tensor(S, H, 1, P, of=torch.float32), tensor(H, 1, P, of=torch.float32)
        heads = onto_vectors(tensor(H, 1, T, D), of[:, :, :T], num[..., :T], norm2[..., :T], precision, vendor)
        assert heads.tiling is not None
        calls = triton.cdiv(P, T)
        moved = dtype.itemsize * (P * H * (K + D) + calls * H * K * D)
        tiling = replace(heads.tiling, formed=1, calls=calls, library=(2.0 * P * H * K * D, float(moved)))
        heads = replace(heads, tiling=tiling)
    num, norm2 = tensor(S, M, 1, P, of=torch.float32), tensor(M, 1, P, of=torch.float32)
    vectors = onto_vectors(tensor(M, 1, P, D), of, num, norm2, precision, vendor)
    return {"projection": heads, "projection_onto_vectors": vectors}
