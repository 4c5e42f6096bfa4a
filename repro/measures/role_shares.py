"""Path shares through the erasers that a spec names alone: what `all` answers from where roles are named.

All writers and decoys, and only the components that the spec accuses: a few products a prompt, where the scan of a
whole model takes thousands. What is claimed is held to the level of the whole model's pairs (repro/scan/verdict.py), so
that looking at few of them makes no claim easier.
"""

from __future__ import annotations

from typing import Literal

from repro.measures.base import Context
from repro.measures.path_shares import PathShares


class RoleShares(PathShares):
    """Path shares, clean shares and presence of every node, through the named erasers alone."""

    measure: Literal["role_shares"]  # type: ignore[assignment] # another measure of the same arrays
    finds = ()
    named_only = True

    @property
    def needs(self) -> frozenset[str]:
        """Return the roles: they say through which components to look."""
        return frozenset({"writer", "erasers"})

    def components(self, context: Context) -> list[str]:
        """Return the named erasers, in model order."""
        return [node for node in context.nodes if node in context.roles.erasers]
