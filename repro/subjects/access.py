"""Where fetched things are kept, and whether the hub and the package index may be asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Access:
    """Whether the hub and the package index may be asked, and where what was made of their files is kept."""

    cache: Path
    offline: bool = False
    """Whether only what is cached counts, and nobody is ever asked."""
    say: Callable[[str], None] = lambda line: None
    """Told of what takes long."""


def cache_folder() -> Path:
    """Return the directory of frozen prompts and model directories: $REPRO_CACHE, else in the user's cache directory.

    Downloaded files themselves lie in the ordinary Hugging Face cache.
    """
    if given := os.environ.get("REPRO_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dla-erasure"
