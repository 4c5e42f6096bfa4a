"""DLA at the last position of adversarial prompts, clean and with a head's input taken from unrelated texts.

A prompt of T tokens; the unrelated texts are the first T tokens of the subject's prompts, so that a head whose whole
input is replaced simply writes what it wrote at row T-1 of the clean pass over that text: no further forward. The final
norm scale is the adversarial prompt's own clean one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repro.measures.batch import Batch, Bound, Engine
from repro.measures.declare import Context
from repro.model.forward import logits, trace
from repro.spec.types import ResampledDLA


def prepare(context: Context, engine: Engine) -> dict[str, Any]:
    """One short pass per adversarial prompt.

    Returns per example: `reader` [L, H, K], the functional z -> DLA of each head; `keys` and `values` [L, T-1, G, K] of
    the clean run; and lists `clean` (DLA per head, logits), `first`, `second` (token ids), `logit_difference` (logits).
    """
    model = engine.model
    found: dict[str, Any] = {key: [] for key in ("reader", "keys", "values", "clean", "first", "second", "logit_diff")}
    W_O = torch.stack([block.W_O for block in model.blocks])
    for example in context.examples:
        tokens = torch.tensor([example.tokens], device=model.W_E.device)
        passed = trace(model, tokens)
        scores = logits(model, passed.final[0, -1])
        pair = torch.tensor([example.answer, example.other], device=tokens.device)
        u = engine.unembedding_rows(pair)
        direction = engine.direction(u[0] - u[1], passed.scale_final[0, -1])
        reader = torch.einsum("lhkd,d->lhk", W_O, direction)
        z = torch.stack([seen.z[0, -1] for seen in passed.attention])
        first, second = scores.topk(2).indices.tolist()
        found["reader"].append(reader)
        found["clean"].append((z * reader).sum(-1).flatten().tolist())
        found["keys"].append(torch.stack([seen.k[0, :-1] for seen in passed.attention]))
        found["values"].append(torch.stack([seen.v[0, :-1] for seen in passed.attention]))
        found["first"].append(first)
        found["second"].append(second)
        found["logit_diff"].append(float(scores[pair[0]] - scores[pair[1]]))
    return found


def compute(bound: Bound, batch: Batch) -> dict[str, Tensor]:
    """DLA of every head under resampled input: [example, head, B], logits; NaN where a prompt is too short, or own."""
    experiment: ResampledDLA = bound.experiment
    rows = []
    for index, example in enumerate(bound.context.examples):
        row = len(example.tokens) - 1
        if row >= batch.tokens.shape[1]:
            rows.append(batch.trace.scale_final.new_full((len(bound.context.heads), len(batch.tokens)), torch.nan))
            continue
        if experiment.resample == "all_positions":
            z = torch.stack([seen.z[:, row] for seen in batch.trace.attention])
        else:
            z = _last_position(batch, row, bound.prepared["keys"][index], bound.prepared["values"][index])
        dla = torch.einsum("lbhk,lhk->lhb", z, bound.prepared["reader"][index]).flatten(0, 1)
        if example.prompt is not None:
            own = torch.arange(len(batch.tokens), device=dla.device) + batch.first_prompt == example.prompt
            dla = dla.masked_fill(own, torch.nan)
        rows.append(dla)
    return {"resampled": torch.stack(rows)}


def _last_position(batch: Batch, row: int, keys: Tensor, values: Tensor) -> Tensor:
    """z [L, B, H, K] when query, key and value at `row` come from the unrelated text, the rest from the clean run."""
    model = batch.engine.model
    share = model.shape.n_heads // model.shape.n_kv_heads
    out = []
    for layer, seen in enumerate(batch.trace.attention):
        q = seen.q[:, row]
        shape = (len(q), *keys.shape[1:])
        k = torch.cat((keys[layer].expand(shape), seen.k[:, row, None]), 1).repeat_interleave(share, 2)
        v = torch.cat((values[layer].expand(shape), seen.v[:, row, None]), 1).repeat_interleave(share, 2)
        weights = torch.softmax(torch.einsum("bhk,bphk->bhp", q, k) * model.softmax_scale, -1)
        out.append(torch.einsum("bhp,bphk->bhk", weights, v))
    return torch.stack(out)
