"""A stored result by name, or the figure of it, without touching a model: what a notebook opens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from repro.errors import AbsentError, ReproError, did_you_mean
from repro.figures.draw import Source
from repro.options import DEFAULT_SPEC
from repro.request import Request, Workspace

if TYPE_CHECKING:
    import altair as alt


def open_result(
    subject: str,
    name: str,
    *,
    prompts: int | None = None,
    spec: Path | str = "experiments.toml",
    out: Path | str | None = None,
) -> xr.Dataset:
    """Return the stored summary of a figure's experiment, or of an experiment, as a labelled Dataset.

    subject: declared in the spec, or a model directory; name: of a figure or an experiment; prompts: of how many, where
    it was computed of the first so many. spec: the paper as a TOML file; out: the root of store/, by default the spec's
    directory. The newest result of the present spec is returned, else, of all prompts, the small copy that is kept in
    git; computes nothing and asks nobody. Raises ReproError: exit 2 for an unknown
    name, exit 4 where nothing is stored, with the command that computes it. Agreement: tests/test_notebook.py.
    """
    from repro.store.result import read_summary

    workspace = _workspace(subject, name, prompts, spec, out)
    experiments, declared = workspace.loaded.spec.experiment, workspace.loaded.spec.figure
    if name not in experiments and name not in declared:
        raise ReproError(f"{name!r} is not the name of one experiment or figure; ask for each by its own name")
    return read_summary(_found(workspace, name if name in experiments else declared[name].experiment).path)


def figure(
    subject: str,
    name: str,
    *,
    prompts: int | None = None,
    spec: Path | str = "experiments.toml",
    out: Path | str | None = None,
) -> alt.ConcatChart:
    """Return a figure of the stored result that `repro.open` finds: the chart that `python -m repro figures` draws.

    subject, prompts, spec, out: as for `repro.open`; name: of a figure in the spec, such as `paper_1` or `post_2`.
    Returns an Altair chart; a notebook shows it, `.save("figure.png")` writes it. Raises ReproError: exit 2 for an
    unknown name, exit 4 where nothing is stored. Agreement: tests/test_notebook.py, with what the command draws.
    """
    import paper_figures
    from repro.figures.draw import prepared
    from repro.store.result import read_summary

    workspace = _workspace(subject, name, prompts, spec, out)
    declared = workspace.loaded.spec.figure
    if name not in declared:
        raise ReproError(f"{name!r} is not a figure.{did_you_mean(name, declared)} Known: {', '.join(declared)}")
    at = _found(workspace, declared[name].experiment)
    dataset = prepared(declared[name], read_summary(at.path), at, workspace.loaded.spec.run.paper_subject)
    return paper_figures.chart(declared[name].chart, dataset)


def _workspace(subject: str, name: str, prompts: int | None, spec: Path | str, out: Path | str | None) -> Workspace:
    root = None if out is None else Path(out)
    workspace = Workspace(Request(Path(spec), subject, name, prompts, out=root), lambda line: None)
    _ = workspace.selection  # an unknown name is refused before anything is looked for
    return workspace


def _found(workspace: Workspace, experiment: str) -> Source:
    """Return where an experiment's result lies: the newest of the present spec, else the copy that is kept in git."""
    chosen = workspace.choose(ask=False)
    plan = workspace.plan(chosen, [experiment])
    item = plan.item(experiment)
    item.refuse_damage()
    copy = workspace.committed / chosen.name / experiment
    if item.fresh:
        return Source(item.path, roles=plan.roles.attrs())
    if workspace.request.prompts is None and (copy / "COMMIT").is_file():
        return Source(copy, "COMMITTED")
    asked = workspace.request
    options = [f"--subject {asked.subject}"]
    options += [f"--prompts {asked.prompts}"] if asked.prompts is not None else []
    options += [f"--spec {asked.spec}"] if asked.spec != DEFAULT_SPEC else []
    options += [f"--out {asked.out}"] if asked.out is not None else []
    raise AbsentError(
        f"no result of {experiment} for {asked.subject} in {workspace.store} ({item.state}); compute it with "
        f"`python -m repro run {experiment} {' '.join(options)}`"
    )
