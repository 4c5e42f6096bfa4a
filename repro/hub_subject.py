"""A subject whose model lies on the hub: fetched once, pinned, and from then on a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from repro.errors import Exit, ReproError
from repro.spec import Loaded, Subject

if TYPE_CHECKING:
    from repro.subjects import Access


def fetch_subject(loaded: Loaded, name: str, subject: Subject, access: Access) -> Path:
    """placeholder"""
    raise ReproError(f"{subject.model} is not in the cache, and this run is offline", Exit.UNAVAILABLE)
