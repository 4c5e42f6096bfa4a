"""Raw path shares made by hand, in the layout of the measure: quiet but for what a test plants."""

from __future__ import annotations

import numpy as np
import xarray as xr

from repro.labels import sites, step_of
from repro.measures.base import Context
from repro.measures.path_shares import PathShares
from repro.model.folder import Shape
from repro.scan.claims import Pairs, Thresholds, judge_pairs

DECOYS, PROMPTS, SAMPLED = 16, 20, 8


def quiet(n_layers: int = 3, n_heads: int = 2, n_prompts: int = PROMPTS, seed: int = 0) -> xr.Dataset:
    """Raw arrays in which nothing is erased: shares of a hundredth, every node present once from where it writes."""
    measure = PathShares(measure="path_shares", decoys=DECOYS)
    layout = measure.layout(Context(Shape(n_layers, n_heads, n_heads, 8, 4, 16, 64, 50), n_prompts, 64))
    generator = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for v in layout.variables:
        arrays[v.name] = np.zeros(layout.shape(v))
        if v.name in ("path", "clean"):
            shape = layout.shape(v)
            arrays[v.name] = 0.008 * generator.standard_normal((*shape[:-1], 1))
            arrays[v.name] = arrays[v.name] + 0.002 * generator.standard_normal(shape)
    raw = xr.Dataset(
        {v.name: (v.dims, arrays[v.name]) for v in layout.variables},
        {dim: list(labels) for dim, labels in layout.coords.items()},
    )
    for writer in map(str, raw.node.values):
        for component in map(str, raw.component.values):
            if step_of(writer) >= step_of(component):
                raw["path"].loc[{"writer": writer, "component": component}] = np.nan
                raw["clean"].loc[{"writer": writer, "component": component}] = np.nan
        written = [site for i, site in enumerate(map(str, raw.site.values)) if i >= step_of(writer)]
        raw["presence"].loc[{"node": writer, "site": written}] = 1.0
    raw["norm2"][:], raw["norm4"][:] = SAMPLED, SAMPLED
    raw.attrs["positions_sampled"] = SAMPLED
    return raw


def erase(raw: xr.Dataset, writer: str, component: str, share: float, clean: float | None = None) -> None:
    """Let a component take a share of a writer back, in every prompt: presence falls by what its clean share is."""
    clean = share if clean is None else clean
    raw["path"].loc[{"writer": writer, "component": component}] += share
    raw["clean"].loc[{"writer": writer, "component": component}] += clean
    n_layers = raw.sizes["site"] // 2
    raw["presence"].loc[{"node": writer, "site": sites(n_layers)[step_of(component) :]}] += clean


def judged(raw: xr.Dataset, t: Thresholds | None = None) -> Pairs:
    """The pairs of the stratum `rest`."""
    rest = raw.sel(stratum="rest")
    writers, components = (list(map(str, raw[dim].values)) for dim in ("writer", "component"))
    return judge_pairs(rest["path"].values, rest["clean"].values, writers, components, t or Thresholds())


def claims(pairs: Pairs) -> list[tuple[str, str]]:
    """The pairs that meet the conditions 1 to 3."""
    return [(pairs.writers[w], pairs.components[c]) for w, c in np.argwhere(pairs.claimed)]
