"""What a kernel is given when it is measured, and the least that any program must do for it: arguments, FLOP, bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repro.kernels.layout import aligned

Draw = Callable[..., Tensor]


@dataclass(frozen=True)
class Shape:
    """One model's dimensions, and how many prompts and positions of it are measured."""

    name: str
    model: str
    d_model: int
    heads: int
    groups: int
    """Key and value heads."""
    d_head: int
    sites: int
    """2 L + 1, for L layers."""
    vocab: int
    center: bool
    """Whether the norm subtracts the mean (LayerNorm) or not (RMSNorm)."""
    bias: bool
    """Whether the unembedding has a bias."""
    positions: int = 1024
    prompts: int = 1
    writers: int = 1
    directions: int = 2
    """Directions per position that V-composition is projected onto: the writer's output and one logit difference."""
    beside: int = 0
    """Directions that are projected beside the sites in the same call."""

    @property
    def rows(self) -> int:
        """Positions of all prompts."""
        return self.prompts * self.positions

    @property
    def layers(self) -> int:
        """Layers that lie between so many sites."""
        return (self.sites - 1) // 2

    @property
    def components(self) -> int:
        """What is projected on heads and vectors: sites, and directions beside them."""
        return self.sites + self.beside

    @property
    def nodes(self) -> int:
        """Heads and MLPs of all layers, the embedding and one sum of biases."""
        return self.layers * (self.heads + 1) + 2

    def label(self) -> str:
        """Return the dimensions on one line."""
        return (
            f"B {self.prompts} P {self.positions} H {self.heads}/{self.groups} K {self.d_head} D {self.d_model} "
            f"S {self.components} W {self.writers} N {self.directions} V {self.vocab}"
        )

    def sizes(self) -> dict[str, int]:
        """Return the dimensions by the letters that kernels use."""
        return {
            "B": self.prompts, "P": self.positions, "H": self.heads, "G": self.groups, "K": self.d_head,
            "D": self.d_model, "S": self.components, "M": self.layers, "L": self.layers, "W": self.writers,
            "N": self.directions, "V": self.vocab, "T": self.rows, "C": 1,
        }  # fmt: skip


@dataclass(frozen=True)
class Work:
    """The least that any program for a case must do: multiplications and additions, and bytes read and written once."""

    flop: float
    bytes: float


def listed(results: Any) -> tuple[Tensor | None, ...]:
    """Return the results of a kernel as a tuple, also where it returns one tensor alone."""
    return (results,) if isinstance(results, Tensor) else tuple(results)


def projection(s: Shape, draw: Draw) -> dict[str, Any]:
    """Return arguments of `projection`: every site on the heads of one layer."""
    return {
        "z": draw(s.prompts, s.positions, s.heads, s.d_head),
        "W_O": draw(s.heads, s.d_head, s.d_model, scale=s.d_head**-0.5),
        "of": draw(s.components, s.prompts, s.positions, s.d_model),
    }


def projection_flop(s: Shape) -> float:
    """Count the heads formed, then one product per component and one for the norm."""
    return 2.0 * s.rows * s.heads * s.d_model * (s.d_head + s.components + 1)


def projection_onto_vectors(s: Shape, draw: Draw) -> dict[str, Any]:
    """Return arguments of `projection_onto_vectors`: every site on what the MLPs of all layers wrote."""
    return {
        "v": draw(s.layers, s.prompts, s.positions, s.d_model),
        "of": draw(s.components, s.prompts, s.positions, s.d_model),
    }


def projection_onto_vectors_flop(s: Shape) -> float:
    """Count one product per site and one for the norm, of every vector."""
    return 2.0 * s.rows * s.layers * s.d_model * (s.components + 1)


def gram(s: Shape, draw: Draw) -> dict[str, Any]:
    """Return arguments of `gram`: the heads and MLPs of all layers, the embedding and one sum of biases."""
    heads = s.layers * s.heads
    return {
        "z": draw(s.prompts, s.positions, heads, s.d_head),
        "W_O": draw(heads, s.d_head, s.d_model, scale=s.d_head**-0.5),
        "vectors": draw(s.layers + 2, s.prompts, s.positions, s.d_model),
    }


def gram_flop(s: Shape) -> float:
    """Count the heads formed, then one product per pair of nodes, which are alike in either order."""
    heads = 2.0 * s.rows * s.layers * s.heads * s.d_head * s.d_model
    return heads + s.rows * s.d_model * s.nodes * (s.nodes + 1)


def gram_sums(s: Shape, draw: Draw) -> dict[str, Any]:
    """Return arguments of `gram_sums`: those of `gram`, and the first position apart from the rest."""
    given = gram(s, draw)
    first = torch.arange(s.positions, device=given["z"].device) == 0
    return given | {"strata": torch.stack([first, ~first])[:, None].repeat(1, s.prompts, 1)}


def gram_launches(s: Shape, size: int) -> dict[str, Work]:
    """Return the work of the launch, which reads nodes that were formed before, in elements of `size` bytes."""
    return {"gram": _of_nodes(s, size * s.nodes * s.rows * s.d_model + 4 * s.rows * s.nodes**2)}


def gram_sums_launches(s: Shape, size: int) -> dict[str, Work]:
    """Return the same for the sums over two strata."""
    sums = 4 * 2 * (s.rows + s.prompts * s.nodes**2)
    return {"gram_sums": _of_nodes(s, size * s.nodes * s.rows * s.d_model + sums)}


def _of_nodes(s: Shape, moved: float) -> Work:
    return Work(float(s.rows * s.d_model * s.nodes * (s.nodes + 1)), moved)


def v_composition(s: Shape, draw: Draw) -> dict[str, Any]:
    """Return arguments of `v_composition`."""
    return {
        "q": draw(s.prompts, s.positions, s.heads, s.d_head),
        "k": draw(s.prompts, s.positions, s.groups, s.d_head),
        "writer": draw(s.writers, s.prompts, s.positions, s.d_model),
        "scale": draw(s.prompts, s.positions).abs() + 0.5,
        "W_V": draw(s.groups, s.d_model, s.d_head, scale=s.d_model**-0.5),
        "W_O": draw(s.heads, s.d_head, s.d_model, scale=s.d_head**-0.5),
        "onto": draw(s.directions, s.prompts, s.positions, s.d_model),
        "center": s.center,
    }


def v_composition_flop(s: Shape) -> float:
    """Count the values, the causal pattern and what it weighs, then outputs formed and projected."""
    values, attend, outputs = (part.flop for part in v_composition_launches(s, 4).values())
    return values + attend + outputs * (s.d_head + s.directions) / s.d_head


def v_composition_launches(s: Shape, size: int) -> dict[str, Work]:
    """Return the work of each launch, its tensors in elements of `size` bytes, scales and sums in float32."""
    # A causal pattern has P (P + 1) / 2 entries; each costs K for its score and K for every writer's weighted sum.
    pattern = s.positions * (s.positions + 1) / 2 * s.prompts * s.heads
    stream, heads, groups = s.rows * s.d_model, s.heads * s.d_head, s.groups * s.d_head
    z, values = s.rows * heads, s.rows * groups
    return {
        "v_composition.values": Work(
            2.0 * s.writers * stream * groups,
            size * (s.writers * (stream + values) + groups * s.d_model) + 4 * s.rows,
        ),
        "v_composition.attend": Work(
            2.0 * pattern * s.d_head * (1 + s.writers), size * (z + values + s.writers * (values + z))
        ),
        "v_composition.sum_heads": Work(
            2.0 * s.writers * stream * heads, size * (s.writers * z + heads * s.d_model) + 4 * s.writers * stream
        ),
    }


def top2_logits(s: Shape, draw: Draw) -> dict[str, Any]:
    """Return arguments of `top2_logits`, one chosen token a row; W_U as a run lays it out."""
    resid = draw(s.rows, s.d_model)
    return {
        "resid": resid,
        "W_U": aligned(draw(s.d_model, s.vocab, scale=s.d_model**-0.5)),
        "b_U": draw(s.vocab) if s.bias else None,
        "chosen": torch.arange(s.rows, device=resid.device)[:, None] * 7919 % s.vocab,
    }


def top2_logits_flop(s: Shape) -> float:
    """Count every logit of every row."""
    return 2.0 * s.rows * s.d_model * s.vocab
