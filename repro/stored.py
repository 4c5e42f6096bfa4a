"""A stored result by name, without touching a model: what a notebook opens."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from repro.errors import AbsentError
from repro.request import Request, Workspace


def open_result(
    subject: str, name: str, *, spec: Path | str = "experiments.toml", out: Path | str | None = None
) -> xr.Dataset:
    """Return the stored summary of a figure's experiment, or of an experiment, as a labelled Dataset.

    subject: declared in the spec, or a model directory; name: of a figure or an experiment. spec: the paper as a TOML
    file; out: the root of store/, by default the spec's directory. The newest result of the present spec is returned,
    else the small copy that is kept in git; computes nothing and asks nobody. Raises ReproError: exit 2 for an unknown
    name, exit 4 where nothing is stored, with the command that computes it. Agreement: tests/test_notebook.py.
    """
    from repro.store.result import read_summary

    request = Request(Path(spec), subject=subject, only=name, out=None if out is None else Path(out))
    workspace = Workspace(request, lambda line: None)
    (experiments, _), chosen = workspace.selection, workspace.choose(ask=False)
    wanted = name if name in experiments else workspace.loaded.spec.figure[name].experiment
    item = workspace.plan(chosen, [wanted]).item(wanted)
    item.refuse_damage()
    copy = workspace.committed / chosen.name / wanted
    if item.fresh:
        return read_summary(item.path)
    if (copy / "COMMIT").is_file():
        return read_summary(copy)
    raise AbsentError(
        f"no result of {wanted} for {subject} in {workspace.store} ({item.state}); compute it with "
        f"`python -m repro run {wanted} --subject {subject}`"
    )
