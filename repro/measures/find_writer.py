"""The writer by rule: the head whose output is best seen right after writing and least at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from repro.labels import heads
from repro.measures.base import Context, Decode, Pooled, Prepared, labelled, ratio_variable, sizes
from repro.measures.directions import Directions
from repro.measures.roles import Roles, choose_writer
from repro.store.excluded import ValidPrompts
from repro.store.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

    from repro.measures.batch import Batch


class FindWriter(Pooled):
    """The writer by rule: the head whose output is best seen after writing and least at the end."""

    measure: Literal["find_writer"]
    finds = "writer"

    @property
    def needs(self) -> frozenset[str]:
        """Return no role: this is the first to be looked for."""
        return frozenset()

    @property
    def asks(self) -> Directions:
        """Return the request for sites on all nodes."""
        return Directions(sites_on_nodes=True)

    def layout(self, context: Context) -> Layout:
        """Declare PR of every site on the heads that could be writers: all but the last layer's."""
        self.check_window(context)
        labels = heads(context.shape.n_layers - 1, context.shape.n_heads)
        return Layout((ratio_variable("head", "site"),), {"head": labels, "site": context.sites}, sizes(context))

    def compute(self, context: Context, prepared: Prepared, batch: Batch) -> dict[str, Tensor]:
        """Compute PR(site, head): [head, site, B, P]."""
        from repro.measures.projection import sites_on_nodes

        return {"pr": sites_on_nodes(batch, layers=context.shape.n_layers - 1, mlps=False)}

    def reduce(self, context: Context, raw: ValidPrompts, prepared: Prepared, decode: Decode) -> xr.Dataset:
        """Return quantiles, every head's score, and the choice."""
        dataset = labelled(raw, self.bands(raw, "pr"))
        labels, sites = list(raw.layout.coords["head"]), list(raw.layout.coords["site"])
        choice = choose_writer(dataset["pr"].sel(quantile="median").values, labels, sites)
        dataset["score"] = ("head", np.array([choice.scores[head] for head in labels]))
        dataset.attrs.update(Roles(choice.writer, found=choice.found, source="auto").attrs())
        return dataset
