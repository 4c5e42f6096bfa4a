"""The V-composition patch in closed form: the writer's output taken out of the value input of one later layer.

    vcomp_{w->c}[t] = sum_i A^c[t, i] LN_n(h_w)[i] W_V^c W_O^c,   LN_n(x)[i] = (x[i] - mean(x[i])) / scale_n[i]

with the clean pattern A^c and the clean scale of layer n. Every head c of the layer loses its vcomp, erasers or not,
and the stream after the layer's attention loses their sum; later layers then run normally on what is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import xarray as xr

from repro.errors import ReproError
from repro.labels import heads_of, layer_of
from repro.measures.base import Context, Decode, Pooled, Prepared, labelled, ratio_variable, sizes
from repro.measures.directions import Directions
from repro.store.excluded import ValidPrompts
from repro.store.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

    from repro.measures.batch import Batch


class VPatch(Pooled):
    """V-composition patch: the writer's output taken out of the value input of every head of `layer`."""

    measure: Literal["v_patch"]
    layer: Literal["$layer"] | int = "$layer"
    """The patched layer: the erasers', or a number."""
    scale: Literal["frozen", "recomputed"] = "frozen"
    """Layer-norm scale of the patched value input: the clean run's (exact algebra), or its own."""

    @property
    def asks(self) -> Directions:
        """Return the request for all nodes on the writer."""
        return Directions(directions=("writer",))

    def patched_layer(self, context: Context) -> int:
        """Return the layer that the patch concerns. Raise ReproError (exit 2) for one that does not read the writer."""
        layer = context.roles.layer if self.layer == "$layer" else self.layer
        low = layer_of(context.writer) + 1
        if not low <= layer < context.shape.n_layers:
            raise ReproError(
                f"layer {layer} cannot be patched: the writer {context.writer} is read by layers {low} to "
                f"{context.shape.n_layers - 1}"
            )
        return layer

    def layout(self, context: Context) -> Layout:
        """Declare `site_pr` and `head_pr`, clean and patched."""
        self.check_window(context)
        coords = {
            "run": ["clean", "patched"],
            "site": context.sites,
            "head": heads_of(self.patched_layer(context), context.shape.n_heads),
        }
        variables = (ratio_variable("run", "site", name="site_pr"), ratio_variable("run", "head", name="head_pr"))
        return Layout(variables, coords, sizes(context))

    def extra_flop(self, context: Context) -> float:
        """Return a second pass from the patched layer on; while that is not known yet, the most it can be."""
        shape = context.shape
        layers = shape.n_layers - (self.patched_layer(context) if context.roles.erasers else 0)
        tokens = context.n_prompts * context.n_positions
        return tokens * shape.flop_per_token(context.n_positions) * layers / shape.n_layers

    def compute(self, context: Context, prepared: Prepared, batch: Batch) -> dict[str, Tensor]:
        """Compute PR(site, writer) [run, site, B, P] and PR(head, writer) [run, head, B, P] in both runs."""
        import torch

        layer = self.patched_layer(context)
        clean_heads = batch.heads_on("writer", layer)
        if self.scale == "frozen":
            heads, resid_mid = _subtracted(batch, layer, clean_heads)
        else:
            heads, resid_mid = _recomputed(batch, layer)
        patched = batch.rest(layer, resid_mid)
        after = torch.einsum("sbpd,bpd->sbp", patched, batch.writer) / batch.writer_norm2
        clean = batch.sites_on_writer
        return {
            "site_pr": torch.stack((clean, torch.cat((clean[: 2 * layer + 1], after)))),
            "head_pr": torch.stack((clean_heads, heads)) / batch.writer_norm2,
        }

    def reduce(self, context: Context, raw: ValidPrompts, prepared: Prepared, decode: Decode) -> xr.Dataset:
        """Return quantiles of both variables."""
        bands = self.bands(raw, "site_pr", "site_nan_count") | self.bands(raw, "head_pr", "head_nan_count")
        dataset = labelled(raw, bands)
        dataset.attrs["layer"] = self.patched_layer(context)
        return dataset

    @staticmethod
    def headlines(dataset: xr.Dataset) -> dict[str, float]:
        """Return the patched medians of the last two sites and of the layer's heads."""
        writer = str(dataset.attrs.get("writer"))
        sites = dataset["site_pr"].sel(run="patched", quantile="median")
        heads = dataset["head_pr"].sel(run="patched", quantile="median")
        return {
            **{f"PR({s}, {writer}), patched median": float(sites.sel(site=s)) for s in dataset["site"].values[-2:]},
            **{f"PR({h}, {writer}), patched median": float(heads.sel(head=h)) for h in dataset["head"].values},
        }


def _subtracted(batch: Batch, layer: int, clean_heads: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract exactly: patched = clean - vcomp, for <h, h_w> of each head and for resid_mid."""
    dots, total = batch.composition(layer)
    slot = batch.requested.directions.index("writer")
    return clean_heads - dots[:, slot], batch.sites[2 * layer + 1] - total


def _recomputed(batch: Batch, layer: int) -> tuple[Tensor, Tensor]:
    """Form the heads anew with the clean pattern and x - h_w normed by its own scale: a variant."""
    from repro.model.forward import norm_scale

    model = batch.engine.model
    resid_pre = batch.sites[2 * layer]
    reduced = resid_pre - batch.writer
    dots, total = batch.compose(layer, reduced, norm_scale(model, reduced), batch.writer[None])
    return dots[:, 0], resid_pre + total + model.blocks[layer].b_O
