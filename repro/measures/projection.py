"""Projection ratios PR(a, b) = <a, b> / <b, b> per prompt and position: signed, dimensionless, NaN where b = 0.

1: b is wholly present in a. 0: orthogonal. -1: a holds exactly minus b.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr
from pydantic import field_validator, model_validator

from repro.errors import ReproError, did_you_mean
from repro.labels import is_node
from repro.measures.base import Context, Decode, Pooled, Prepared, labelled, ratio_variable, sizes
from repro.measures.directions import Directions
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
    onto: Literal["nodes", "$writer"] | str
    """What is projected on: `nodes` (all of them, with `of = "sites"`), `$writer`, or a head or MLP by its label."""
    summarise: Literal["pooled", "by_position"] = "pooled"
    """Quantiles over prompts and positions together, or over prompts at each position with the variance split."""

    @field_validator("onto")
    @classmethod
    def _onto_nodes(cls, value: str) -> str:
        if value not in ("nodes", "$writer") and not is_node(value):
            raise ValueError("\"nodes\", \"$writer\", or the label of a head or an MLP such as 'L0H2' or 'MLP3'")
        return value

    @model_validator(mode="after")
    def _known_combination(self) -> Projection:
        if self.onto == "nodes" and self.of != "sites":
            raise ValueError('onto = "nodes" goes with of = "sites"')
        if self.summarise == "by_position" and (self.of != "sites" or self.onto == "nodes"):
            raise ValueError('summarise = "by_position" goes with of = "sites" and onto = "$writer" or one node')
        return self

    @property
    def asks(self) -> Directions:
        """Return the request for sites on all nodes, or for all nodes on one."""
        return Directions(self.onto == "nodes", (self._direction,) if self.of == "nodes" else ())

    @property
    def _direction(self) -> str:
        """Return what a batch calls the node that is projected on."""
        return self.onto.removeprefix("$")

    def target(self, context: Context) -> str:
        """Return the node that is projected on. Raise ReproError (exit 2) for one that the model does not have."""
        if self.onto == "$writer":
            return context.writer
        if self.onto not in context.nodes:
            raise ReproError(f"onto: this model has no node {self.onto!r}.{did_you_mean(self.onto, context.nodes)}")
        return self.onto

    def layout(self, context: Context) -> Layout:
        """Declare `pr` by node and site, by site, or by component."""
        self.check_window(context)
        if self.onto == "nodes":
            coords = {"node": context.nodes, "site": context.sites}
            return Layout((ratio_variable("node", "site"),), coords, sizes(context))
        self.target(context)
        if self.of == "sites":
            return Layout((ratio_variable("site"),), {"site": context.sites}, sizes(context))
        labels = components(context, self.target(context))
        return Layout((ratio_variable("component"),), {"component": labels}, sizes(context))

    def compute(self, context: Context, prepared: Prepared, batch: Batch) -> dict[str, Tensor]:
        """Compute sites on nodes [node, site, B, P], sites on one [site, B, P], or nodes on it [component, B, P]."""
        if self.onto == "nodes":
            return {"pr": sites_on_nodes(batch, context.nodes)}
        if self.of == "nodes":
            return {"pr": nodes_on(batch, self.target(context), self._direction, context.nodes)}
        return {"pr": batch.sites_on_writer if self.onto == "$writer" else batch.sites_on(self.onto)}

    def reduce(self, context: Context, raw: ValidPrompts, prepared: Prepared, decode: Decode) -> xr.Dataset:
        """Return quantiles of `pr`; by position also where its variance comes from."""
        if self.summarise == "pooled":
            return self._told(labelled(raw, self.bands(raw, "pr")))
        bands, shares = [], []
        for index in range(len(raw.layout.coords["site"])):
            values = raw.read("pr", site=index)[:, self.window]
            bands.append(quantiles_along(values.T, self.quantiles, axes=1)[0])
            shares.append(variance_shares(values))
        dataset = labelled(raw, {"pr": (("quantile", "site", "position"), np.stack(bands, 1))})
        dataset["variance_share"] = (("source", "site"), np.stack(shares, 1))
        return self._told(dataset).assign_coords(
            source=["prompt", "position", "interaction"], position=np.arange(context.n_positions)[self.window]
        )

    def _told(self, dataset: xr.Dataset) -> xr.Dataset:
        """Return a summary that says what is projected on where that is a node named in the spec: `onto`."""
        return dataset.assign_attrs({} if self.onto in ("nodes", "$writer") else {"onto": self.onto})

    @staticmethod
    def headlines(dataset: xr.Dataset) -> dict[str, float]:
        """Return the erasers' sum on the writer with its quantiles, or the writer's median presence at each site."""
        writer = str(dataset.attrs.get("onto", dataset.attrs.get("writer")))
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


def components(context: Context, target: str | None = None) -> list[str]:
    """Return every node but the one projected on (the writer if none is given), then the sum of the erasers."""
    return [*(node for node in context.nodes if node != (target or context.writer)), SUM_OF_ERASERS]


def sites_on_nodes(batch: Batch, nodes: Sequence[str]) -> Tensor:
    """Return PR(site, node) of every site on every node: [node, site, B, P]."""
    import torch

    from repro.measures.batch import nan_at_zero

    on = map(batch.projected, nodes)
    return torch.stack([num[: len(batch.sites)] / nan_at_zero(norm2) for num, norm2 in on])


def nodes_on(batch: Batch, target: str, direction: str, nodes: Sequence[str]) -> Tensor:
    """Return PR(node, target) of every node but the target, then of the erasers' sum: [component, B, P].

    direction: what the batch calls the target. The sum is formed per prompt and position, before any median: medians
    do not add.
    """
    import torch

    from repro.measures.batch import norm2_or_nan

    norm2 = norm2_or_nan(batch.node(target))
    ratios = {label: batch.node_on(direction, label) / norm2 for label in nodes}
    erasers = torch.stack([ratios[label] for label in batch.roles.erasers]).sum(0)
    return torch.stack([*(ratio for label, ratio in ratios.items() if label != target), erasers])
