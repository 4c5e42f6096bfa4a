"""The world outside the project: the cache folder, and whether the hub may be asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Access:
    """Whether and how the hub may be asked."""

    cache: Path
    offline: bool = False
    ask: bool = True
    """False: only what is cached counts, and nothing is ever asked (plan, figures, check)."""
    insist: bool = False
    """The user named the subject: a refusal remembered from before is tried again."""


def cache_folder() -> Path:
    """Where models from the hub are kept: $REPRO_CACHE, else the user's cache folder."""
    if given := os.environ.get("REPRO_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dla-erasure"
