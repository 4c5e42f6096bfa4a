"""One shape check for every provider: named dimensions bound across the arguments of a call."""

import torch
from torch import Tensor

from repro.kernels.errors import KernelError, ShapeError

Dims = dict[str, int]


def bind(call: str, **arguments: tuple[Tensor | None, str]) -> Dims:
    """Bind dimension names such as "B P H K" to sizes over all arguments of `call`; None is an absent argument.

    Returns name -> size. Raises ShapeError naming both shapes where one name would get two sizes, where an argument
    has another number of dimensions than its names, or where a dimension is empty.
    Agreement: tests/kernels/test_projection.py, test_shapes_that_do_not_fit_name_both.
    """
    sizes: Dims = {}
    owner: dict[str, str] = {}
    for name, (tensor, spec) in arguments.items():
        if tensor is None:
            continue
        names = spec.split()
        shown = f"{name}[{', '.join(names)}] is {list(tensor.shape)}"
        if tensor.ndim != len(names):
            raise ShapeError(f"{call}: {shown}, but {name} needs {len(names)} dimensions")
        for dim, size in zip(names, tensor.shape, strict=True):
            if size < 1:
                raise ShapeError(f"{call}: {shown}, but {dim} must be at least 1")
            if sizes.setdefault(dim, size) != size:
                raise ShapeError(
                    f"{call}: {shown}, but {owner[dim]}: {dim} is {size} in one and {sizes[dim]} in the other"
                )
        owner = dict.fromkeys(names, shown) | owner
    _one_device(call, **{name: tensor for name, (tensor, _) in arguments.items() if tensor is not None})
    return sizes


def _one_device(call: str, **tensors: Tensor) -> None:
    """Refuse arguments that live on different devices."""
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        raise KernelError(f"{call}: all arguments must be on one device, but they are on {devices}")


def projection(z: Tensor, W_O: Tensor, of: Tensor) -> Dims:
    """Return dimensions B, P, H, K, D, S of a projection of heads."""
    return bind("projection", z=(z, "B P H K"), W_O=(W_O, "H K D"), of=(of, "S B P D"))


def projection_onto_vectors(v: Tensor, of: Tensor) -> Dims:
    """Return dimensions B, P, D, S of a projection onto vectors."""
    return bind("projection_onto_vectors", v=(v, "M B P D"), of=(of, "S B P D"))


def gram(z: Tensor, W_O: Tensor, vectors: Tensor) -> Dims:
    """Return dimensions B, P, H, K, D, M of a Gram matrix of H heads and M vectors."""
    return bind("gram", z=(z, "B P H K"), W_O=(W_O, "H K D"), vectors=(vectors, "M B P D"))


def gram_sums(z: Tensor, W_O: Tensor, vectors: Tensor, strata: Tensor) -> Dims:
    """Return dimensions B, P, H, K, D, M, S of a Gram matrix summed over S strata of positions, given as a mask."""
    dims = bind(
        "gram_sums",
        z=(z, "B P H K"),
        W_O=(W_O, "H K D"),
        vectors=(vectors, "M B P D"),
        strata=(strata, "S B P"),
    )
    if strata.dtype != torch.bool:
        raise KernelError(f"gram_sums: strata must be a mask of torch.bool, not {strata.dtype}")
    return dims


def v_composition(
    q: Tensor,
    k: Tensor,
    writer: Tensor,
    scale: Tensor,
    W_V: Tensor,
    W_O: Tensor,
    onto: Tensor | None,
    *,
    total: bool,
) -> Dims:
    """Return dimensions B, P, H, K, G, W, D (and N) of a V-composition; G divides H, and something is asked."""
    dims = bind(
        "v_composition",
        q=(q, "B P H K"),
        k=(k, "B P G K"),
        writer=(writer, "W B P D"),
        scale=(scale, "B P"),
        W_V=(W_V, "G D K"),
        W_O=(W_O, "H K D"),
        onto=(onto, "N B P D"),
    )
    if dims["H"] % dims["G"]:
        raise ShapeError(
            f"v_composition: q[B, P, H, K] is {list(q.shape)}, but k[B, P, G, K] is {list(k.shape)}: "
            f"H = {dims['H']} is no multiple of G = {dims['G']}"
        )
    if onto is None and not total:
        raise KernelError("v_composition: neither directions (onto) nor the summed vector (total) were asked for")
    return dims


def top2_logits(resid: Tensor, W_U: Tensor, b_U: Tensor | None, chosen: Tensor | None) -> Dims:
    """Return dimensions T, D, V (and C) of a top-2 unembedding; V holds two tokens and `chosen` ids below V."""
    dims = bind("top2_logits", resid=(resid, "T D"), W_U=(W_U, "D V"), b_U=(b_U, "V"), chosen=(chosen, "T C"))
    if dims["V"] < 2:
        raise ShapeError(f"top2_logits: W_U[D, V] is {list(W_U.shape)}, but two logits need V of at least 2")
    if chosen is not None and chosen.dtype not in (torch.int32, torch.int64):
        raise KernelError(f"top2_logits: chosen must hold int32 or int64 token ids, not {chosen.dtype}")
    if chosen is not None and chosen.device.type == "cpu" and (int(chosen.min()) < 0 or int(chosen.max()) >= dims["V"]):
        raise KernelError(f"top2_logits: chosen holds ids outside 0 to {dims['V'] - 1}")
    return dims


def at_least_fp32(*tensors: Tensor) -> torch.dtype:
    """Return the dtype in which these arguments are computed and returned: their common one, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
