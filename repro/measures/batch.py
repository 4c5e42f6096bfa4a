"""A few prompts on their way through the model: what several measures read is computed once, and then forgotten."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from repro.errors import Exit, ReproError
from repro.kernels.layout import aligned
from repro.kernels.select import Kernels
from repro.labels import head_index, is_head, is_node, layer_of
from repro.measures.directions import Directions
from repro.measures.roles import Roles
from repro.model.attention import is_plain, mixed
from repro.model.decoder import Attention, Model
from repro.model.forward import Trace, normed, post_gain, read_scale, trace
from repro.model.paths import centred

HEADS_TOGETHER = 32
"""Heads that sites are projected on in one call: their outputs at a few positions still fit the cache."""


@dataclass(frozen=True)
class Engine:
    """The model and the kernels that every measure uses."""

    model: Model
    kernels: Kernels

    def __post_init__(self) -> None:
        """Lay W_U out once as Triton's kernels read it fastest."""
        if getattr(self.kernels, "name", "") == "triton":
            object.__setattr__(self, "model", replace(self.model, W_U=aligned(self.model.W_U)))

    def unembedding_rows(self, tokens: Tensor) -> Tensor:
        """Return the columns of W_U for token ids, as rows: [..., D].

        Raises ReproError (exit 1) for a token that the model reads but never predicts (d_vocab_out < d_vocab).
        """
        predicted = self.model.W_U.shape[1]
        if predicted < self.model.W_E.shape[0] and (tokens >= predicted).any():
            raise ReproError(
                f"token id {int(tokens.max())} has no logit: the model predicts only the first {predicted} tokens "
                "(d_vocab_out in config.json); direct logit attribution needs tokens that it predicts",
                Exit.FAILED,
            )
        return self.model.W_U.T[tokens]

    def top2(self, final: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and ids [..., 2] of the two top predictions of last sites [..., D].

        Where a logit is NaN its value is NaN and its id is a token that means nothing: `top2_difference` is NaN there.
        """
        flat = normed(self.model, final).flatten(0, -2)
        values, ids, _ = self.kernels.top2_logits(flat, self.model.W_U, self.model.b_U, None)
        return values.view(*final.shape[:-1], 2), ids.view(*final.shape[:-1], 2)

    def top2_difference(self, values: Tensor, ids: Tensor) -> Tensor:
        """Return u = W_U[:, first] - W_U[:, second] for values and ids [..., 2]; NaN where one of the values is.

        Results hold how many of their numbers are NaN, and so count these positions.
        Agreement: tests/measures/test_batches.py.
        """
        u = self.unembedding_rows(ids[..., 0]) - self.unembedding_rows(ids[..., 1])
        return u.masked_fill_(values.isnan().any(-1, keepdim=True), torch.nan)

    def direction(self, u: Tensor, scale_final: Tensor) -> Tensor:
        """Return the vector d with <v, d> = DLA(v): (u - mean(u)) / scale_f for LayerNorm, u / scale_f for RMSNorm.

        DLA(v)[t] = <(v[t] - mean(v[t])) / scale_f[t], u[t]>; moving the mean to u changes nothing. u [..., D],
        scale_final [...]. Returns [..., D], logits per unit of activation. Agreement: tests/measures/test_measures.py.
        """
        return centred(self.model, u) / scale_final[..., None]


class Batch:
    """One micro-batch of prompts, tokens [B, P], with everything measures share, each computed at most once."""

    def __init__(self, engine: Engine, tokens: Tensor, first_prompt: int, roles: Roles, requested: Directions) -> None:
        self.engine = engine
        self.tokens = tokens
        self.first_prompt = first_prompt
        self.roles = roles
        self.requested = requested
        self._composed: dict[int, tuple[Tensor, Tensor]] = {}

    @cached_property
    def trace(self) -> Trace:
        """Run the clean pass, with the wanted directions in the slots behind the sites."""
        return trace(self.engine.model, self.tokens, slots=len(self.requested.directions))

    @cached_property
    def unfit(self) -> list[int]:
        """Return the rows of prompts whose own activations are not finite, and set them to zero in the trace.

        What is NaN or infinite anywhere in the stream stays so until the last site. Zeros, because a kernel that met
        NaN might answer with anything, such as a token id that does not exist.
        """
        # A sum shows that something is not finite, at a fortieth of the time of asking every value.
        if torch.isfinite(self.trace.final.sum()):
            return []
        bad = ~torch.isfinite(self.trace.final).flatten(1).all(1)
        self.trace.sites[:, bad] = 0
        for out in (*self.trace.mlp_out, *(part for seen in self.trace.attention for part in vars(seen).values())):
            out[bad] = 0
        return bad.nonzero().flatten().tolist()

    @property
    def sites(self) -> Tensor:
        """Return the 2L+1 sites: [S, B, P, D]."""
        return self.trace.sites[: 2 * self.engine.model.shape.n_layers + 1]

    def node(self, label: str) -> Tensor:
        """Return what a head or an MLP wrote: [B, P, D]."""
        layer = layer_of(label)
        if not is_head(label):
            return self.trace.mlp_out[layer]
        head = head_index(label)[1]
        return self.trace.attention[layer].z[:, :, head] @ self.engine.model.blocks[layer].W_O[head]

    @cached_property
    def writer(self) -> Tensor:
        """Return h_w, what the writer wrote: [B, P, D]."""
        assert self.roles.writer
        return self.node(self.roles.writer)

    @cached_property
    def writer_norm2(self) -> Tensor:
        """Return |h_w|²: [B, P]; NaN where the writer wrote nothing, as ratios are undefined there."""
        return norm2_or_nan(self.writer)

    def _vector(self, name: str) -> Tensor:
        """Return one direction at every position, [B, P, D]: `writer`, any node, or the DLA direction of a target."""
        if name == "writer":
            return self.writer
        if is_node(name):
            return self.node(name)
        if name == "top2":
            u = self.engine.top2_difference(*self.engine.top2(self.trace.final))
        else:
            following = torch.roll(self.tokens, -1, dims=1)
            following[:, -1] = 0  # there is none, and what was rolled there need not have a logit
            u = self.engine.unembedding_rows(following)
            u[:, -1] = torch.nan
        return self.engine.direction(u, self.trace.scale_final)

    @cached_property
    def directions(self) -> Tensor:
        """Return the wanted directions, in their slots behind the sites: [N, B, P, D]."""
        behind = self.trace.sites[2 * self.engine.model.shape.n_layers + 1 :]
        for slot, name in enumerate(self.requested.directions):
            behind[slot] = self._vector(name)
        return behind

    def direction(self, name: str) -> Tensor:
        """Return one of the wanted directions: [B, P, D]."""
        return self.directions[self.requested.directions.index(name)]

    def _components(self) -> Tensor:
        """Return what is projected: the sites, if they are wanted, and the directions, filled in."""
        directions = self.directions
        return self.trace.sites if self.requested.sites_on_nodes else directions

    @cached_property
    def _inner(self) -> list[tuple[Tensor, Tensor]]:
        """Project sites and directions on every head, layer by layer: (num [S + N, H, B, P], norm2 [H, B, P]).

        Layers go together while their heads are few, so that the sites are read once for all of them.
        """
        of, blocks, H = self._components(), self.engine.model.blocks, self.engine.model.shape.n_heads
        together = max(HEADS_TOGETHER // H, 1)
        found: list[tuple[Tensor, Tensor]] = []
        for first in range(0, len(blocks), together):
            W_O = torch.cat([block.W_O for block in blocks[first : first + together]])
            z = self.trace.z[:, :, first * H : first * H + len(W_O)]
            num, norm2 = self.engine.kernels.projection(z, W_O, of)
            found += zip(num.split(H, 1), norm2.split(H), strict=True)
        return found

    @cached_property
    def _inner_mlp(self) -> tuple[Tensor, Tensor]:
        """Project sites and directions on the MLPs of all layers: num [S + N, L, B, P], norm2 [L, B, P]."""
        return self.engine.kernels.projection_onto_vectors(torch.stack(self.trace.mlp_out), self._components())

    def projected(self, label: str) -> tuple[Tensor, Tensor]:
        """Return <., node> of sites, if they are wanted, and directions, and |node|²: [S + N, B, P], [B, P]."""
        layer = layer_of(label)
        if not is_head(label):
            num, norm2 = self._inner_mlp
            return num[:, layer], norm2[layer]
        head = head_index(label)[1]
        num, norm2 = self._inner[layer]
        return num[:, head], norm2[head]

    def sites_on(self, label: str) -> Tensor:
        """Return PR(site, node) of every site on a head or an MLP: [S, B, P], NaN where that wrote nothing."""
        node = self.node(label)
        return torch.einsum("sbpd,bpd->sbp", self.sites, node) / norm2_or_nan(node)

    @cached_property
    def sites_on_writer(self) -> Tensor:
        """Return PR(site, writer): [S, B, P]."""
        if not self.requested.sites_on_nodes:
            return self.sites_on(self.roles.writer)
        return self.projected(self.roles.writer)[0][: len(self.sites)] / self.writer_norm2

    def node_on(self, name: str, label: str) -> Tensor:
        """Return <node, direction> for any head or MLP: [B, P]."""
        sites = len(self.sites) if self.requested.sites_on_nodes else 0
        return self.projected(label)[0][sites + self.requested.directions.index(name)]

    def scale(self, layer: int) -> Tensor:
        """Return the clean norm scale at the input of a layer's attention: [B, P]."""
        return read_scale(self.engine.model, self.sites[2 * layer])

    def composition(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the writer's V-composition with every head of a later layer.

        Returns <vcomp_h, direction> [H, N, B, P] for the wanted directions and sum_h vcomp_h [B, P, D].
        """
        if layer not in self._composed:
            self._composed[layer] = self.compose(layer, self.writer, self.scale(layer), self.directions)
        return self._composed[layer]

    def compose(
        self,
        layer: int,
        source: Tensor,
        scale: Tensor,
        onto: Tensor,
        seen: Attention | None = None,
        own_gain: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return sum_i A[t,i] (source[i] - mean)/scale[i] W_V W_O: dots per head [H, N, B, P], the sum [B, P, D].

        seen: whose queries and keys make the pattern A; the clean run's if nothing is given. Where a norm follows
        attention, its scale at t is the clean run's, or with `own_gain` that of this sum.
        """
        model, block, clean = self.engine.model, self.engine.model.blocks[layer], self.trace.attention[layer]
        seen = seen or clean
        if is_plain(model, layer, source.shape[1]):
            found = self.engine.kernels.v_composition(
                seen.q,
                seen.k,
                source[None],
                scale,
                block.W_V,
                block.W_O,
                onto,
                center=model.center,
                total=True,
                softmax_scale=model.softmax_scale,
            )
            assert found[0] is not None
            assert found[1] is not None
            dots, total = found[0][0], found[1][0]
        else:  # a pattern that the kernel does not make
            values = torch.einsum("bpd,gdk->bpgk", centred(model, source) / scale[..., None], block.W_V)
            z = mixed(model, layer, seen.q, seen.k, values)
            num, _ = self.engine.kernels.projection(z, block.W_O, onto)
            dots, total = num.transpose(0, 1), z.flatten(2) @ block.W_O.flatten(0, 1)
        if block.attn_post is None:
            return dots, total
        gain = post_gain(model, total, block.attn_post) if own_gain else clean.gain
        return dots * gain, total * gain[..., None]


def with_positional(model: Model, values: Tensor, axis: int) -> Tensor:
    """Return values by node with NaN for the positional embedding, the second node, where the model has none."""
    if model.W_pos is not None:
        return values
    first, others = values.split((1, values.shape[axis] - 1), axis)
    return torch.cat((first, torch.full_like(first, torch.nan), others), axis)


def norm2_or_nan(x: Tensor) -> Tensor:
    """Return |x|² over the last dimension; NaN where it is 0, as ratios onto nothing are undefined."""
    return nan_at_zero(x.square().sum(-1))


def nan_at_zero(norm2: Tensor) -> Tensor:
    """Return squared norms with NaN in the place of 0."""
    return torch.where(norm2 > 0, norm2, torch.nan)
