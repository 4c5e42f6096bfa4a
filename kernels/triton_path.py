"""The four functions on Triton, gathered: each is defined, with its kernels, in a module of its own."""

from collections.abc import Mapping

import torch

from repro.kernels import projection as _projection
from repro.kernels import top2_logits as _top2_logits
from repro.kernels import v_composition as _v_composition
from repro.kernels.launch.launch import CompileSpec

projection = _projection.projection
projection_onto_vectors = _projection.projection_onto_vectors
v_composition = _v_composition.v_composition
top2_logits = _top2_logits.top2_logits


def compile_specs(
    dtype: torch.dtype, shape: Mapping[str, int], vendor: str = "cuda", precision: str = "ieee"
) -> dict[str, CompileSpec]:
    """Return kernel name -> what the compiler needs for every kernel in its default configuration, as launched.

    dtype: float32, float16 or bfloat16; shape: sizes of B, P, H, G, K, D, S, W, T, V and C; vendor: "cuda" or "hip";
    precision: "ieee", or for float32 on "cuda" "tf32x3". Needs no GPU, but Triton's interpreter switched off.
    """
    modules = (_projection, _v_composition, _top2_logits)
    specs = [module.compile_specs(dtype, shape, vendor, precision) for module in modules]
    return {name: spec for group in specs for name, spec in group.items()}
