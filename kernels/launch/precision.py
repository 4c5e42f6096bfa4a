"""Which precisions exist on which kind of device: declared once, refused with a sentence."""

import torch
from torch import Tensor

from repro.kernels.errors import UnsupportedError

# Input dtype -> precisions of its matrix products. "ieee" is exact multiplication with float32 sums; "tf32x3" is
# float32 split into three tensor-core products, as accurate as "ieee" to about the last bit; "tf32" is the first of the
# three alone, whose operands have 11 bits.
PRECISIONS: dict[torch.dtype, tuple[str, ...]] = {
    torch.float32: ("ieee", "tf32x3", "tf32"),
    torch.float16: ("ieee",),
    torch.bfloat16: ("ieee",),
}
# (backend, precision or dtype) -> why that pair does not exist.
ABSENT: dict[tuple[str, str | torch.dtype], str] = {
    ("hip", "tf32x3"): "AMD's tensor cores have no such mode; use 'ieee'",
    ("interpreter", torch.bfloat16): "Triton's interpreter computes bfloat16 products wrongly; use float32 or float16",
    ("cuda<80", torch.bfloat16): "bfloat16 products need compute capability 8.0; use float16",
    ("hip", "tf32"): "AMD's tensor cores have no such mode; use 'ieee'",
    ("cuda<80", "tf32x3"): "TF32 needs compute capability 8.0; use 'ieee'",
    ("cuda<80", "tf32"): "TF32 needs compute capability 8.0; use 'ieee'",
}


def check(call: str, device: torch.device, precision: str, **tensors: Tensor | None) -> str:
    """Return the kind of device ("cuda", "cuda80" or "hip") whose tiles it takes, if it has this dtype and precision.

    tensors: the operands of one matrix product, which share a dtype. Raises UnsupportedError with one sentence.
    """
    given = {name: tensor.dtype for name, tensor in tensors.items() if tensor is not None}
    shown = ", ".join(f"{name} is {_plain(dtype)}" for name, dtype in given.items())
    (dtype, *others) = set(given.values())
    if others:
        raise UnsupportedError(f"{call}: operands of one matrix product share a dtype on Triton, but {shown}")
    if dtype not in PRECISIONS:
        raise UnsupportedError(f"{call}: Triton kernels take {', '.join(map(_plain, PRECISIONS))}, but {shown}")
    if precision not in PRECISIONS[dtype]:
        known = ", ".join(map(repr, PRECISIONS[dtype]))
        raise UnsupportedError(f"{call}: no precision {precision!r} for {_plain(dtype)}; there is {known}")
    backend = backend_of(device)
    for what in (dtype, precision):
        if (backend, what) in ABSENT:
            raise UnsupportedError(f"{call}: no {_plain(what)} on {backend}: {ABSENT[backend, what]}")
    if backend != "cuda":
        return "hip" if backend == "hip" else "cuda80" if backend == "cuda<80" else "cuda"
    return "cuda" if torch.cuda.get_device_capability(device) >= (9, 0) else "cuda80"


def lacking(device: torch.device, precision: str) -> str:
    """Return why a device has no such precision of float32 products, or nothing if it has it."""
    return ABSENT.get((backend_of(device), precision), "")


def preferred(device: str) -> str:
    """Return how float32 is multiplied unless declared otherwise: "tf32x3" where the GPU has it, else "ieee"."""
    kind = torch.device(device)
    return "tf32x3" if kind.type == "cuda" and (backend_of(kind), "tf32x3") not in ABSENT else "ieee"


def backend_of(device: torch.device) -> str:
    """Return the column of `ABSENT` that a device belongs to: "cuda", "cuda<80", "hip" or "interpreter"."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        return "hip"
    return "cuda" if torch.cuda.get_device_capability(device) >= (8, 0) else "cuda<80"


def _plain(what: str | torch.dtype) -> str:
    """Return a dtype or precision as one writes it."""
    return str(what).removeprefix("torch.")
