"""A first look at the prompts of a card: how much DLA every node has, and what it writes on average."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from repro.labels import writers
from repro.model.attributions import targets
from repro.model.decoder import Model
from repro.model.forward import logits, trace
from repro.model.paths import written


@dataclass(frozen=True)
class Look:
    """What the nodes do over all prompts whose activations are finite."""

    of: list[int]
    """Which prompts these are."""
    size: dict[str, float]
    """Mean |DLA| of every node at the targets, in logits."""
    z: Tensor
    """Mean z of every head at every position: [P, L H, K]."""
    mlps: Tensor
    """Mean output of every MLP: [L, P, D]."""
    embed: Tensor
    """Mean embedding: [P, D]."""


def look(model: Model, tokens: Tensor, positions: Tensor) -> Look:
    """Return what the nodes do over prompts [B, P], one after the other. positions: the targets [T]."""
    shape, P = model.shape, tokens.shape[1]
    labels = writers(shape.n_layers, shape.n_heads, model.W_pos is not None)
    size = torch.zeros(len(labels), dtype=torch.float64)
    z = model.W_E.new_zeros((P, shape.n_layers * shape.n_heads, shape.d_head))
    mlps, embed = model.W_E.new_zeros((shape.n_layers, P, shape.d_model)), model.W_E.new_zeros((P, shape.d_model))
    of = []
    for prompt in range(len(tokens)):
        ids = tokens[prompt : prompt + 1]
        run = trace(model, ids)
        if not torch.isfinite(run.final.sum()):
            continue
        of.append(prompt)
        pairs = logits(model, run.final[0, positions]).topk(2).indices
        direction = targets(model, run, 0, positions, pairs).direction
        dla = (written(model, run, ids, 0, positions).at * direction).sum(-1)
        size += dla.abs().mean(-1).double().cpu()
        z += run.z[0]
        mlps += torch.stack([out[0] for out in run.mlp_out])
        embed += model.W_E[ids[0]]
    n = max(len(of), 1)
    return Look(of, dict(zip(labels, (size / n).tolist(), strict=True)), z / n, mlps / n, embed / n)
