"""Which provider computes: chosen in the plan, obeyed in the run, never replaced silently."""

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor

from repro.kernels.errors import UnsupportedError

# Name -> module that holds the four functions. An entry is all that a further provider needs.
PROVIDERS = {
    "reference": "repro.kernels.reference",
    "torch": "repro.kernels.tiled",
    "triton": "repro.kernels.triton_path",
}


class Kernels(NamedTuple):
    """The four functions of one provider, with the signatures and meaning of `repro.kernels.reference`."""

    name: str
    projection: Callable[..., tuple[Tensor, Tensor]]
    projection_onto_vectors: Callable[..., tuple[Tensor, Tensor]]
    v_composition: Callable[..., tuple[Tensor | None, Tensor | None]]
    top2_logits: Callable[..., tuple[Tensor, Tensor, Tensor | None]]


def provider(name: str, device: str, precision: str = "ieee") -> Kernels:
    """Return the four functions of the provider `name` on `device` ("cpu", "cuda", "cuda:0", ...).

    precision: how float32 is multiplied: "ieee", or with Triton on an NVIDIA GPU "tf32x3".
    Raises UnsupportedError by name: an unknown provider, Triton where it is not installed, any provider on mps, a
    precision that the provider does not have. Agreement: tests/kernels/test_projection.py.
    """
    if name not in PROVIDERS:
        raise UnsupportedError(f"kernels: no provider {name!r}; there are {', '.join(PROVIDERS)}")
    if device.split(":")[0] == "mps":
        raise UnsupportedError(f"kernels: provider {name!r} is not supported on mps for now; use cpu")
    if name == "triton":
        _require_triton(device)
    if precision != "ieee" and name != "triton":
        raise UnsupportedError(f"kernels: provider {name!r} has no precision {precision!r}; it has 'ieee'")
    module = importlib.import_module(PROVIDERS[name])
    functions = [getattr(module, function) for function in Kernels._fields[1:]]
    if precision != "ieee":
        functions = [partial(function, precision=precision) for function in functions]
    return Kernels(name, *functions)


def _require_triton(device: str) -> None:
    """Refuse Triton where it is not installed, and on a CPU where its interpreter was not asked for."""
    if importlib.util.find_spec("triton") is None:
        raise UnsupportedError(
            "kernels: provider 'triton' was asked for, but the package triton is not installed; "
            "install it (Linux) or choose 'torch'"
        )
    knobs = importlib.import_module("triton.knobs")
    if device.split(":")[0] == "cpu" and not knobs.runtime.interpret:
        raise UnsupportedError(
            "kernels: provider 'triton' needs a GPU, or Triton's interpreter (TRITON_INTERPRET=1) on a CPU; "
            "choose 'torch' on a CPU"
        )
