"""What every later component makes of a writer, as its direct effect on a logit difference: DLA(path_{w->c}).

With patterns, norm scales and gates of the clean run held (repro/model/paths.py), at a target position t:

    head c of layer n:   DLA(path)[t] = sum_i A^c[t, i] <LN_n(h_w)[i] W_V^c, W_O^c d[t]>
    MLP:                 DLA(path)[t] = sum_m g_m[t] (LN_n(h_w)[t] W_in)_m (W_out d[t])_m

with d[t] the direction of which <v, d[t]> = DLA(v)[t]. No vector of width D is formed for a path. Any other vector at t
may stand in the place of d; with h_w[t] itself it gives what a scan reads. Agreement: tests/model/test_path_dla.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repro.model.decoder import Model
from repro.model.forward import Trace, read_scale
from repro.model.paths import centred, gates, held_pattern


def onto_paths(
    model: Model, trace: Trace, row: int, positions: Tensor, h: Tensor, steps: Tensor, onto: Tensor
) -> Tensor:
    """Return <path_{w->c}[t], onto[w, t]> of W writers, every component c and T targets of one prompt.

    positions: the targets [T]; h: what the writers wrote at all positions [W, P, D]; steps: when each writes [W], as
    `repro.labels.step_of` says; onto: [W, T, D] or [1, T, D], without what the norm ignores. Returns
    [W, C, T], components in the order of `repro.labels.nodes`, NaN where one does not read a writer; in logits where
    onto is a direction of DLA.
    """
    H, L = model.shape.n_heads, model.shape.n_layers
    found = h.new_full((len(h), L * (H + 1), len(positions)), torch.nan)
    onto = onto.expand(len(h), -1, -1)
    for layer in range(L):
        columns = slice(layer * (H + 1), layer * (H + 1) + H)
        who = (steps <= 2 * layer).nonzero().flatten()
        if len(who):
            found[who, columns] = _through_heads(model, trace, row, positions, layer, h[who], onto[who])
        who = (steps <= model.mlp_site(layer)).nonzero().flatten()
        if len(who):
            found[who, columns.stop] = _through_mlp(model, trace, row, positions, layer, h[who], onto[who])
    return found


def _through_heads(
    model: Model, trace: Trace, row: int, positions: Tensor, layer: int, h: Tensor, onto: Tensor
) -> Tensor:
    """Return the products of the paths through one layer's heads: [w, H, T]."""
    shape, block = model.shape, model.blocks[layer]
    A = held_pattern(model, trace, layer, row, positions)
    read, per = centred(model, h), shape.n_heads // shape.n_kv_heads
    out = h.new_empty((len(h), shape.n_heads, len(positions)))
    for group, W_V in enumerate(block.W_V):
        values = read @ W_V
        for head in range(group * per, (group + 1) * per):
            out[:, head] = ((A[head] @ values) * (onto @ block.W_O[head].T)).sum(-1)
    return out


def _through_mlp(
    model: Model, trace: Trace, row: int, positions: Tensor, layer: int, h: Tensor, onto: Tensor
) -> Tensor:
    """Return the products of the paths through one MLP: [w, T]."""
    block, stream = model.blocks[layer], trace.sites[model.mlp_site(layer), row, positions]
    g = gates(model, layer, stream) / read_scale(model, stream)[:, None]
    read = centred(model, h[:, positions]) @ block.W_in.to(h.dtype)
    return torch.einsum("wtm,tm,wtm->wt", read, g, onto @ block.W_out.to(h.dtype).T)
