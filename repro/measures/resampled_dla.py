"""DLA at the last position of adversarial prompts, clean and with a head's input taken from unrelated texts.

A prompt of T tokens; the unrelated texts are the first T tokens of the subject's prompts, so that a head whose whole
input is replaced simply writes what it wrote at row T-1 of the clean pass over that text: no further forward. The final
norm scale is the adversarial prompt's own clean one. Shown are all heads, and the writer where it is an MLP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from repro.labels import is_head, layer_of
from repro.measures.base import Banded, Context, Decode, Prepared, labelled
from repro.measures.roles import distinct_other_heads
from repro.measures.statistics import quantiles_along
from repro.store.excluded import ValidPrompts
from repro.store.layout import Layout, Variable

if TYPE_CHECKING:
    from torch import Tensor

    from repro.measures.batch import Batch, Engine


class ResampledDLA(Banded):
    """DLA of every head and the writer at the end of each adversarial prompt, clean and with resampled input."""

    measure: Literal["resampled_dla"]
    resample: Literal["all_positions", "last_position"] = "all_positions"
    """What of the head's input comes from the unrelated text: everything, or query, key and value at the last position
    only."""

    @property
    def needs(self) -> frozenset[str]:
        """Return all roles, the adversarial prompts included."""
        return frozenset({"writer", "erasers", "examples"})

    def layout(self, context: Context) -> Layout:
        """Declare `resampled` by example and head, one value per prompt."""
        variable = Variable("resampled", ("example", "head", "prompt"), "float32", "logits", "DLA with resampled input")
        coords = {"example": [example.label for example in context.examples], "head": shown_nodes(context)}
        return Layout((variable,), coords, {"prompt": context.n_prompts})

    def prepare(self, context: Context, engine: Engine, tokens: np.ndarray) -> dict[str, Any]:
        """Run one short pass per adversarial prompt.

        Returns per example: `direction` [D], whose inner product with what is written is its DLA; `reader` [L, H, K],
        the functional z -> DLA of each head; `keys` and `values` [L, T-1, G, K] of the clean run; and lists `clean`
        (DLA per head and of the writer, logits), `first`, `second` (token ids), `logit_diff` (logits).
        """
        import torch

        from repro.model.forward import logits, trace

        model = engine.model
        found: dict[str, Any] = {
            key: [] for key in ("direction", "reader", "keys", "values", "clean", "first", "second", "logit_diff")
        }
        W_O = torch.stack([block.W_O for block in model.blocks])
        for example in context.examples:
            ids = torch.tensor([example.tokens], device=model.W_E.device)
            passed = trace(model, ids)
            scores = logits(model, passed.final[0, -1])
            pair = torch.tensor([example.answer, example.other], device=ids.device)
            u = engine.unembedding_rows(pair)
            direction = engine.direction(u[0] - u[1], passed.scale_final[0, -1])
            reader = torch.einsum("lhkd,d->lhk", W_O, direction)
            z = torch.stack([seen.z[0, -1] for seen in passed.attention])
            first, second = scores.topk(2).indices.tolist()
            found["direction"].append(direction)
            found["reader"].append(reader)
            mlp = [passed.mlp_out[layer][0, -1] @ direction for layer in _writer_mlp(context)]
            found["clean"].append([*(z * reader).sum(-1).flatten().tolist(), *map(float, mlp)])
            found["keys"].append(torch.stack([seen.k[0, :-1] for seen in passed.attention]))
            found["values"].append(torch.stack([seen.v[0, :-1] for seen in passed.attention]))
            found["first"].append(first)
            found["second"].append(second)
            found["logit_diff"].append(float(scores[pair[0]] - scores[pair[1]]))
        return found

    def compute(self, context: Context, prepared: Prepared, batch: Batch) -> dict[str, Tensor]:
        """Compute every head's DLA with resampled input [example, head, B]; NaN where a prompt is short or own.

        An MLP reads the last position alone, so that both ways of resampling are the same for it.
        """
        import torch

        rows = []
        for index, example in enumerate(context.examples):
            row = len(example.tokens) - 1
            if row >= batch.tokens.shape[1]:
                rows.append(batch.trace.scale_final.new_full((len(shown_nodes(context)), len(batch.tokens)), torch.nan))
                continue
            if self.resample == "all_positions":
                z = torch.stack([seen.z[:, row] for seen in batch.trace.attention])
            else:
                z = _last_position(batch, row, prepared["keys"][index], prepared["values"][index])
            dla = torch.einsum("lbhk,lhk->lhb", z, prepared["reader"][index]).flatten(0, 1)
            for layer in _writer_mlp(context):
                own_mlp = batch.trace.mlp_out[layer][:, row] @ prepared["direction"][index]
                dla = torch.cat((dla, own_mlp[None]))
            if example.prompt is not None:
                own = torch.arange(len(batch.tokens), device=dla.device) + batch.first_prompt == example.prompt
                dla = dla.masked_fill(own, torch.nan)
            rows.append(dla)
        return {"resampled": torch.stack(rows)}

    def reduce(self, context: Context, raw: ValidPrompts, prepared: Prepared, decode: Decode) -> xr.Dataset:
        """Return quantiles over the unrelated texts, clean values, predictions, and which head to show."""
        bands, counts = quantiles_along(raw.read("resampled"), self.quantiles, axes=1)
        dims = ("example", "head")
        dataset = labelled(raw, {"resampled": (("quantile", *dims), bands), "nan_count": (dims, counts)})
        clean = np.array(prepared["clean"])
        dataset["clean"] = (dims, clean)
        dataset["logit_diff"] = ("example", np.array(prepared["logit_diff"]))
        examples = context.examples
        asked = [(example.answer, example.other) for example in examples]
        predicted = list(zip(prepared["first"], prepared["second"], strict=True))
        named = [pair == found for pair, found in zip(asked, predicted, strict=True)]
        dataset["top2_named"] = ("example", np.array(named))
        heads, clean_heads = context.heads, clean[:, : len(context.heads)]
        asked_heads = [example.head for example in examples]
        texts = {
            "text": [example.text for example in examples],
            "answer": [example.answer_text for example in examples],
            "other": [example.other_text for example in examples],
            "first": [decode(first) for first, _ in predicted],
            "second": [decode(second) for _, second in predicted],
            "head_shown": distinct_other_heads(clean_heads, heads, context.writer, asked_heads),
        }
        dataset.attrs["wrong_predictions"] = sum(not example.right for example in examples)
        dataset.attrs["examples"] = "named" if all(example.prompt is None for example in examples) else "mined"
        return dataset.assign_coords({name: ("example", values) for name, values in texts.items()})

    @staticmethod
    def headlines(dataset: xr.Dataset) -> dict[str, float]:
        """Return the writer's resampled median on each example."""
        writer = str(dataset.attrs.get("writer"))
        medians = dataset["resampled"].sel(head=writer, quantile="median")
        return {
            f"DLA of {writer} on {example}, resampled median": float(medians.sel(example=example))
            for example in dataset["example"].values
        }


def shown_nodes(context: Context) -> list[str]:
    """Return the labels of all heads, and of the writer where it is an MLP."""
    return [*context.heads, *(f"MLP{layer}" for layer in _writer_mlp(context))]


def _writer_mlp(context: Context) -> list[int]:
    """Return the layer of the writer if it is an MLP, else nothing."""
    return [] if is_head(context.writer) else [layer_of(context.writer)]


def _last_position(batch: Batch, row: int, keys: Tensor, values: Tensor) -> Tensor:
    """Return z [L, B, H, K] where q, k, v at `row` come from the unrelated text, all else from the clean run."""
    import torch

    from repro.model.attention import weights
    from repro.model.forward import attention_gain

    model = batch.engine.model
    share = model.shape.n_heads // model.shape.n_kv_heads
    out = []
    for layer, seen in enumerate(batch.trace.attention):
        q = seen.q[:, row]
        shape = (len(q), *keys.shape[1:])
        k = torch.cat((keys[layer].expand(shape), seen.k[:, row, None]), 1).repeat_interleave(share, 2)
        v = torch.cat((values[layer].expand(shape), seen.v[:, row, None]), 1).repeat_interleave(share, 2)
        scores = torch.einsum("bhk,bphk->bhp", q, k)[:, :, None] * model.softmax_scale
        A = weights(model, layer, scores, torch.tensor([row], device=scores.device))
        z = torch.einsum("bhtp,bphk->bthk", A, v)
        out.append((z * attention_gain(model, layer, z)[..., None, None])[:, 0])
    return torch.stack(out)
