"""A second pass in which some components read the stream without the writer, and everything after them runs anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repro.labels import step_of
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
    model, shape = batch.engine.model, batch.engine.model.shape
    places = sorted({step_of(label) for label in labels})
    first, last = places[0], places[-1]
    streams = {step: batch.sites[step] for step in range(first)}
    dots: dict[str, Tensor] = {}
    for step in range(first, last + 1):
        layer, is_mlp = divmod(step - 1, 2)
        before = streams[step - 1]
        if is_mlp:
            read = streams[model.mlp_site(layer)]
            if step in places:
                out = _mlp_without(batch, layer, read, own_scale)
                dots[f"MLP{layer}"] = (out * batch.writer).sum(-1)
            else:
                out = mlp(model, layer, read)
            streams[step] = before + out
        elif step in places:
            heads, streams[step] = _heads_without(batch, layer, before, step == first, own_scale)
            dots |= {f"L{layer}H{head}": row for head, row in enumerate(heads)}
        else:
            streams[step] = before + attn_out(model, layer, attend(model, layer, before).z)
    changed = [streams[step] for step in range(first, last + 1)]
    layer, is_mlp = divmod(last - 1, 2)
    if not is_mlp:
        return PatchedRun(_joined(changed[:-1], batch.rest(layer, streams[last], streams[last - 1])), dots)
    if layer + 1 == shape.n_layers:
        return PatchedRun(torch.stack(changed), dots)
    mid = streams[last] + attn_out(model, layer + 1, attend(model, layer + 1, streams[last]).z)
    return PatchedRun(_joined(changed, batch.rest(layer + 1, mid, streams[last])), dots)


def _joined(changed: Sequence[Tensor], rest: Tensor) -> Tensor:
    return torch.cat((torch.stack(tuple(changed)), rest)) if changed else rest


def _heads_without(batch: Batch, layer: int, pre: Tensor, clean: bool, own_scale: bool) -> tuple[Tensor, Tensor]:
    """Return <h, h_w> [H, B, P] of a layer's heads without the writer in their value input, and resid_mid after them.

    clean: whether nothing before was patched.
    """
    model = batch.engine.model
    if clean and not own_scale:
        # Exact: patched = clean - vcomp, for <h, h_w> of each head and for resid_mid.
        composed, total = batch.composition(layer)
        slot = batch.requested.directions.index("writer")
        return batch.heads_on("writer", layer) - composed[:, slot], batch.sites[2 * layer + 1] - total
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
