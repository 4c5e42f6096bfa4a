"""Projection ratios PR(a, b) = <a, b> / <b, b> per prompt and position: signed, dimensionless, NaN where b = 0.

1: b is wholly present in a. 0: orthogonal. -1: a holds exactly minus b.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repro.labels import head_index, layer_of
from repro.measures.batch import Batch, Bound, eraser_rows
from repro.spec.types import Projection


def ratio(num: Tensor, norm2: Tensor) -> Tensor:
    """num / norm2, NaN where the norm is zero."""
    return torch.where(norm2 > 0, num / norm2, torch.nan)


def compute(bound: Bound, batch: Batch) -> dict[str, Tensor]:
    """Sites on nodes [node, site, B, P], sites on the writer [site, B, P], or nodes on the writer [component, B, P]."""
    experiment: Projection = bound.experiment
    if experiment.onto == "nodes":
        return {"pr": sites_on_nodes(batch)}
    if experiment.of == "sites":
        return {"pr": batch.sites_on_writer}
    return {"pr": nodes_on_writer(batch)}


def sites_on_nodes(batch: Batch) -> Tensor:
    """PR(site, node) of every site and node in model order: [node, site, B, P]."""
    rows = []
    for layer in range(batch.engine.model.shape.n_layers):
        num, norm2 = batch.sites_on_heads(layer)
        rows.append(ratio(num, norm2).transpose(0, 1))
        num, norm2 = batch.sites_on_mlp(layer)
        rows.append(ratio(num, norm2)[None])
    return torch.cat(rows)


def nodes_on_writer(batch: Batch) -> Tensor:
    """PR(node, writer) of every node but the writer, then of the erasers' sum: [component, B, P].

    The sum is formed per prompt and position, before any median: medians do not add.
    """
    assert batch.roles is not None
    writer_layer = layer_of(batch.roles.writer)
    rows, erasers = [], None
    for layer in range(batch.engine.model.shape.n_layers):
        heads = batch.heads_on("writer", layer) / batch.writer_norm2
        if layer == batch.roles.layer:
            erasers = heads[eraser_rows(batch.roles)].sum(0)
        if layer == writer_layer:
            index = head_index(batch.roles.writer)[1]
            heads = torch.cat((heads[:index], heads[index + 1 :]))
        rows += [heads, (batch.mlp_on("writer", layer) / batch.writer_norm2)[None]]
    assert erasers is not None
    return torch.cat([*rows, erasers[None]])


def compute_writer(bound: Bound, batch: Batch) -> dict[str, Tensor]:
    """PR(site, head) of the heads that could be writers, all but the last layer's: [head, site, B, P]."""
    rows = []
    for layer in range(batch.engine.model.shape.n_layers - 1):
        num, norm2 = batch.sites_on_heads(layer)
        rows.append(ratio(num, norm2).transpose(0, 1))
    return {"pr": torch.cat(rows)}


def compute_erasers(bound: Bound, batch: Batch) -> dict[str, Tensor]:
    """PR(head, writer) of the heads in layers after the writer's: [head, B, P]."""
    assert batch.roles is not None
    later = range(layer_of(batch.roles.writer) + 1, batch.engine.model.shape.n_layers)
    return {"pr": torch.cat([batch.heads_on("writer", layer) / batch.writer_norm2 for layer in later])}
