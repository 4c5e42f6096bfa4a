"""Pages made for tests: results of toys, and results whose texts try to break out of the page."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from repro.figures.draw import Source, prepared
from repro.measures import MEASURES
from repro.report.figures import Drawing, _drawing
from repro.spec.read import read_spec
from tests.runs import PAPER

NASTY = (
    "</script><script>window.broken=1</script>",
    "\"'><img src=x onerror=window.broken=1>",
    "<!--<script>",
    "]]></svg>&amp;\u2028\\",
)
"""Texts as a prompt, a token or a name may hold them."""


def nasty_summary() -> xr.Dataset:
    """A summary of `resampled_dla` with such texts wherever a text can be."""
    n, heads = len(NASTY), ["L0H0", "L1H1"]
    words = {name: ("example", list(NASTY)) for name in ("text", "answer", "other", "first", "second")}
    return xr.Dataset(
        {
            "clean": (("example", "head"), np.full((n, 2), 0.5)),
            "resampled": (("quantile", "example", "head"), np.tile([[[0.1]], [[0.2]], [[0.3]]], (1, n, 2))),
            "logit_diff": (("example",), np.ones(n)),
            "top2_named": (("example",), np.zeros(n, bool)),
        },
        {
            "example": list(NASTY),
            "head": heads,
            "quantile": ["lower", "median", "upper"],
            "head_shown": ("example", ["L1H1"] * n),
            **words,
        },
        {
            "subject": NASTY[0],
            "model": NASTY[1],
            "writer": "L0H0",
            "erasers": "L1H1",
            "n_layers": 2,
            "layer": 1,
            "n_prompts": 4,
            "n_positions": 16,
            "found": 1,
            "examples": "named",
            "measure": "resampled_dla",
            "quantiles": [0.25, 0.75],
        },
    )


@cache
def nasty_drawing() -> Drawing:
    """The drawing of that summary."""
    figure = read_spec(PAPER, MEASURES).spec.figure["paper_5"]
    return _drawing("paper_5", NASTY[2], NASTY[3], figure, prepared(figure, nasty_summary(), Source(Path()), "gelu-4l"))


def context(**changes: Any) -> dict[str, Any]:
    """What the template names, of a page without results, every text of it nasty."""
    from repro.report.provenance import Origin, Provenance
    from repro.report.shortfalls import Shortfall

    origin = Origin(NASTY[0], NASTY[1], 4, 16, "float32", "torch", "cpu", "")
    return {
        "stamp": "0",
        "version": "0",
        "subject": NASTY[0],
        "about": NASTY[1],
        "papers": "gelu-4l",
        "is_papers": False,
        "fallback": NASTY[2],
        "size": "4 prompts of 16 tokens",
        "figures": [],
        "worth": {},
        "stills": {},
        "scan": None,
        "picture": "",
        "origins": Provenance((origin,), ((NASTY[0], NASTY[3]),), ((NASTY[1], NASTY[2]),)),
        "shortfalls": [Shortfall(NASTY[0], NASTY[1])],
        "claims": (),
        "compared": "",
        "rows": [],
        **changes,
    }


def sources(store: Path) -> Any:
    """Experiment -> its one result in a subject's store."""

    def source(name: str) -> Source | str:
        found = list((store / name).glob("*")) if (store / name).is_dir() else []
        return Source(found[0]) if found else f"no result of {name} in the store"

    return source
