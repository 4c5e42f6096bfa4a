"""Direct logit attribution: what a node adds to a logit difference through the final norm and the unembedding alone.

    DLA(v)[t] = <(v[t] - mean(v[t])) / scale_f[t], u[t]>,   u[t] = W_U[:, x[t]] - W_U[:, y[t]]

with the clean run's final norm scale. Linear in v: the DLAs of all summands of the stream add up to the logit
difference less that of the unembedding's bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repro.labels import head_index
from repro.measures.batch import Batch, Bound, eraser_rows
from repro.measures.declare import mined_positions
from repro.model.forward import normed
from repro.spec.types import DLAScatter


def compute_scatter(bound: Bound, batch: Batch) -> dict[str, Tensor]:
    """DLA of the writer [B, P], and of the erasers' sum: whole output and V-composition [against, B, P]; logits."""
    experiment: DLAScatter = bound.experiment
    assert batch.roles is not None
    target, erasers = experiment.target, eraser_rows(batch.roles)
    layer, head = head_index(batch.roles.writer)
    output = batch.heads_on(target, batch.roles.layer)[erasers].sum(0)
    if experiment.v_composition == "attention":
        slot = batch.wanted.directions.index(target)
        composed = batch.composition(batch.roles.layer)[0][erasers, slot].sum(0)
    else:
        composed = _same_position(batch, target)
    return {"writer_dla": batch.heads_on(target, layer)[head], "answer_dla": torch.stack((output, composed))}


def _same_position(batch: Batch, target: str) -> Tensor:
    """<sum over erasers of LN(h_w)[t] W_V W_O, direction>[t]: the source position is the destination, no pattern."""
    assert batch.roles is not None
    model, layer = batch.engine.model, batch.roles.layer
    block, shape = model.blocks[layer], model.shape
    source = batch.writer - batch.writer.mean(-1, keepdim=True) if model.center else batch.writer
    source = source / batch.scale(layer)[..., None]
    total = torch.zeros_like(source)
    for row in eraser_rows(batch.roles):
        total += source @ block.W_V[row * shape.n_kv_heads // shape.n_heads] @ block.W_O[row]
    return (total * batch.direction(target)).sum(-1)


def compute_candidates(bound: Bound, batch: Batch) -> dict[str, Tensor]:
    """At the mined positions: the writer's DLA on the two first predictions (logits), their ids, and the next token."""
    at = mined_positions(bound.context)
    rows = slice(at.start, at.stop)
    model, engine = batch.engine.model, batch.engine
    final = batch.trace.final[:, rows]
    _, ids, _ = engine.kernels.top2_logits(normed(model, final).flatten(0, 1), model.W_U, model.b_U, None)
    ids = ids.view(len(final), len(at), 2)
    u = engine.unembedding_rows(ids[..., 0]) - engine.unembedding_rows(ids[..., 1])
    direction = engine.direction(u, batch.trace.scale_final[:, rows])
    return {
        "writer_dla": (batch.writer[:, rows] * direction).sum(-1),
        "first": ids[..., 0],
        "second": ids[..., 1],
        "actual": batch.tokens[:, at.start + 1 : at.stop + 1],
    }
