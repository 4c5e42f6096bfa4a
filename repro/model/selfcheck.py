"""The start-up self-check: what is computed here is what the original model computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from repro.errors import Exit, ReproError, listing, plain
from repro.model import forward
from repro.model.config_keys import HARMLESS
from repro.model.decoder import Model
from repro.model.folder import Folder
from repro.model.forward import logits, trace
from repro.model.native_keys import SIZE_KEYS, words
from repro.model.original import Original, Seen

# Largest deviation allowed, relative to the largest value of the same quantity: the original computes in another order.
# Correctly computed models stay below 1e-5 in float32, unless their attention is very sharp, and below 1e-9 in float64;
# GELU by its tanh approximation instead of erf is off by 1e-4.
TOLERANCE = {torch.float32: 5e-5, torch.float64: 1e-7}
ROUNDING = 1e-2
"""Deviation up to which rounding to float32 may be the reason, relative as above."""


class DiffersError(ReproError):
    """What is computed here differs from the original (exit 4). off: by how much of the quantity's largest value."""

    def __init__(self, message: str, off: float) -> None:
        super().__init__(message, Exit.UNAVAILABLE)
        self.off = off


def check_against_original(folder: Folder, original: Original, model: Model, value_biases: Sequence[Tensor]) -> None:
    """Compare our pass with the original's over the same tokens: every site, z, what is written, and the logits.

    Processing moves the stream of a LayerNorm model by its mean, z by the value bias (of each layer [H K]), and logits
    by a constant per position; where logits are capped, those before the cap, and the cap itself, are compared.
    Positions where the original's own stream is not finite are left out. Raises ReproError (exit 4) naming the first
    quantity that deviates. Agreement: tests/model/test_selfcheck.py.
    """
    limit = TOLERANCE[model.W_E.dtype]
    for seen in original.seen:
        finite = torch.isfinite(seen.parts["final"]).all(-1)
        for name, ours, theirs in _pairs(model, original, seen, value_biases):
            rows = finite[:, -ours.shape[1] :]
            if rows.any():
                _compare(folder, original, name, ours[rows], theirs[rows], limit)


def _pairs(
    model: Model, original: Original, seen: Seen, value_biases: Sequence[Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield each quantity: its name, ours and the original's, both [B, P, ...]."""
    passed = trace(model, seen.tokens)

    def theirs(name: str) -> Tensor:
        """Return what the original writes or reads, centred where writing weights are."""
        value = seen.parts[name] * (original.scales.residual if name.startswith(("attention", "MLP")) else 1)
        return value - value.mean(-1, keepdim=True) if model.center else value

    written = passed.sites[0]
    for layer, attention in enumerate(passed.attention):
        pre, mid = passed.sites[2 * layer], passed.sites[2 * layer + 1]
        yield f"resid_pre{layer}", pre, theirs(f"resid_pre{layer}")
        mix = attention.z / attention.gain[..., None, None]
        yield f"z of layer {layer}", mix.flatten(2) + value_biases[layer], seen.parts[f"z{layer}"]
        yield f"ln1 scale of layer {layer}", *_scaled(model, pre)
        out = forward.attn_out(model, layer, attention.z)
        heads = torch.einsum("bphk,hkd->bpd", attention.z, model.blocks[layer].W_O) + model.blocks[layer].b_O
        yield f"the sum of the heads of layer {layer}", heads, theirs(f"attention{layer}")
        yield f"the attention of layer {layer}", out, theirs(f"attention{layer}")
        written = written + heads
        yield f"sum of what was written before resid_mid{layer}", mid, written
        if not model.parallel:
            yield f"resid_mid{layer}", mid, theirs(f"resid_mid{layer}")
        yield f"MLP{layer}", passed.mlp_out[layer], theirs(f"MLP{layer}")
        written = written + passed.mlp_out[layer]
    yield "final stream", passed.final, theirs("final")
    yield "final norm scale", *_scaled(model, passed.final)
    ours = logits(model, passed.final[:, -seen.logits.shape[1] :])
    uncapped = seen.logits
    if model.logit_cap is not None:
        # A cap moves no logit past another; what is attributed are the logits before it.
        uncapped = seen.unembedded
        yield "the cap of the logits", (uncapped / model.logit_cap).tanh() * model.logit_cap, seen.logits
    theirs_centred = uncapped - uncapped.mean(-1, keepdim=True)
    yield "the vector of logits", ours - ours.mean(-1, keepdim=True), theirs_centred


def _scaled(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norm's numerator, and the same from the norm and the scale that measures divide by."""
    return forward.normed(model, x) * forward.norm_scale(model, x)[..., None], x - x.mean(
        -1, keepdim=True
    ) if model.center else x


# Keys that do not change the computation: how large a model is, what its tokens mean, how it was trained or stored.
_KNOWN = HARMLESS | SIZE_KEYS | words("max_window_layers rms_norm_eps rotary_dim tie_word_embeddings")


def _compare(folder: Folder, original: Original, name: str, ours: Tensor, theirs: Tensor, limit: float) -> None:
    off = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))
    if off <= limit:
        return
    unusual = [plain(f"{key} = {value!r}", 80) for key, value in original.changed.items() if key not in _KNOWN]
    hint = f"; not the architecture's defaults in config.json: {listing(unusual)}" if unusual else ""
    raise DiffersError(
        f"{folder.path}: {name} differs from the original model's by {off:.2g} of its largest value (allowed "
        f"{limit:.0e}); this architecture is not computed correctly here and is refused{hint}",
        off,
    )
