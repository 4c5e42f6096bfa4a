"""The V-composition patch in closed form: the writer's output taken out of the value input of one later layer.

    vcomp_{w->c}[t] = sum_i A^c[t, i] LN_n(h_w)[i] W_V^c W_O^c,   LN_n(x)[i] = (x[i] - mean(x[i])) / scale_n[i]

with the clean pattern A^c and the clean scale of layer n. Every head c of the layer loses its vcomp, erasers or not,
and the stream after the layer's attention loses their sum; later layers then run normally on what is left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repro.measures.batch import Batch, Bound
from repro.measures.declare import patched_layer
from repro.model.forward import norm_scale
from repro.spec.types import VPatch


def compute(bound: Bound, batch: Batch) -> dict[str, Tensor]:
    """PR(site, writer) [run, site, B, P] and PR(head, writer) [run, head, B, P] of the patched layer, both runs."""
    experiment: VPatch = bound.experiment
    layer = patched_layer(experiment, bound.context)
    clean_heads = batch.heads_on("writer", layer)
    if experiment.scale == "frozen":
        heads, resid_mid = _subtracted(batch, layer, clean_heads)
    else:
        heads, resid_mid = _recomputed(batch, layer)
    patched = batch.rest(layer, resid_mid)
    after = torch.einsum("sbpd,bpd->sbp", patched, batch.writer) / batch.writer_norm2
    clean = batch.sites_on_writer
    return {
        "site_pr": torch.stack((clean, torch.cat((clean[: 2 * layer + 1], after)))),
        "head_pr": torch.stack((clean_heads, heads)) / batch.writer_norm2,
    }


def _subtracted(batch: Batch, layer: int, clean_heads: Tensor) -> tuple[Tensor, Tensor]:
    """Exact algebra: patched = clean - vcomp, for <h, h_w> of each head and for resid_mid."""
    dots, total = batch.composition(layer)
    slot = batch.wanted.directions.index("writer")
    return clean_heads - dots[:, slot], batch.sites[2 * layer + 1] - total


def _recomputed(batch: Batch, layer: int) -> tuple[Tensor, Tensor]:
    """The variant in which x - h_w is normed by its own scale: the heads are formed anew, with the clean pattern."""
    model = batch.engine.model
    resid_pre = batch.sites[2 * layer]
    reduced = resid_pre - batch.writer
    dots, total = batch.compose(layer, reduced, norm_scale(model, reduced), batch.writer[None])
    return dots[:, 0], resid_pre + total + model.blocks[layer].b_O
