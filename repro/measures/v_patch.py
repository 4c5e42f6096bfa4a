"""The patch: the writer's output taken out of what its erasers read, and everything after it run again.

Heads, a whole layer of them at once, erasers or not, lose the writer from their value input:

    vcomp_{w->c}[t] = sum_i A^c[t, i] LN_n(h_w)[i] W_V^c W_O^c,   LN_n(x)[i] = (x[i] - mean(x[i])) / scale_n[i]

with the clean pattern A^c and the clean scale of layer n, and the stream after the layer's attention loses their sum.
An MLP loses the writer from its input, with the clean scale, its gates formed anew. Where erasers lie in several places
they are patched in the order in which they write; all between and after them runs normally on what is left, with its
own patterns and scales (repro/measures/patched.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from repro.errors import ReproError
from repro.labels import heads_of, is_head, layer_of
from repro.measures.base import Context, Decode, Pooled, Prepared, labelled, ratio_variable, sizes
from repro.measures.directions import Directions
from repro.measures.roles import layer_words, refuse_parallel
from repro.store.excluded import ValidPrompts
from repro.store.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

    from repro.measures.batch import Batch, Engine


class VPatch(Pooled):
    """The writer's output taken out of the value input of all heads of its erasers' layers, of their MLPs' input."""

    measure: Literal["v_patch"]
    layer: Literal["$layer"] | int = "$layer"
    """What is patched: the heads of the erasers' layers and the MLPs among them, or all heads of the layer of a
    number."""
    scale: Literal["frozen", "recomputed"] = "frozen"
    """Layer-norm scale of the patched input: the clean run's (exact algebra for heads of one layer), or its own."""

    @property
    def asks(self) -> Directions:
        """Return the request for all nodes on the writer."""
        return Directions(directions=("writer",))

    def patched(self, context: Context) -> list[str]:
        """Return the heads and MLPs that are patched, in the order in which they write.

        Raises ReproError (exit 2) for a layer that does not read the writer.
        """
        heads = context.shape.n_heads
        if self.layer == "$layer":
            erasers = context.roles.erasers
            layers = {layer_of(label) for label in erasers if is_head(label)}
            labels = [label for layer in layers for label in heads_of(layer, heads)]
            return sorted([*labels, *(label for label in erasers if not is_head(label))], key=context.nodes.index)
        low = layer_of(context.writer) + 1
        if not low <= self.layer < context.shape.n_layers:
            raise ReproError(
                f"layer {self.layer} cannot be patched: the writer {context.writer} is read by layers {low} to "
                f"{context.shape.n_layers - 1}"
            )
        return heads_of(self.layer, heads)

    def layout(self, context: Context) -> Layout:
        """Declare `site_pr` and `head_pr`, clean and patched; `head` holds the patched MLPs, too."""
        self.check_window(context)
        coords = {"run": ["clean", "patched"], "site": context.sites, "head": self.patched(context)}
        variables = (ratio_variable("run", "site", name="site_pr"), ratio_variable("run", "head", name="head_pr"))
        return Layout(variables, coords, sizes(context))

    def extra_flop(self, context: Context) -> float:
        """Return a second pass from the first patched layer on; while that is not known yet, the most it can be."""
        shape = context.shape
        layers = shape.n_layers - (layer_of(self.patched(context)[0]) if context.roles.erasers else 0)
        tokens = context.n_prompts * context.n_positions
        return tokens * shape.flop_per_token(context.n_positions) * layers / shape.n_layers

    def prepare(self, context: Context, engine: Engine, tokens: np.ndarray) -> dict[str, Any]:
        """Refuse an MLP that does not read the writer, which shows only on the model."""
        if self.layer == "$layer":
            refuse_parallel(engine.model.parallel, context.roles)
        return {}

    def compute(self, context: Context, prepared: Prepared, batch: Batch) -> dict[str, Tensor]:
        """Compute PR(site, writer) [run, site, B, P] and PR(head, writer) [run, head, B, P] in both runs."""
        import torch

        from repro.measures.patched import patched_run

        labels = self.patched(context)
        run = patched_run(batch, labels, own_scale=self.scale == "recomputed")
        after = torch.einsum("sbpd,bpd->sbp", run.sites, batch.writer) / batch.writer_norm2
        clean = batch.sites_on_writer
        before = torch.stack([batch.node_on("writer", label) for label in labels])
        return {
            "site_pr": torch.stack((clean, torch.cat((clean[: len(clean) - len(after)], after)))),
            "head_pr": torch.stack((before, torch.stack([run.dots[label] for label in labels]))) / batch.writer_norm2,
        }

    def reduce(self, context: Context, raw: ValidPrompts, prepared: Prepared, decode: Decode) -> xr.Dataset:
        """Return quantiles of both variables."""
        bands = self.bands(raw, "site_pr", "site_nan_count") | self.bands(raw, "head_pr", "head_nan_count")
        dataset = labelled(raw, bands)
        dataset.attrs["layer"] = layer_words(sorted({layer_of(label) for label in self.patched(context)}))
        return dataset

    @staticmethod
    def headlines(dataset: xr.Dataset) -> dict[str, float]:
        """Return the patched medians of the last two sites and of what is patched."""
        writer = str(dataset.attrs.get("writer"))
        sites = dataset["site_pr"].sel(run="patched", quantile="median")
        heads = dataset["head_pr"].sel(run="patched", quantile="median")
        return {
            **{f"PR({s}, {writer}), patched median": float(sites.sel(site=s)) for s in dataset["site"].values[-2:]},
            **{f"PR({h}, {writer}), patched median": float(heads.sel(head=h)) for h in dataset["head"].values},
        }
