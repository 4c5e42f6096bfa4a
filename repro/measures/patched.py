"""A second pass in which some components read the stream without the writer, and everything after them runs anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repro.labels import heads_of, step_of
from repro.measures.batch import Batch
from repro.model.forward import attend, attn_out, mlp, mlp_gain, mlp_of_normed, read_scale
from repro.model.paths import centred


@dataclass(frozen=True)
class PatchedRun:
    """What differs from the clean run."""

    sites: Tensor
    """The sites from the first patched component's on: [S', B, P, D]."""
    dots: dict[str, Tensor]
    """<component, h_w> of every patched head and MLP: [B, P]."""


def patched_run(batch: Batch, labels: Sequence[str], own_scale: bool = False) -> PatchedRun:
    """Return the run in which these heads and MLPs read the stream without h_w, the clean run's output of the writer.

    labels: all heads of some layers and any MLPs, after the writer. Heads keep their queries and keys: h_w is missing
    in their value input alone. The norm of a patched input has the clean run's scale at that place, or with `own_scale`
    that of what is left; so has the norm of what is then written, where there is one. Where nothing before was patched,
    a layer of heads loses exactly its V-composition with the writer. Agreement: tests/measures/test_patched.py, against
    an independent pass.
    """
    model = batch.engine.model
    patched = {step_of(label) for label in labels}
    first, last = min(patched), 2 * model.shape.n_layers
    sites = batch.sites.new_empty((last + 1 - first, *batch.writer.shape))
    dots: dict[str, Tensor] = {}

    def stream(step: int) -> Tensor:
        return batch.sites[step] if step < first else sites[step - first]

    for step in range(first, last + 1):
        layer, is_mlp = divmod(step - 1, 2)
        before, after = stream(step - 1), stream(step)
        if is_mlp:
            read = stream(model.mlp_site(layer))
            out = _mlp_without(batch, layer, read, own_scale) if step in patched else mlp(model, layer, read)
            torch.add(before, out, out=after)
            if step in patched:
                dots[f"MLP{layer}"] = (out * batch.writer).sum(-1)
        elif step in patched:
            heads, mid = _heads_without(batch, layer, before, step == first, own_scale)
            after.copy_(mid)
            dots |= {f"L{layer}H{head}": row for head, row in enumerate(heads)}
        else:
            torch.add(before, attn_out(model, layer, attend(model, layer, before).z), out=after)
    return PatchedRun(sites, dots)


def _heads_without(batch: Batch, layer: int, pre: Tensor, clean: bool, own_scale: bool) -> tuple[Tensor, Tensor]:
    """Return <h, h_w> [H, B, P] of a layer's heads without the writer in their value input, and resid_mid after them.

    clean: whether nothing before was patched.
    """
    model = batch.engine.model
    if clean and not own_scale:
        # Exact: patched = clean - vcomp, for <h, h_w> of each head and for resid_mid.
        composed, total = batch.composition(layer)
        slot = batch.requested.directions.index("writer")
        on_writer = [batch.node_on("writer", label) for label in heads_of(layer, model.shape.n_heads)]
        return torch.stack(on_writer) - composed[:, slot], batch.sites[2 * layer + 1] - total
    # Formed anew of the pattern that the stream here makes, and x - h_w.
    reduced = pre - batch.writer
    scale = read_scale(model, reduced) if own_scale else batch.scale(layer)
    seen = None if clean else attend(model, layer, pre)
    composed, total = batch.compose(layer, reduced, scale, batch.writer[None], seen, own_scale)
    return composed[:, 0], pre + total + model.blocks[layer].b_O


def _mlp_without(batch: Batch, layer: int, read: Tensor, own_scale: bool) -> Tensor:
    """Return what a layer's MLP writes [B, P, D] when the writer is missing in its input, its gates formed anew."""
    model = batch.engine.model
    reduced = read - batch.writer
    if own_scale:
        return mlp(model, layer, reduced)
    clean = batch.sites[model.mlp_site(layer)]
    scale, gain = read_scale(model, clean), mlp_gain(model, layer, clean)
    return mlp_of_normed(model, layer, centred(model, reduced) / scale[..., None], gain)
