"""What a page is made of, beside the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr

from repro.check.comparison import Comparison
from repro.figures.draw import Source
from repro.spec.types import Loaded


@dataclass(frozen=True)
class Material:
    """What a page is made of, beside the store."""

    loaded: Loaded
    subject: str
    about: str
    fallback: str
    """Why another subject than the first stands here; empty where none was wanted."""
    n_prompts: int
    n_positions: int
    source: Callable[[str], Source | str]
    """Experiment -> where its result lies, or why there is none."""
    comparison: Comparison | None
    scan: str = ""
    """The experiment that a scan reads; empty where it has no result."""
    raw: Callable[[], xr.Dataset] | None = None
    """Reads its raw arrays, without excluded prompts."""
    answer: Mapping[str, Any] | None = None
    """`scan.json` of that result."""
    fresh: bool = False
    """Whether the page is written anew even where nothing has changed."""

    @property
    def is_papers(self) -> bool:
        """Return whether the numbers are of the paper's own subject."""
        return self.subject == self.loaded.spec.run.paper_subject
