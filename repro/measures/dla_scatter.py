"""DLA of the writer against DLA of its erasers, at every position.

    DLA(v)[t] = <(v[t] - mean(v[t])) / scale_f[t], u[t]>,   u[t] = W_U[:, x[t]] - W_U[:, y[t]]

with the clean run's final norm scale. Linear in v: the DLAs of all summands of the stream add up to the logit
difference less that of the unembedding's bias. Of the erasers it is taken twice: of their whole output, and of their
paths, what they write because they read the writer: a head's V-composition, an MLP's path with its gates held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from repro.labels import is_head, layer_of
from repro.measures.base import Context, Decode, Prepared, Windowed, labelled, sizes
from repro.measures.directions import Directions
from repro.measures.roles import eraser_rows, refuse_parallel
from repro.measures.statistics import density, density_edges, fit_line
from repro.store.excluded import ValidPrompts
from repro.store.layout import Layout, Variable

if TYPE_CHECKING:
    from torch import Tensor

    from repro.measures.batch import Batch, Engine


class DLAScatter(Windowed):
    """DLA of the writer against DLA of the erasers, whole output and paths, at every position."""

    measure: Literal["dla_scatter"]
    target: Literal["top2", "next_token"] = "top2"
    """The logit read: difference of the two first predictions, or the logit of the actual next token."""
    v_composition: Literal["attention", "same_position"] = "attention"
    """Sum over source positions weighted by the clean pattern, or the same position without any pattern (of heads; an
    MLP reads its own position alone)."""

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

    def prepare(self, context: Context, engine: Engine, tokens: np.ndarray) -> dict[str, Any]:
        """Refuse an MLP that does not read the writer, which shows only on the model."""
        refuse_parallel(engine.model.parallel, context.roles)
        return {}

    def compute(self, context: Context, prepared: Prepared, batch: Batch) -> dict[str, Tensor]:
        """Compute the DLA of the writer [B, P], and of the erasers: output and paths [against, B, P]."""
        import torch

        roles = batch.roles
        output = torch.stack([batch.node_on(self.target, label) for label in roles.erasers]).sum(0)
        return {
            "writer_dla": batch.node_on(self.target, roles.writer),
            "answer_dla": torch.stack((output, self._paths(batch))),
        }

    def _paths(self, batch: Batch) -> Tensor:
        """Return the DLA of what the erasers write because they read the writer: [B, P]."""
        import torch

        from repro.model.paths import mlp_path_onto

        model, roles, onto = batch.engine.model, batch.roles, batch.direction(self.target)
        parts = []
        for layer in sorted({layer_of(label) for label in roles.erasers if is_head(label)}):
            if self.v_composition == "attention":
                slot = batch.requested.directions.index(self.target)
                parts.append(batch.composition(layer)[0][eraser_rows(roles, layer), slot].sum(0))
            else:
                parts.append(_same_position(batch, layer, onto))
        mlps = [layer_of(label) for label in roles.erasers if not is_head(label)]
        reads = [batch.sites[model.mlp_site(layer)] for layer in mlps]
        parts += [mlp_path_onto(model, mlp, read, batch.writer, onto) for mlp, read in zip(mlps, reads, strict=True)]
        return torch.stack(parts).sum(0)

    def reduce(self, context: Context, raw: ValidPrompts, prepared: Prepared, decode: Decode) -> xr.Dataset:
        """Fit and density of the points, and the points themselves."""
        writer, answers = raw.read("writer_dla")[:, self.window], raw.read("answer_dla")[..., self.window]
        lines = [fit_line(writer, answer) for answer in answers]
        x_edges, y_edges = density_edges(np.concatenate([writer.ravel()] * len(answers)), answers.ravel())
        counts = [density(writer, answer, x_edges, y_edges) for answer in answers]
        against = "against"
        dataset = labelled(
            raw,
            {
                "pearson_r": (against, np.array([line.r for line in lines])),
                "slope": (against, np.array([line.slope for line in lines])),
                "intercept": (against, np.array([line.intercept for line in lines])),
                "n_points": (against, np.array([line.n for line in lines])),
                "density": ((against, "y_bin", "x_bin"), np.stack(counts)),
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


def _same_position(batch: Batch, layer: int, onto: Tensor) -> Tensor:
    """Return <sum over a layer's erasers of LN(h_w)[t] W_V W_O, direction>[t]: source is destination, no pattern."""
    import torch

    from repro.model.paths import centred

    model = batch.engine.model
    block, shape = model.blocks[layer], model.shape
    source = centred(model, batch.writer) / batch.scale(layer)[..., None]
    total = torch.zeros_like(source)
    for row in eraser_rows(batch.roles, layer):
        total += source @ block.W_V[row * shape.n_kv_heads // shape.n_heads] @ block.W_O[row]
    return (total * onto).sum(-1) * batch.trace.attention[layer].gain


def _centres(edges: np.ndarray) -> np.ndarray:
    return (edges[1:] + edges[:-1]) / 2
