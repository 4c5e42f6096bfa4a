"""Measures: from a batch of prompts on its way through the model to labelled numbers per (prompt, position)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from repro.declare import Context
from repro.measures import dla, patch, projection, resampled
from repro.spec import (
    Common,
    DLAScatter,
    FindErasers,
    FindWriter,
    MineExamples,
    Projection,
    ResampledDLA,
    VPatch,
)
from repro.stream import Batch, Engine

Arrays = dict[str, Tensor]


@dataclass(frozen=True)
class Bound:
    """An experiment bound to a model: what is computed once, before the pass, and then for each batch."""

    experiment: Any
    context: Context
    once: dict[str, Any] = field(default_factory=dict)

    def compute(self, batch: Batch) -> Arrays:
        """The raw arrays of one batch, dimensions as declared."""
        return _COMPUTE[type(self.experiment)](self, batch)


def bind(experiment: Common, context: Context, engine: Engine) -> Bound:
    """The experiment, with what it needs to know of the model before any prompt is seen."""
    if isinstance(experiment, ResampledDLA):
        return Bound(experiment, context, resampled.prepare(context, engine))
    return Bound(experiment, context)


_COMPUTE: dict[type[Common], Callable[[Any, Batch], Arrays]] = {
    Projection: projection.compute,
    FindWriter: projection.compute_writer,
    FindErasers: projection.compute_erasers,
    VPatch: patch.compute,
    ResampledDLA: resampled.compute,
    DLAScatter: dla.compute_scatter,
    MineExamples: dla.compute_candidates,
}
