"""The erasers by rule: the heads at the bar or below, in the later layer whose PR onto the writer sums lowest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from repro.labels import layer_of
from repro.measures.base import Context, Decode, Pooled, Prepared, labelled, ratio_variable, sizes
from repro.measures.directions import Directions
from repro.measures.roles import Roles, choose_erasers, later_heads
from repro.store.excluded import ValidPrompts
from repro.store.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

    from repro.measures.batch import Batch


class FindErasers(Pooled):
    """The erasers by rule: the later layer whose heads' PR onto the writer sums lowest, its heads at the bar."""

    measure: Literal["find_erasers"]
    bar: float = -0.03
    """Median PR onto the writer at or below which a head counts as an eraser."""
    finds = "erasers"

    @property
    def needs(self) -> frozenset[str]:
        """Return the writer alone."""
        return frozenset({"writer"})

    @property
    def asks(self) -> Directions:
        """Return the request for all nodes on the writer."""
        return Directions(directions=("writer",))

    def layout(self, context: Context) -> Layout:
        """Declare PR onto the writer of every head of later layers."""
        self.check_window(context)
        labels = later_heads(context.writer, context.shape.n_layers, context.shape.n_heads)
        return Layout((ratio_variable("head"),), {"head": labels}, sizes(context))

    def compute(self, context: Context, prepared: Prepared, batch: Batch) -> dict[str, Tensor]:
        """Compute PR(head, writer): [head, B, P]."""
        import torch

        later = range(layer_of(context.writer) + 1, context.shape.n_layers)
        return {"pr": torch.cat([batch.heads_on("writer", layer) / batch.writer_norm2 for layer in later])}

    def reduce(self, context: Context, raw: ValidPrompts, prepared: Prepared, decode: Decode) -> xr.Dataset:
        """Return quantiles, the sum of medians of each layer, and the choice."""
        dataset = labelled(raw, self.bands(raw, "pr"))
        medians = dataset["pr"].sel(quantile="median").values.tolist()
        by_head = dict(zip(raw.layout.coords["head"], medians, strict=True))
        choice = choose_erasers(by_head, context.roles.found, self.bar)
        dataset["layer_sum"] = ("layer", np.array(list(choice.layer_sums.values())))
        dataset = dataset.assign_coords(layer=list(choice.layer_sums))
        dataset.attrs.update(Roles(context.writer, choice.erasers, choice.found, "auto").attrs())
        return dataset
