"""Which provider computes: chosen in the plan, obeyed in the run, never replaced silently."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from repro.kernels.errors import UnsupportedError
from repro.kernels.registry import KERNELS

# Name -> the field of a registry entry that names its module.
PROVIDERS = {"reference": "reference", "torch": "tiled", "triton": "triton"}


class Kernels:
    """The functions of one provider, one attribute per kernel of the registry, each as its reference defines it."""

    def __init__(self, name: str, functions: Mapping[str, Callable[..., Any]]) -> None:
        self.name = name
        self.functions = functions

    def __getattr__(self, kernel: str) -> Callable[..., Any]:
        if kernel not in KERNELS:
            raise AttributeError(f"no kernel {kernel!r}; there are {', '.join(KERNELS)}")
        return self.functions[kernel]


def provider(name: str, device: str, precision: str = "ieee") -> Kernels:
    """Return the functions of the provider `name` on `device` ("cpu", "cuda", "cuda:0", ...).

    precision: how float32 is multiplied: "ieee", or with Triton on an NVIDIA GPU "tf32x3" or "tf32".
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
    functions = {kernel: entry.function(PROVIDERS[name]) for kernel, entry in KERNELS.items()}
    if precision != "ieee":
        functions = {kernel: partial(function, precision=precision) for kernel, function in functions.items()}
    return Kernels(name, functions)


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
