"""One file per figure: `chart(dataset) -> altair chart`, drawn from a stored summary and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt
    import xarray as xr

_SITES_ON_NODES = {"measure": "projection", "of": "sites", "onto": "nodes"}
# Every chart and the experiments that it draws: the fields of an experiment that its summary's dimensions depend on.
# A chart is entered here, not in its own file, so that a spec is checked without importing altair.
_DRAWS: Mapping[str, Mapping[str, str]] = {
    "site_heads": _SITES_ON_NODES,
    "site_writer": _SITES_ON_NODES,
    "nodes_onto_writer": {"measure": "projection", "of": "nodes", "onto": "$writer"},
    "patched_sites": {"measure": "v_patch"},
    "patched_heads": {"measure": "v_patch"},
    "resampled_dla": {"measure": "resampled_dla"},
    "scatter": {"measure": "dla_scatter"},
    "resid_onto_nodes": _SITES_ON_NODES,
    "dla_card": {"measure": "dla_card"},
    "net_scatter": {"measure": "dla_card"},
    "by_position": {"measure": "projection", "summarise": "by_position"},
}


def names() -> tuple[str, ...]:
    """Return names of the figure views, in the order of the paper."""
    return tuple(_DRAWS)


def draws(name: str) -> Mapping[str, str]:
    """Return the fields, and their values, that an experiment must have for this view to draw it.

    Raises KeyError with the name if there is no such view. Tests: tests/spec/test_charts.py.
    """
    return MappingProxyType(_DRAWS[name])


def chart(name: str, ds: xr.Dataset) -> alt.ConcatChart:
    """Return a summary as one view draws it. Raises ValueError, naming the option, for one that the view does not read.

    ds: with `options` among its attributes. Tests: tests/figures/test_paper_figures.py.
    """
    view = load(name)
    known: Mapping[str, str] = getattr(view, "OPTIONS", {})
    for key in ds.attrs["options"]:
        if key not in known:
            raise ValueError(f"unknown option {key!r}; this figure reads {', '.join(known) or 'none'}")
    drawn: alt.ConcatChart = view.chart(ds)
    return drawn


def spec(name: str, ds: xr.Dataset) -> dict[str, Any]:
    """Return the same as Vega-Lite's JSON, not checked against its schema: the tests check that of every view.

    To check takes as long as to build.
    """
    from altair.utils.schemapi import debug_mode

    with debug_mode(False):
        built: dict[str, Any] = chart(name, ds).to_dict(validate=False)
    return built


def load(name: str) -> ModuleType:
    """Return the module of one view: `chart(ds)`, `OPTIONS` where it has some and, for the scatter, `points(ds)`.

    Raises KeyError with the name if there is no such view; `names()` lists them.
    Tests: tests/figures/test_paper_figures.py.
    """
    if name not in _DRAWS:
        raise KeyError(name)
    return import_module(f"{__name__}.{name}")
