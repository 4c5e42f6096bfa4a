"""A scan in memory: of models that are made, looked at and forgotten, such as untrained twins."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr

from repro.kernels.select import provider
from repro.measures.base import Context
from repro.measures.batch import Batch, Engine
from repro.measures.directions import Directions
from repro.measures.path_shares import PathShares
from repro.measures.roles import Roles
from repro.model.decoder import Model
from repro.scan.verdict import Scan, scan

TOGETHER = 4
"""Prompts that go through the model together."""


def batches(tokens: np.ndarray) -> int:
    """Return in how many batches prompts go through a model."""
    return -(-len(tokens) // TOGETHER)


def measured(
    model: Model,
    tokens: np.ndarray,
    measure: PathShares,
    advance: Callable[[], None] = lambda: None,
    *,
    roles: Roles = Roles(),  # noqa: B008 (frozen)
) -> xr.Dataset:
    """Return the raw arrays of a measure of path shares over all prompts [prompt, position], in memory.

    advance: called after each of the `batches`; roles: for a measure that looks through named erasers alone.
    """
    n_prompts, n_positions = tokens.shape
    context = Context(model.shape, n_prompts, n_positions, roles)
    engine = Engine(model, provider("torch", str(model.W_E.device)))
    parts: dict[str, list[np.ndarray]] = {}
    with torch.inference_mode():
        prepared = measure.prepare(context, engine, tokens)
        for first in range(0, len(tokens), TOGETHER):
            rows = torch.from_numpy(tokens[first : first + TOGETHER].astype(np.int64)).to(model.W_E.device)
            batch = Batch(engine, rows, first, roles, Directions())
            for name, values in measure.compute(context, prepared, batch).items():
                parts.setdefault(name, []).append(values.cpu().numpy())
            advance()
    layout = measure.layout(context)
    variables = {v.name: (v.dims, np.concatenate(parts[v.name], v.dims.index("prompt"))) for v in layout.variables}
    raw = xr.Dataset(variables, {dim: list(labels) for dim, labels in layout.coords.items()})
    raw.attrs["positions_sampled"] = len(range(1, context.n_positions, measure.stride))
    return raw


def examine(model: Model, tokens: np.ndarray, measure: PathShares, advance: Callable[[], None] = lambda: None) -> Scan:
    """Return the scan of a model that is in memory, of all positions but the first; nothing is stored.

    tokens: [prompt, position]; advance: as for `measured`. It has no intervals. Agreement: tests/scan/test_controls.py.
    """
    return scan(measured(model, tokens, measure, advance), draws=0)
