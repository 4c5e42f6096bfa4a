"""The start-up self-check: what is computed here is what the library's own model computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from repro.errors import Exit, ReproError
from repro.model import forward
from repro.model.folder import Folder
from repro.model.forward import Model, logits, trace

# Largest deviation allowed, relative to the largest value of the same quantity: the library computes in another order,
# and processes weights, and computes RMS norms and softmax of many models, in float32 whatever the type of the weights.
# Correctly computed models stay below 1e-5; GELU by its tanh approximation instead of erf is off by 1e-4.
TOLERANCE = {torch.float32: 5e-5, torch.float64: 2e-5}


def check_against_library(folder: Folder, bridge: Any, model: Model, tokens: Tensor, raw_logits: Tensor) -> None:
    """Compare our pass over a few tokens with the library's, site by site, and with the unprocessed model's logits.

    bridge: the library's processed model. tokens [B, P]. raw_logits [B, P, V]: of the model before processing; centring
    the unembedding only moves them by a constant per position. Raises ReproError (exit 4) naming the first quantity
    that deviates, or a hook that does not fire. Agreement: tests/model/test_model.py.
    """
    _, cache = bridge.run_with_cache(tokens)
    limit = TOLERANCE[model.W_E.dtype]
    for name, ours, theirs in _pairs(folder, model, tokens, cache):
        _compare(folder, name, ours, theirs.reshape(ours.shape), limit)
    ours = logits(model, trace(model, tokens).final)
    theirs = raw_logits - raw_logits.mean(-1, keepdim=True)
    _compare(folder, "the vector of logits", ours - ours.mean(-1, keepdim=True), theirs, limit)


def _pairs(folder: Folder, model: Model, tokens: Tensor, cache: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    passed = trace(model, tokens)

    def hook(name: str) -> Tensor:
        if name not in cache:
            raise ReproError(f"{folder.path}: the library's hook {name} does not fire on this model", Exit.UNAVAILABLE)
        return cache[name]

    yield "resid_pre0", passed.sites[0], hook("blocks.0.hook_resid_pre")
    written = passed.sites[0]
    for layer, seen in enumerate(passed.attention):
        scale = forward.norm_scale(model, passed.sites[2 * layer])
        yield f"ln1 scale of layer {layer}", scale, hook(f"blocks.{layer}.ln1.hook_scale")
        yield f"z of layer {layer}", seen.z, hook(f"blocks.{layer}.attn.hook_z")
        heads = torch.einsum("bphk,hkd->bpd", seen.z, model.blocks[layer].W_O) + model.blocks[layer].b_O
        written = written + heads
        yield f"sum of what was written before resid_mid{layer}", passed.sites[2 * layer + 1], written
        yield f"resid_mid{layer}", passed.sites[2 * layer + 1], hook(f"blocks.{layer}.hook_resid_mid")
        yield f"MLP{layer}", passed.mlp_out[layer], hook(f"blocks.{layer}.hook_mlp_out")
        written = written + passed.mlp_out[layer]
        yield f"resid_post{layer}", passed.sites[2 * layer + 2], hook(f"blocks.{layer}.hook_resid_post")
    yield "final norm scale", passed.scale_final, hook("ln_final.hook_scale")


def _compare(folder: Folder, name: str, ours: Tensor, theirs: Tensor, limit: float) -> None:
    off = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))
    if not off <= limit:
        raise ReproError(
            f"{folder.path}: {name} differs from the library's own model by {off:.2g} of its largest value "
            f"(allowed {limit:.0e}); this architecture is not computed correctly here and is refused",
            Exit.UNAVAILABLE,
        )
