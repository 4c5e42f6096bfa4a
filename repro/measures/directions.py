"""What the experiments of a pass ask of each batch, merged before the pass begins."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Directions:
    """What the experiments of a pass ask of each batch, so that it is computed once for all of them.

    sites_on_nodes: whether sites are projected on all nodes. directions: further vectors that nodes are projected on,
    of `writer`, any label of a node, `top2`, `next_token`.
    """

    sites_on_nodes: bool = False
    directions: tuple[str, ...] = ()

    def __or__(self, other: Directions) -> Directions:
        directions = (*self.directions, *(name for name in other.directions if name not in self.directions))
        return Directions(self.sites_on_nodes or other.sites_on_nodes, directions)
