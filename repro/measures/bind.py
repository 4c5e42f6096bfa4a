"""Measures: from a batch of prompts on its way through the model to labelled numbers per (prompt, position)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from repro.measures import dla, patch, projection, resampled
from repro.measures.batch import Arrays, Batch, Bound, Engine
from repro.measures.declare import Context
from repro.spec.types import (
    Common,
    DLAScatter,
    FindErasers,
    FindWriter,
    MineExamples,
    Projection,
    ResampledDLA,
    VPatch,
)


def bind(experiment: Common, context: Context, engine: Engine) -> Bound:
    """The experiment, with what it needs to know of the model before any prompt is seen."""
    if isinstance(experiment, ResampledDLA):
        return Bound(experiment, context, _COMPUTE[type(experiment)], resampled.prepare(context, engine))
    return Bound(experiment, context, _COMPUTE[type(experiment)])


_COMPUTE: dict[type[Common], Callable[[Any, Batch], Arrays]] = {
    Projection: projection.compute,
    FindWriter: projection.compute_writer,
    FindErasers: projection.compute_erasers,
    VPatch: patch.compute,
    ResampledDLA: resampled.compute,
    DLAScatter: dla.compute_scatter,
    MineExamples: dla.compute_candidates,
}
