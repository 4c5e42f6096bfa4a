"""Everything that is attributed to the nodes of one prompt at some targets: what a card is made of.

For a pair of tokens (x, y) at a target position t: DLA of every node, its net effects, what later components make of
chosen writers, and what is lost when those are ablated. All in logits, all from one clean pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repro.labels import step_of
from repro.model.ablate import logit_differences, output_of, total_effects
from repro.model.decoder import Model
from repro.model.forward import Trace
from repro.model.net_effect import FORMS, net_effects
from repro.model.path_dla import onto_paths
from repro.model.paths import centred, written


@dataclass(frozen=True)
class Targets:
    """Where a logit difference is asked for, and which."""

    positions: Tensor
    """In rising order: [T]."""
    u: Tensor
    """W_U[:, x] - W_U[:, y]: [T, D]."""
    bias: Tensor
    """b_U[x] - b_U[y]: [T]."""
    direction: Tensor
    """d with <v, d> = DLA(v): [T, D]."""


def targets(model: Model, trace: Trace, row: int, positions: Tensor, pairs: Tensor) -> Targets:
    """Return targets of one prompt of a clean pass. positions: rising [T]; pairs: token ids that have logits [T, 2]."""
    rows = model.W_U.T
    u = rows[pairs[:, 0]] - rows[pairs[:, 1]]
    direction = centred(model, u) / trace.scale_final[row, positions][:, None]
    return Targets(positions, u, model.b_U[pairs[:, 0]] - model.b_U[pairs[:, 1]], direction)


@dataclass(frozen=True)
class Attributions:
    """What is attributed to N nodes (`repro.labels.writers`), W writers among them, at T targets; in logits."""

    logit_diff: Tensor
    """[T]."""
    dla: Tensor
    """[N, T]."""
    net: Tensor
    """Net effects in the forms asked for: [F, N, T]."""
    rest: Tensor
    """What biases and constants add, the unembedding's included: [F, T]."""
    path_dla: Tensor
    """DLA(path_{w->c}), NaN where c does not read w: [W, C, T], C as `repro.labels.nodes`."""
    path_share: Tensor
    """sum_t <path_{w->c}, h_w> / sum_t |h_w|²: [W, C]."""
    clean_share: Tensor
    """sum_t <c, h_w> / sum_t |h_w|²: [W, C]."""
    total: Tensor
    """Clean logit difference less the ablated one, by way of ablation: [A, W, T]."""


def attributions(
    model: Model,
    trace: Trace,
    tokens: Tensor,
    row: int,
    at: Targets,
    writers: Sequence[str],
    instead: Mapping[str, Sequence[Tensor | None]],
    forms: Sequence[str] = FORMS,
) -> Attributions:
    """Return what is attributed to the nodes of one prompt of a clean pass over tokens [B, P].

    writers: labels of those whose paths are followed and that are ablated; instead: by writer what it writes in each
    ablation [P, D], None where there is nothing to write (NaN in the result); forms: of the net effect, if any.
    Agreement: tests/measures/test_dla_card.py.
    """
    nodes = written(model, trace, tokens, row, at.positions)
    effects = net_effects(model, trace, tokens, row, at.positions, at.direction, forms) if forms else {}
    h = torch.stack([output_of(model, trace, tokens, row, label) for label in writers])
    steps = torch.tensor([step_of(label) for label in writers], device=h.device)
    own = h[:, at.positions]
    norm2 = own.square().sum((1, 2))[:, None]
    share = onto_paths(model, trace, row, at.positions, h, steps, own).sum(-1) / norm2
    components = nodes.at[-share.shape[1] :]
    clean = torch.einsum("ctd,wtd->wc", components, own) / norm2
    total = [_total(model, trace, label, mine, instead[label], row, at) for label, mine in zip(writers, h, strict=True)]
    return Attributions(
        logit_diff=logit_differences(model, trace.final[row, at.positions], at.u, at.bias),
        dla=(nodes.at * at.direction).sum(-1),
        net=torch.stack([nodes.at.new_empty(nodes.at.shape[:2]), *(effects[form].nodes for form in forms)])[1:],
        rest=torch.stack([at.bias, *(effects[form].rest + at.bias for form in forms)])[1:],
        path_dla=onto_paths(model, trace, row, at.positions, h, steps, at.direction[None]),
        path_share=share,
        clean_share=torch.where(share.isnan(), torch.nan, clean),
        total=torch.stack(total, 1),
    )


def _total(
    model: Model, trace: Trace, label: str, h: Tensor, instead: Sequence[Tensor | None], row: int, at: Targets
) -> Tensor:
    """Return the total effect of one node by each way of ablation, NaN where there is nothing to write: [A, T]."""
    lost = h.new_full((len(instead), len(at.positions)), torch.nan)
    known = [way for way, other in enumerate(instead) if other is not None]
    if known:
        changes = torch.stack([other - h for other in instead if other is not None])
        lost[known] = total_effects(model, trace, label, changes, row, at.positions, at.u, at.bias)
    return lost
