"""One file per figure: `chart(dataset) -> altair chart`, drawn from a stored summary and nothing else."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

_FIGURES = (
    "site_heads",
    "site_writer",
    "nodes_onto_writer",
    "patched_sites",
    "patched_heads",
    "resampled_dla",
    "scatter",
    "resid_onto_nodes",
    "by_position",
)


def names() -> tuple[str, ...]:
    """Return the names of the figure views, in the order of the paper."""
    return _FIGURES


def load(name: str) -> ModuleType:
    """Return the module of one view: `chart(ds)`, `OPTIONS` (what it understands) and, for the scatter, `points(ds)`.

    Raises KeyError with the name if there is no such view; `names()` lists them.
    Tests: tests/figures/test_paper_figures.py.
    """
    if name not in _FIGURES:
        raise KeyError(name)
    return import_module(f"{__name__}.{name}")
