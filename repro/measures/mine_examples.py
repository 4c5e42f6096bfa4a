"""Adversarial prompts from the subject's own: confident, right predictions that DLA credits to the writer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr
from pydantic import Field

from repro.errors import ReproError
from repro.measures.base import Banded, Context, Decode, Prepared
from repro.measures.roles import choose_examples
from repro.measures.statistics import QUANTILE_LABELS, quantiles
from repro.store.excluded import ValidPrompts
from repro.store.layout import Layout, Variable

if TYPE_CHECKING:
    from torch import Tensor

    from repro.measures.batch import Batch

MINED_POSITIONS = (4, 31)
"""First and last position searched."""


class MineExamples(Banded):
    """Adversarial prompts from the subject's own: confident, right, and by DLA the writer's doing."""

    measure: Literal["mine_examples"]
    count: int = Field(default=4, gt=0)
    """How many, with distinct answers from distinct prompts."""
    finds = ("examples",)

    @property
    def needs(self) -> frozenset[str]:
        """Return the writer alone."""
        return frozenset({"writer"})

    def length(self, context: Context) -> int:
        """Return the few tokens up to the last position searched and its next token."""
        return min(MINED_POSITIONS[1] + 2, context.n_positions)

    def layout(self, context: Context) -> Layout:
        """Declare the writer's DLA at the searched positions, the two first predictions, and what follows."""
        dims = ("prompt", "position")
        variables = (
            Variable("writer_dla", dims, "float32", "logits", "DLA of the writer on the model's two first predictions"),
            Variable("first", dims, "int32", "", "token id of the first prediction"),
            Variable("second", dims, "int32", "", "token id of the second prediction"),
            Variable("actual", dims, "int32", "", "token id that follows"),
        )
        positions = mined_positions(context)
        if not positions:
            raise ReproError(
                f"prompts of {context.n_positions} tokens are too short to mine adversarial examples from; at least "
                f"{MINED_POSITIONS[0] + 2} are needed, or name the examples in the spec"
            )
        return Layout(variables, {}, {"prompt": context.n_prompts, "position": len(positions)})

    def extra_flop(self, context: Context) -> float:
        """Return the unembedding at the searched positions."""
        tokens = context.n_prompts * len(mined_positions(context))
        return 2.0 * tokens * context.shape.d_model * context.shape.d_vocab

    def compute(self, context: Context, prepared: Prepared, batch: Batch) -> dict[str, Tensor]:
        """Return the writer's DLA on the two first predictions (logits), their ids, and the next token: [B, P] each."""
        at = mined_positions(context)
        rows = slice(at.start, at.stop)
        engine = batch.engine
        values, ids = engine.top2(batch.trace.final[:, rows])
        direction = engine.direction(engine.top2_difference(values, ids), batch.trace.scale_final[:, rows])
        return {
            "writer_dla": (batch.writer[:, rows] * direction).sum(-1),
            "first": ids[..., 0],
            "second": ids[..., 1],
            "actual": batch.tokens[:, at.start + 1 : at.stop + 1],
        }

    def reduce(self, context: Context, raw: ValidPrompts, prepared: Prepared, decode: Decode) -> xr.Dataset:
        """Return quantiles of the writer's DLA, and the chosen positions in `mined`."""
        values = {name: raw.read(name) for name in ("writer_dla", "first", "second", "actual")}
        dla, first, second, actual = values.values()
        chosen = choose_examples(dla, first, second, actual, self.count)
        start = mined_positions(context).start
        median, counts = quantiles(dla, self.quantiles)
        dataset = xr.Dataset({"writer_dla": ("quantile", median)}, {"quantile": list(QUANTILE_LABELS)})
        dataset.attrs["nan_count"] = counts
        dataset.attrs["right"] = int((first == actual).sum())
        dataset.attrs["positions"] = int(first.size)
        dataset.attrs["mined"] = json.dumps(
            [
                {
                    "prompt": int(raw.prompts[item.prompt]),
                    "position": item.position + start,
                    "first": item.first,
                    "second": item.second,
                    "right": item.right,
                    "dla": float(dla[item.prompt, item.position]),
                }
                for item in chosen
            ]
        )
        return dataset


def mined_positions(context: Context) -> range:
    """Return the positions searched for adversarial examples: 4 to 31, each with a next token."""
    return range(MINED_POSITIONS[0], min(MINED_POSITIONS[1] + 1, context.n_positions - 1))


def mined_from(attrs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the mined positions that a summary holds."""
    return list(json.loads(str(attrs["mined"])))
