"""DLA of the writer against DLA of its erasers, at every position.

    DLA(v)[t] = <(v[t] - mean(v[t])) / scale_f[t], u[t]>,   u[t] = W_U[:, x[t]] - W_U[:, y[t]]

with the clean run's final norm scale. Linear in v: the DLAs of all summands of the stream add up to the logit
difference less that of the unembedding's bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import xarray as xr

from repro.labels import head_index
from repro.measures.base import Context, Decode, Prepared, Windowed, labelled, sizes
from repro.measures.directions import Directions
from repro.measures.roles import eraser_rows
from repro.measures.statistics import density, density_on, fit_line
from repro.store.excluded import ValidPrompts
from repro.store.layout import Layout, Variable

if TYPE_CHECKING:
    from torch import Tensor

    from repro.measures.batch import Batch


class DLAScatter(Windowed):
    """DLA of the writer against DLA of the erasers, whole output and V-composition, at every position."""

    measure: Literal["dla_scatter"]
    target: Literal["top2", "next_token"] = "top2"
    """The logit read: difference of the two first predictions, or the logit of the actual next token."""
    v_composition: Literal["attention", "same_position"] = "attention"
    """Sum over source positions weighted by the clean pattern, or the same position without any pattern."""

    @property
    def asks(self) -> Directions:
        """Return the request for all nodes on the direction of the target."""
        return Directions(directions=(self.target,))

    def layout(self, context: Context) -> Layout:
        """Declare `writer_dla`, and `answer_dla` by what the erasers are taken as."""
        self.check_window(context)
        variables = (
            Variable("writer_dla", ("prompt", "position"), "float32", "logits", "DLA of the writer"),
            Variable(
                "answer_dla", ("against", "prompt", "position"), "float32", "logits", "DLA of the erasers' answer"
            ),
        )
        return Layout(variables, {"against": ["output", "v_composition"]}, sizes(context))

    def extra_flop(self, context: Context) -> float:
        """Return the unembedding at every position."""
        return 2.0 * context.n_prompts * context.n_positions * context.shape.d_model * context.shape.d_vocab

    def compute(self, context: Context, prepared: Prepared, batch: Batch) -> dict[str, Tensor]:
        """Compute the DLA of the writer [B, P], and of the erasers: output and V-composition [against, B, P]."""
        import torch

        roles = batch.roles
        erasers = eraser_rows(roles)
        layer, head = head_index(roles.writer)
        output = batch.heads_on(self.target, roles.layer)[erasers].sum(0)
        if self.v_composition == "attention":
            slot = batch.requested.directions.index(self.target)
            composed = batch.composition(roles.layer)[0][erasers, slot].sum(0)
        else:
            composed = _same_position(batch, self.target)
        return {
            "writer_dla": batch.heads_on(self.target, layer)[head],
            "answer_dla": torch.stack((output, composed)),
        }

    def reduce(self, context: Context, raw: ValidPrompts, prepared: Prepared, decode: Decode) -> xr.Dataset:
        """Fit and density of the points, and the points themselves."""
        writer, answers = raw.read("writer_dla")[:, self.window], raw.read("answer_dla")[..., self.window]
        lines = [fit_line(writer, answer) for answer in answers]
        _, x_edges, y_edges = density(np.concatenate([writer.ravel()] * len(answers)), answers.ravel())
        counts = [density_on(writer, answer, x_edges, y_edges) for answer in answers]
        against = "against"
        dataset = labelled(
            raw,
            {
                "pearson_r": (against, np.array([line.r for line in lines])),
                "slope": (against, np.array([line.slope for line in lines])),
                "intercept": (against, np.array([line.intercept for line in lines])),
                "n_points": (against, np.array([line.n for line in lines])),
                "density": ((against, "y_bin", "x_bin"), np.stack(counts).astype(np.int64)),
                "writer_dla": (("prompt", "position"), writer),
                "answer_dla": ((against, "prompt", "position"), answers),
            },
        )
        dataset.attrs.update(x_edges=x_edges.tolist(), y_edges=y_edges.tolist())
        return dataset.assign_coords(x=("x_bin", _centres(x_edges)), y=("y_bin", _centres(y_edges)))

    @staticmethod
    def headlines(dataset: xr.Dataset) -> dict[str, float]:
        """Return correlation, slope, intercept and number of points, against output and V-composition."""
        return {
            f"{fit} against {against}": float(dataset[fit].sel(against=against))
            for against in dataset["against"].values
            for fit in ("pearson_r", "slope", "intercept", "n_points")
        }


def _same_position(batch: Batch, target: str) -> Tensor:
    """Return <sum over erasers of LN(h_w)[t] W_V W_O, direction>[t]: source is destination, no pattern."""
    import torch

    model, layer = batch.engine.model, batch.roles.layer
    block, shape = model.blocks[layer], model.shape
    source = batch.writer - batch.writer.mean(-1, keepdim=True) if model.center else batch.writer
    source = source / batch.scale(layer)[..., None]
    total = torch.zeros_like(source)
    for row in eraser_rows(batch.roles):
        total += source @ block.W_V[row * shape.n_kv_heads // shape.n_heads] @ block.W_O[row]
    return (total * batch.direction(target)).sum(-1)


def _centres(edges: np.ndarray) -> np.ndarray:
    return (edges[1:] + edges[:-1]) / 2
