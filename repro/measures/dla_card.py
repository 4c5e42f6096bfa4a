"""How far direct logit attribution lies, writer by writer: DLA, what is taken back, net effects, and the total effect.

On the pair of the model's two first predictions at some positions of every prompt, in logits:

    DLA(v)[t] = <LN_f(v)[t], W_U[:, x] - W_U[:, y]>          DLA(path_{w->c}) of every later component c
    net effect through all paths, held, halves and gradient (repro/model/net_effect.py)
    total effect: the logit difference less that of a run in which w writes zero, its mean over the other prompts at
    every position, or what it wrote in another prompt, with everything after it computed anew

Writers are named, or the subject's and those with the largest mean |DLA|; net effects are of all nodes, which cost
nothing more. Statistics: repro/measures/card.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import xarray as xr
from pydantic import Field

from repro.errors import ReproError, did_you_mean, listing
from repro.labels import is_head, writers
from repro.measures.base import Context, Decode, Measure, Prepared
from repro.measures.card import ABLATIONS, ATTRIBUTIONS, FORMS, card
from repro.store.excluded import ValidPrompts
from repro.store.layout import Layout, Variable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from repro.measures.batch import Batch, Engine

_LOGITS = ("float32", "logits")


class DLACard(Measure):
    """DLA of writers beside what is taken back of it, net effects and the total effect of ablation."""

    version: ClassVar[int] = 2

    measure: Literal["dla_card"]
    writers: Literal["largest", "heads", "nodes"] | tuple[str, ...] = "largest"
    """Those with the largest mean |DLA| and the subject's writer; all heads; all heads and MLPs; or labels."""
    count: int = Field(default=20, gt=0)
    """How many have the largest mean |DLA|, where they are asked for."""
    targets: int = Field(default=32, gt=0)
    """Positions of every prompt at which the logit difference is attributed, evenly spread; never the first one."""
    tokens: int | None = Field(default=None, gt=1)
    """Only the first so many tokens of every prompt; nothing: all."""

    @property
    def needs(self) -> frozenset[str]:
        """Return the writer and its erasers, if the subject's writer is among those looked at."""
        return frozenset({"writer", "erasers"} if self.writers == "largest" else ())

    def length(self, context: Context) -> int:
        """Return how many tokens per prompt are read."""
        return context.n_positions if self.tokens is None else min(self.tokens, context.n_positions)

    def positions(self, context: Context) -> list[int]:
        """Return the target positions: the middles of equal parts of all positions but the first."""
        length = self.length(context) - 1
        count = min(self.targets, length)
        return [1 + int((i + 0.5) * length / count) for i in range(count)]

    def layout(self, context: Context) -> Layout:
        """Declare all arrays. Raise ReproError (exit 2) for a writer that the model does not have."""
        nodes = writers(context.shape.n_layers, context.shape.n_heads, positional=True)
        if not isinstance(self.writers, str):
            if not self.writers or len(set(self.writers)) < len(self.writers):
                raise ReproError("writers: at least one label, each once")
            for label in self.writers:
                if label not in nodes:
                    hint = did_you_mean(label, nodes)
                    raise ReproError(f"writers: the model has no node {label!r}.{hint} Its nodes: {listing(nodes, 8)}")
        coords = {
            "node": nodes,
            "slot": [f"writer{i}" for i in range(self._slots(context))],
            "component": context.nodes,
            "target": [str(position) for position in self.positions(context)],
            "form": list(FORMS),
            "ablation": list(ABLATIONS),
        }
        at, pair = ("target", "prompt"), ("slot", "component", "prompt")
        variables = (
            Variable("chosen", ("slot", "prompt"), "int32", "1", "index of the writer among the nodes"),
            Variable("logit_diff", at, *_LOGITS, "logit of the first prediction minus that of the second"),
            Variable("dla", ("node", *at), *_LOGITS, "direct logit attribution"),
            Variable("net", ("form", "node", *at), *_LOGITS, "net effect through all paths"),
            Variable("rest", ("form", *at), *_LOGITS, "what biases and constants add to the logit difference"),
            Variable("path_dla", (*pair[:2], *at), *_LOGITS, "DLA of a component's path from the writer"),
            Variable("path_share", pair, "float32", "1", "path share at the targets"),
            Variable("clean_share", pair, "float32", "1", "clean share at the targets"),
            Variable("total", ("ablation", "slot", *at), *_LOGITS, "total effect of ablation"),
        )
        return Layout(variables, coords, {"prompt": context.n_prompts})

    def _slots(self, context: Context) -> int:
        heads = context.shape.n_layers * context.shape.n_heads
        every = heads + context.shape.n_layers
        if not isinstance(self.writers, str):
            return len(self.writers)
        return {"heads": heads, "nodes": every, "largest": min(self.count + 1, every)}[self.writers]

    def extra_flop(self, context: Context) -> float:
        """Return the passes backward, three a target over half the positions, and half a forward for each ablation."""
        length = self.length(context)
        forward = length * context.shape.flop_per_token(length)
        backward = len(FORMS) * len(self.positions(context)) * forward / 2
        return context.n_prompts * (backward + len(ABLATIONS) * self._slots(context) * forward / 2)

    def prepare(self, context: Context, engine: Engine, tokens: np.ndarray) -> dict[str, Any]:
        """Choose the writers, and keep what each writes on average at every position.

        Returns `positions` [T], `tokens` [prompt, position], `of` (prompts whose activations are finite), `writers`
        (labels) and `means` by writer [P, D].
        """
        import torch

        from repro.measures.card_writers import look
        from repro.model.ablate import output_from

        ids = torch.from_numpy(tokens[: context.n_prompts, : self.length(context)].astype(np.int64))
        positions = torch.tensor(self.positions(context))
        seen = look(engine.model, ids.to(engine.model.W_E.device), positions)
        chosen = self._chosen(context, seen.size)
        means = {label: output_from(engine.model, label, seen.embed, seen.z, seen.mlps) for label in chosen}
        return {"positions": positions, "tokens": ids, "of": seen.of, "writers": chosen, "means": means}

    def _chosen(self, context: Context, size: Mapping[str, float]) -> list[str]:
        """Return the labels of the writers, in the order of their slots. size: mean |DLA| by node."""
        if not isinstance(self.writers, str):
            return list(self.writers)
        nodes = context.nodes
        if self.writers != "largest":
            return [label for label in nodes if self.writers == "nodes" or is_head(label)]
        ranked = sorted(nodes, key=lambda label: -size[label])
        first = [context.roles.writer] if context.roles.writer else []
        return [*first, *(label for label in ranked if label not in first)][: self._slots(context)]

    def compute(self, context: Context, prepared: Prepared, batch: Batch) -> dict[str, Tensor]:
        """Return the arrays of the layout for one batch, prompt by prompt."""
        import torch

        from repro.measures.batch import with_positional
        from repro.model.attributions import attributions, targets
        from repro.model.forward import logits

        model, positions = batch.engine.model, prepared["positions"]
        batch.unfit  # noqa: B018 - zeroes what is not finite
        whole = writers(context.shape.n_layers, context.shape.n_heads, positional=True)
        places = [whole.index(label) for label in prepared["writers"]]
        found: dict[str, list[Tensor]] = {}
        for row in range(len(batch.tokens)):
            pairs = logits(model, batch.trace.final[row, positions]).topk(2).indices
            at = targets(model, batch.trace, row, positions, pairs)
            instead = self._instead(prepared, batch, row)
            one = attributions(model, batch.trace, batch.tokens, row, at, prepared["writers"], instead)
            values = {**vars(one), "chosen": torch.tensor(places, dtype=torch.int32)}
            for name, axis in (("dla", 0), ("net", 1)):
                values[name] = with_positional(model, values[name], axis)
            for name, value in values.items():
                found.setdefault(name, []).append(value)
        return {name: torch.stack(parts, -1) for name, parts in found.items()}

    def _instead(self, prepared: Prepared, batch: Batch, row: int) -> dict[str, list[torch.Tensor | None]]:
        """Return what every writer writes in each ablation of one prompt of a batch: [P, D] each.

        Nothing; its mean over the other prompts; what it wrote in the next prompt, the first after the last. The mean
        does not hold the prompt's own activations: of n prompts they would leave an n-th of the writer in place.
        """
        import torch

        from repro.model.ablate import output_of
        from repro.model.forward import trace

        model, prompt = batch.engine.model, batch.first_prompt + row
        others = [other for other in prepared["of"] if other != prompt]
        if not others:
            zero = torch.zeros_like(batch.trace.final[0])
            return {label: [zero, None, None] for label in prepared["writers"]}
        other = next((other for other in others if other > prompt), others[0])
        ids = prepared["tokens"][other : other + 1].to(model.W_E.device)
        run, found = trace(model, ids), {}
        for label, mean in prepared["means"].items():
            if prompt in prepared["of"]:
                own = output_of(model, batch.trace, batch.tokens, row, label)
                mean = mean + (mean - own) / len(others)
            found[label] = [torch.zeros_like(mean), mean, output_of(model, run, ids, 0, label)]
        return found

    def reduce(self, context: Context, raw: ValidPrompts, prepared: Prepared, decode: Decode) -> xr.Dataset:
        """Return the card; erasers are the subject's where the scan or the spec says them, else told by shares."""
        values = {variable.name: raw.read(variable.name) for variable in raw.layout.variables}
        nodes = list(raw.layout.coords["node"])
        chosen = [nodes[index] for index in values["chosen"][:, 0]]
        roles = context.roles
        # The same whatever a scan has said since: a subject's own roles are what is asked about.
        meant = roles.source == "named" or roles.found
        claims = {roles.writer: roles.erasers} if roles.writer in chosen and meant else {}
        dataset = card(values, chosen, nodes, list(raw.layout.coords["component"]), claims)
        dataset = dataset.assign_coords(target=list(raw.layout.coords["target"]))
        dataset.attrs["logit_diff"] = float(np.abs(values["logit_diff"]).mean())
        return dataset

    @staticmethod
    def headlines(dataset: xr.Dataset) -> dict[str, float]:
        """Return the rank correlation of every attribution with zero ablation."""
        ranks = dataset["spearman"].sel(bound="estimate", ablation="zero", kind="all")
        return {
            f"{name}, rank correlation with zero ablation": float(ranks.sel(attribution=name)) for name in ATTRIBUTIONS
        }
