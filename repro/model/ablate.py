"""The total effect of a node: what it wrote is replaced, and everything after it is computed anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from torch.nn import functional as F

from repro.labels import head_index, is_head, layer_of, step_of
from repro.model.decoder import Model
from repro.model.forward import Trace, attend, attn_out, forward_from, normed
from repro.model.paths import centred


def output_of(model: Model, trace: Trace, tokens: Tensor, rows: int | slice, label: str) -> Tensor:
    """Return what a node wrote in a clean pass over tokens [B, P], less what the norm ignores.

    rows: one prompt, of which it is [P, D], or several: [rows, P, D].
    """
    embedded = F.embedding(tokens[rows], model.W_E)
    return output_from(model, label, embedded, trace.z[rows], [out[rows] for out in trace.mlp_out])


def output_from(model: Model, label: str, embedded: Tensor, z: Tensor, mlps: Sequence[Tensor] | Tensor) -> Tensor:
    """Return the same [..., P, D] of what writes: embedded tokens [..., P, D], z [..., P, L H, K], MLPs by layer."""
    if label == "embed":
        return centred(model, embedded)
    if label == "pos_embed":
        assert model.W_pos is not None, "a model with rotary positions has no such node"
        return centred(model, model.W_pos[: embedded.shape[-2]]).expand_as(embedded)
    if is_head(label):
        layer, head = head_index(label)
        return z[..., layer * model.shape.n_heads + head, :] @ centred(model, model.blocks[layer].W_O[head])
    return centred(model, mlps[layer_of(label)])


def rerun(model: Model, trace: Trace, label: str, change: Tensor) -> Tensor:
    """Return the last site [B, P, D] where a node wrote `change` [B, P, D] more than it did; all after it runs anew.

    trace: of the same prompts and positions, or of one prompt that is changed in several ways.
    Agreement: tests/model/test_path_dla.py, with a forward by hand.
    """
    step = step_of(label)
    stream = trace.sites[step] + change
    if step == 2 * model.shape.n_layers:
        return stream
    layer, in_layer = divmod(step, 2)
    if in_layer:  # a head: the MLP of its layer is next, which in parallel blocks reads the stream before it
        return forward_from(model, layer, trace.sites[step - 1], stream)[-1]
    mid = stream + attn_out(model, layer, attend(model, layer, stream).z)
    return forward_from(model, layer, stream, mid)[-1]


def logit_differences(model: Model, final: Tensor, u: Tensor, bias: Tensor) -> Tensor:
    """Return <normed(final), u> + bias [..., T] of last sites [..., T, D]; u [T, D] and bias [T] of pairs of tokens."""
    return (normed(model, final) * u).sum(-1) + bias


def total_effects(
    model: Model, trace: Trace, label: str, changes: Tensor, row: int, positions: Tensor, u: Tensor, bias: Tensor
) -> Tensor:
    """Return the clean logit difference less that of each ablation, at the targets: [A, T], logits.

    changes: what is written instead less what was written [A, P, D], of one prompt, one for each way of ablation.
    positions: the targets [T]; u: differences of unembedding columns there [T, D]; bias: of b_U [T]. Positions after
    the last target are not computed.
    """
    last = int(positions[-1]) + 1
    cut = replace(trace, sites=trace.sites[:, row : row + 1, :last])
    clean = logit_differences(model, trace.final[row, positions], u, bias)
    final = rerun(model, cut, label, changes[:, :last])
    return clean - logit_differences(model, final[:, positions], u, bias)
