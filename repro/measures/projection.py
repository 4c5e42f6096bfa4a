"""Projection ratios PR(a, b) = <a, b> / <b, b> per prompt and position: signed, dimensionless, NaN where b = 0.

1: b is wholly present in a. 0: orthogonal. -1: a holds exactly minus b.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr
from pydantic import model_validator

from repro.labels import head_index, layer_of
from repro.measures.base import Context, Decode, Pooled, Prepared, labelled, ratio_variable, sizes
from repro.measures.directions import Directions
from repro.measures.roles import eraser_rows
from repro.measures.statistics import quantiles_along, variance_shares
from repro.store.excluded import ValidPrompts
from repro.store.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

    from repro.measures.batch import Batch

SUM_OF_ERASERS = "erasers"
"""Label of the component that is the erasers' sum."""


class Projection(Pooled):
    """Projection ratios PR(a, b) = <a, b> / <b, b> of components `of` on nodes `onto`."""

    measure: Literal["projection"]
    of: Literal["sites", "nodes"]
    """The components projected."""
    onto: Literal["nodes", "$writer"]
    """The nodes projected on. `nodes` needs `of = "sites"`."""
    summarise: Literal["pooled", "by_position"] = "pooled"
    """Quantiles over prompts and positions together, or over prompts at each position with the variance split."""

    @model_validator(mode="after")
    def _known_combination(self) -> Projection:
        if self.onto == "nodes" and self.of != "sites":
            raise ValueError('onto = "nodes" goes with of = "sites"')
        if self.summarise == "by_position" and (self.of, self.onto) != ("sites", "$writer"):
            raise ValueError('summarise = "by_position" goes with of = "sites", onto = "$writer"')
        return self

    @property
    def asks(self) -> Directions:
        """Return the request for sites on all nodes, or for all nodes on the writer."""
        return Directions(self.onto == "nodes", ("writer",) if self.of == "nodes" else ())

    def layout(self, context: Context) -> Layout:
        """Declare `pr` by node and site, by site, or by component."""
        self.check_window(context)
        if self.onto == "nodes":
            coords = {"node": context.nodes, "site": context.sites}
            return Layout((ratio_variable("node", "site"),), coords, sizes(context))
        if self.of == "sites":
            return Layout((ratio_variable("site"),), {"site": context.sites}, sizes(context))
        return Layout((ratio_variable("component"),), {"component": components(context)}, sizes(context))

    def compute(self, context: Context, prepared: Prepared, batch: Batch) -> dict[str, Tensor]:
        """Compute sites on nodes [node, site, B, P], sites on writer [site, B, P], or nodes on it [component, B, P]."""
        if self.onto == "nodes":
            return {"pr": sites_on_nodes(batch)}
        return {"pr": batch.sites_on_writer if self.of == "sites" else nodes_on_writer(batch)}

    def reduce(self, context: Context, raw: ValidPrompts, prepared: Prepared, decode: Decode) -> xr.Dataset:
        """Return quantiles of `pr`; by position also where its variance comes from."""
        if self.summarise == "pooled":
            return labelled(raw, self.bands(raw, "pr"))
        bands, shares = [], []
        for index in range(len(raw.layout.coords["site"])):
            values = raw.read("pr", site=index)[:, self.window]
            bands.append(quantiles_along(values.T, self.quantiles, axes=1)[0])
            shares.append(variance_shares(values))
        dataset = labelled(raw, {"pr": (("quantile", "site", "position"), np.stack(bands, 1))})
        dataset["variance_share"] = (("source", "site"), np.stack(shares, 1))
        return dataset.assign_coords(
            source=["prompt", "position", "interaction"], position=np.arange(context.n_positions)[self.window]
        )

    @staticmethod
    def headlines(dataset: xr.Dataset) -> dict[str, float]:
        """Return the erasers' sum on the writer with its quantiles, or the writer's median presence at each site."""
        writer = str(dataset.attrs.get("writer"))
        if "component" in dataset.dims:
            pr = dataset["pr"].sel(component=SUM_OF_ERASERS)
            return {
                f"PR(sum of erasers, {writer}), {quantile}": float(pr.sel(quantile=quantile))
                for quantile in dataset["quantile"].values
            }
        if "node" in dataset.dims:
            pr = dataset["pr"].sel(node=writer, quantile="median")
            return {f"PR({site}, {writer}), median": float(pr.sel(site=site)) for site in dataset["site"].values}
        return {}


def components(context: Context) -> list[str]:
    """Return every node but the writer, then the sum of the erasers."""
    return [*(node for node in context.nodes if node != context.writer), SUM_OF_ERASERS]


def sites_on_nodes(batch: Batch, layers: int | None = None, mlps: bool = True) -> Tensor:
    """Return PR(site, node) of every site and node in model order: [node, site, B, P].

    layers: only the nodes of the first so many; mlps: whether MLPs take part.
    """
    import torch

    rows = []
    for layer in range(batch.engine.model.shape.n_layers if layers is None else layers):
        num, norm2 = batch.sites_on_heads(layer)
        rows.append(ratio(num, norm2).transpose(0, 1))
        if mlps:
            num, norm2 = batch.sites_on_mlp(layer)
            rows.append(ratio(num, norm2)[None])
    return torch.cat(rows)


def ratio(num: Tensor, norm2: Tensor) -> Tensor:
    """Return num / norm2, NaN where the norm is zero."""
    import torch

    return torch.where(norm2 > 0, num / norm2, torch.nan)


def nodes_on_writer(batch: Batch) -> Tensor:
    """Return PR(node, writer) of every node but the writer, then of the erasers' sum: [component, B, P].

    The sum is formed per prompt and position, before any median: medians do not add.
    """
    import torch

    roles = batch.roles
    rows, erasers = [], None
    for layer in range(batch.engine.model.shape.n_layers):
        heads = batch.heads_on("writer", layer) / batch.writer_norm2
        if layer == roles.layer:
            erasers = heads[eraser_rows(roles)].sum(0)
        if layer == layer_of(roles.writer):
            index = head_index(roles.writer)[1]
            heads = torch.cat((heads[:index], heads[index + 1 :]))
        rows += [heads, (batch.mlp_on("writer", layer) / batch.writer_norm2)[None]]
    assert erasers is not None
    return torch.cat([*rows, erasers[None]])
