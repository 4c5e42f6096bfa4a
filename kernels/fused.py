"""The projection for CPUs as one compiled loop: no head's output leaves the cache. Optional, built by `pip install`.

At one prompt torch can only multiply, then multiply again, and each product by itself runs at its full rate; what is
left to gain is between them. Where no C compiler was at hand when the package was installed, there is no library, and
`tiled` computes the same in torch alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from repro.kernels import outputs
from repro.kernels.errors import KernelError
from repro.kernels.parallel import each

# Positions that a thread takes at a time: some tiles, so that starting them costs little.
POSITIONS = 96
# Formed heads of one tile: half of a second-level cache of today, where the components need the rest.
CACHE_BYTES = 1 << 18
_TILE, _BLOCK = 12, 3  # what c/projection.h calls POSITIONS, and c/loops.h BLOCK

_refused = False
_lanes: int | None = None  # narrower registers than the processor has, for tests


class _Call(ctypes.Structure):
    """What c/projection.h calls Call."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("z", "W_O", "of", "num", "norm2")) + tuple(
        (name, ctypes.c_int64)
        for name in (
            *("z_pos", "z_head", "of_component", "of_pos", "num_component", "num_head", "norm2_head"),
            *("heads", "d_head", "d_model", "components", "together", "lanes"),
        )
    )
    # What the addresses point into: kept here, since an interrupted call leaves threads behind that finish their tiles.
    tensors: tuple[Tensor | None, ...]


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled loops, or None where they were not built.

    Raises KernelError if they were built from another version of the source.
    """
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_projection{suffix}")
        if path.is_file():
            loops = ctypes.CDLL(str(path))
            if not hasattr(loops, "fused_call_bytes") or loops.fused_call_bytes() != ctypes.sizeof(_Call):
                raise KernelError(f"{path.name} was built from another version of the package; install it again")
            loops.fused_lanes.restype = loops.fused_scratch.restype = ctypes.c_int64
            loops.fused_scratch.argtypes = [ctypes.POINTER(_Call)]
            loops.fused_run.argtypes = [ctypes.POINTER(_Call), ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
            loops.fused_run.restype = None
            return loops
    return None


def serves(*tensors: Tensor) -> bool:
    """Tell whether the library is there and takes these: float32 on a CPU, no lazily negated view."""
    if _refused or library() is None:
        return False
    return all(x.dtype == torch.float32 and x.device.type == "cpu" and not x.is_neg() for x in tensors)


@contextmanager
def torch_alone() -> Iterator[None]:
    """Compute in torch alone for as long as this lasts, as where no library was built."""
    global _refused
    before, _refused = _refused, True
    try:
        yield
    finally:
        _refused = before


def projection(z: Tensor, W_O: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    """Compute what `reference.projection` defines, of arguments that `shapes` has checked and that it `serves`.

    Agreement: tests/kernels/test_fused.py.
    """
    return _run(z, W_O, of)


def projection_onto_vectors(v: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    """Compute what `reference.projection_onto_vectors` defines, of arguments like those of `projection`.

    Agreement: tests/kernels/test_fused.py.
    """
    return _run(v.permute(1, 2, 0, 3), None, of)


def _run(z: Tensor, W_O: Tensor | None, of: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply heads z [prompt, pos, head, d_head] W_O, or vectors [prompt, pos, vector, d_model], with components."""
    loops = library()
    assert loops is not None
    lanes = _lanes or loops.fused_lanes()
    z, of = _side_by_side(z), _side_by_side(of)
    (B, P, H, K), (S, D) = z.shape, (of.shape[0], of.shape[3])
    num = outputs.empty((S, H, B, P), torch.float32, z.device)
    norm2 = outputs.empty((H, B, P), torch.float32, z.device)
    packed = None if W_O is None else _packed(W_O, 2 * lanes)
    together = max(CACHE_BYTES // (_TILE * D * 4), _BLOCK)

    def call(b: int) -> _Call:
        one = _Call(
            z=z[b].data_ptr(),
            W_O=None if packed is None else packed.data_ptr(),
            of=of[:, b].data_ptr(),
            num=num[:, :, b].data_ptr(),
            norm2=norm2[:, b].data_ptr(),
            z_pos=z.stride(1),
            z_head=z.stride(2),
            of_component=of.stride(0),
            of_pos=of.stride(2),
            num_component=num.stride(0),
            num_head=num.stride(1),
            norm2_head=norm2.stride(0),
            heads=H,
            d_head=K,
            d_model=D,
            components=S,
            together=-(-H // -(-H // together)),
            lanes=lanes,
        )
        one.tensors = z, packed, of, num, norm2
        return one

    calls = [call(b) for b in range(B)]

    def start() -> Callable[[tuple[_Call, int]], None]:
        scratch = _scratch(loops, calls[0])

        def run(job: tuple[_Call, int]) -> None:
            loops.fused_run(job[0], job[1], min(job[1] + POSITIONS, P), scratch.data_ptr())

        return run

    each([(one, t) for one in calls for t in range(0, P, POSITIONS)], start)
    return num, norm2


def _scratch(loops: ctypes.CDLL, call: _Call) -> Tensor:
    """Return what fused_run() needs for itself: float32 on the CPU, also where a program has set other defaults."""
    return torch.empty(loops.fused_scratch(call), dtype=torch.float32, device="cpu")


def _side_by_side(x: Tensor) -> Tensor:
    """Return it with the numbers of a vector next to each other: a copy, unless they are."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _packed(W_O: Tensor, strip: int) -> Tensor:
    """Return [head, d_head, d_model] as [head, strips, d_head, strip], padded by zeros: what form() reads in order."""
    H, K, D = W_O.shape
    strips = -(-D // strip)
    padded = W_O if strips * strip == D else torch.nn.functional.pad(W_O, (0, strips * strip - D))
    return padded.reshape(H, K, strips, strip).transpose(1, 2).contiguous()
