"""How much of what each node writes every later head and MLP takes back, with decoys beside it: what a scan reads.

Per prompt and stratum of positions, each a ratio of sums over positions, so that small norms do not rule:

    path share  p = sum <path_{w->c}, h_w> / sum |h_w|²      clean share  k = sum <c, h_w> / sum |h_w|²
    presence        sum <site, h_w> / sum |h_w|²

`path_{w->c}` is what c writes because it reads w (repro/model/paths.py). The strata are position 0, which attends to
itself alone, and the rest. A decoy is a node's output turned by a fixed random rotation: what trained components do to
any direction shows there. `held` are the same inner products with the mean of other prompts at the same position in the
place of c's own site: what of the presence is the same in every prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from repro.labels import heads_of, writers
from repro.measures.base import Context, Decode, Measure, Prepared
from repro.measures.statistics import QUANTILE_LABELS
from repro.store.excluded import ValidPrompts
from repro.store.layout import Layout, Variable

if TYPE_CHECKING:
    from torch import Tensor

    from repro.measures.batch import Batch, Engine
    from repro.model.paths import Written

STRATA = ("first", "rest")
REFERENCES = 8
"""Prompts whose mean stands for what is the same in every prompt; a prompt's own part is taken out of it."""


class PathShares(Measure):
    """Path shares, clean shares and presence of every node, beside decoys: what `scan` judges."""

    version: ClassVar[int] = 2

    measure: Literal["path_shares"]
    stride: int = Field(default=16, ge=1)
    """Destination positions that are looked at: 0, then every stride-th from 1 on. Sources are all positions."""
    decoys: int = Field(default=64, ge=8)
    """Decoy writers for each component."""
    seed: int = Field(default=0, ge=0)
    """Seed of the decoys' rotations."""
    answers = True
    finds: ClassVar[tuple[str, ...]] = ("writer", "erasers")

    @property
    def needs(self) -> frozenset[str]:
        """Return no role: it is what roles are found from."""
        return frozenset()

    def components(self, context: Context) -> list[str]:
        """Return the later components whose paths are wanted: all heads and MLPs."""
        return context.nodes

    def layout(self, context: Context) -> Layout:
        """Declare the shares of all pairs, decoys included, and the presence of every node at every site."""
        nodes = writers(context.shape.n_layers, context.shape.n_heads, positional=True)
        coords = {
            "stratum": list(STRATA),
            "writer": [*nodes, *(f"decoy{i}" for i in range(self.decoys))],
            "component": self.components(context),
            "node": nodes,
            "site": context.sites,
        }
        pair, seen = ("stratum", "writer", "component", "prompt"), ("stratum", "node", "site", "prompt")
        own = ("stratum", "node", "prompt")
        variables = (
            Variable("path", pair, "float32", "1", "path share"),
            Variable("clean", pair, "float32", "1", "clean share"),
            Variable("presence", seen, "float32", "1", "presence"),
            Variable("held", seen, "float32", "1", "presence of what other prompts hold at the same position"),
            Variable("held_self", own, "float32", "1", "share of a node's output that is the same in other prompts"),
            Variable("norm2", own, "float32", "activation squared", "sum of the squared norm over sampled positions"),
            Variable("norm4", own, "float32", "activation^4", "sum of its square"),
        )
        return Layout(variables, coords, {"prompt": context.n_prompts})

    def extra_flop(self, context: Context) -> float:
        """Return the FLOP of the paths: values at all positions, patterns and hidden units at the sampled ones."""
        s, T = context.shape, context.n_positions / self.stride + 1
        total = 0.0
        wanted = self.components(context)
        for layer in range(s.n_layers):
            # Decoys are heads and MLPs in the proportion in which the model has them.
            made_of_mlps = self.decoys / (s.n_heads + 1)
            vectors, heads = layer + 2 + made_of_mlps, layer * s.n_heads + self.decoys - made_of_mlps
            if not set(heads_of(layer, s.n_heads)).isdisjoint(wanted):
                total += 2 * context.n_positions * s.n_kv_heads * s.d_head * (vectors * s.d_model + heads * s.d_head)
                total += 2 * T * (vectors + heads) * s.n_heads * s.d_head * (context.n_positions + s.d_model)
            if f"MLP{layer}" in wanted:
                total += 4 * T * (vectors + heads + s.n_heads) * s.d_model * s.d_mlp
        return context.n_prompts * total

    def prepare(self, context: Context, engine: Engine, tokens: np.ndarray) -> dict[str, Any]:
        """Make the decoys, and the sum over the first prompts of what every node and site is at sampled positions."""
        import torch

        from repro.model.forward import trace
        from repro.model.paths import make_decoys, sampled, written

        model, sites = engine.model, 2 * context.shape.n_layers + 1
        positions = sampled(context.n_positions, self.stride)
        total, used = None, []
        for prompt in range(min(REFERENCES, context.n_prompts)):
            row = torch.from_numpy(tokens[prompt : prompt + 1].astype(np.int64)).to(model.W_E.device)
            run = trace(model, row[:, : context.n_positions])
            if torch.isfinite(run.final.sum()):
                part = torch.cat((written(model, run, row, 0, positions).at, run.sites[:sites, 0, positions]))
                total = part if total is None else total + part
                used.append(prompt)
        return {"positions": positions, "decoys": make_decoys(model, self.decoys, self.seed), "sum": total, "of": used}

    def compute(self, context: Context, prepared: Prepared, batch: Batch) -> dict[str, Tensor]:
        """Return the arrays of the layout for one batch, prompt by prompt."""
        import torch

        from repro.measures.batch import with_positional
        from repro.model.paths import path_dots, strata, written

        model, positions = batch.engine.model, prepared["positions"]
        unfit, wanted = set(batch.unfit), self.components(context)
        found: dict[str, list[Tensor]] = {}
        for row in range(len(batch.tokens)):
            nodes = written(model, batch.trace, batch.tokens, row, positions)
            dots = path_dots(model, batch.trace, nodes, row, positions, prepared["decoys"], frozenset(wanted))
            columns = [nodes.labels.index(label) for label in wanted]
            path, clean = (part[:, :, columns] for part in (dots.path / dots.norm2, dots.clean / dots.norm2))
            own = nodes.at.square().sum(-1)
            norm2 = strata(own)
            sites = batch.sites[:, row, positions]
            seen = strata(torch.einsum("ntd,std->nst", nodes.at, sites)) / norm2[..., None]
            alone = None if row in unfit else self._others(prepared, batch.first_prompt + row, nodes, sites)
            held = torch.full_like(seen, torch.nan)
            held_self = torch.full_like(norm2, torch.nan)
            if alone is not None:
                there, site_there = alone[: len(nodes.labels)], alone[len(nodes.labels) :]
                held = strata(torch.einsum("ntd,std->nst", nodes.at, site_there)) / norm2[..., None]
                held_self = strata((nodes.at * there).sum(-1)) / norm2
            values = {
                "path": path,
                "clean": clean,
                "presence": seen,
                "held": held,
                "held_self": held_self,
                "norm2": norm2,
                "norm4": strata(own.square()),
            }
            for name, value in values.items():
                found.setdefault(name, []).append(with_positional(model, value, 1))
        return {name: torch.stack(parts, -1) for name, parts in found.items()}

    def _others(self, prepared: Prepared, prompt: int, nodes: Written, sites: Tensor) -> Tensor | None:
        """Return the mean over the reference prompts but this one; None where no other is there."""
        import torch

        total, count = prepared["sum"], len(prepared["of"])
        if prompt in prepared["of"]:
            total, count = total - torch.cat((nodes.at, sites)), count - 1
        return None if count < 1 else total / count

    def reduce(self, context: Context, raw: ValidPrompts, prepared: Prepared, decode: Decode) -> xr.Dataset:
        """Return median and quartiles over prompts of the shares and of the presence."""
        variables: dict[str, tuple[Any, Any]] = {}
        for name in ("path", "clean", "presence"):
            declared = raw.layout.variable(name)
            blocks = np.empty((3, *raw.layout.shape(declared)[:-1]), np.float32)
            for block, values in raw.iter_blocks(name):
                index = tuple(block[dim] for dim in declared.dims[:-1])
                blocks[(slice(None), *index)] = np.quantile(values, (0.25, 0.5, 0.75), axis=-1)
            variables[name] = (("quantile", *declared.dims[:-1]), blocks)
        coords: dict[str, Any] = {dim: list(labels) for dim, labels in raw.layout.coords.items()}
        dataset = xr.Dataset(variables, coords | {"quantile": list(QUANTILE_LABELS)})
        dataset.attrs["positions_sampled"] = len(range(1, context.n_positions, self.stride))
        return dataset
