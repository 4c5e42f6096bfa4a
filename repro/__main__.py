"""`python -m repro`: resolve -> plan -> run -> draw -> check -> answer -> report; `all` does the whole paper."""

from __future__ import annotations

import inspect
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Annotated, Any, get_type_hints

import typer

from repro.errors import Exit, ReproError, worst
from repro.options import PLACE, PLANNING, RUNNING, AsJson, Request
from repro.process import set_defaults

set_defaults()

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=__doc__,
)


def _version(asked: bool) -> None:
    if asked:
        from repro import __version__

        typer.echo(f"repro {__version__}")
        raise typer.Exit


@app.callback(help=__doc__)
def _shared(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Read the options that belong to no command."""


def command(*options: str, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command that is handed a `Request` with those options, then its own parameters."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        own = [
            parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in list(inspect.signature(function).parameters.values())[1:]
        ]
        shared = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=getattr(Request, option), annotation=kind)
            for option, kind in get_type_hints(Request, include_extras=True).items()
            if option in options
        ]

        def run(**given: Any) -> None:
            function(Request(**{option: given.pop(option) for option in options}), **given)

        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined] # what typer reads
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared)}
        app.command(name or function.__name__)(run)
        return function

    return register


def _say(line: str) -> None:
    typer.echo(_coloured(line) if sys.stdout.isatty() else line)


def _coloured(line: str) -> str:
    """Return a line for a terminal: what was found in green, what a reader must not miss in yellow."""
    if line.startswith("Erasure found"):
        return typer.style(line, fg="green", bold=True)
    if line.startswith(("No erasure found", "Too few prompts", "NOT THE PAPER'S SUBJECT")):
        return typer.style(line, fg="yellow", bold=True)
    return line


def _to_stderr(line: str) -> None:
    typer.echo(line, err=True)


def _echo_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=1, sort_keys=True))


def _workspace(request: Request, as_json: bool = False) -> Any:
    """Return the request resolved; `as_json`: what is said goes to the error stream, beside the JSON."""
    from repro.request import Workspace

    return Workspace(request, _to_stderr if as_json else _say)


def _end(codes: Iterable[Exit]) -> None:
    raise typer.Exit(int(worst(list(codes))))


@command(*RUNNING, "only", name="all")
def all_(request: Request) -> None:
    """Resolve, plan, run, draw, check, answer, report: the whole paper."""
    from repro.pipeline import STAGES

    value = _workspace(request)
    for stage in STAGES:
        value = stage(value)
    _end(value.codes)


@command(*PLANNING, "only")
def plan(request: Request, as_json: AsJson = False) -> None:
    """Say what is fresh, stale or partial, why, and what the rest will cost. Loads no weights."""
    from repro import pipeline
    from repro.stages.plan import plan_rows

    paper = pipeline.resolve(_workspace(request, as_json), find=False)
    if as_json:
        rows = plan_rows(paper.workspace.plan(paper.subject))
        _echo_json({"subject": paper.subject.name, "items": rows})
    else:
        pipeline.plan(paper, about=True)


@command(*RUNNING)
def run(
    request: Request,
    names: Annotated[list[str] | None, typer.Argument(help="Experiments, figures, groups; nothing: all.")] = None,
) -> None:
    """Compute experiments that are not fresh and commit them to the store."""
    from repro import pipeline
    from repro.stages.plan import show_stored

    paper = pipeline.run(pipeline.plan(pipeline.resolve(_workspace(replace(request, only=",".join(names or ()))))))
    show_stored(paper.workspace, paper.plan)
    _end(paper.codes)


@command(*RUNNING)
def scan(
    request: Request,
    model: Annotated[str | None, typer.Argument(help="A declared subject, a model directory, or a hub name.")] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Scan two untrained twins of the model, too, where every claim is false.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say which components take back what others wrote, because it was written: a table, and a verdict last."""
    from repro import pipeline

    if model is not None and request.subject is not None:
        raise ReproError("scan: give the model once, as an argument or with --subject")
    asked = replace(request, subject=model or request.subject, only="scan", controls=controls)
    workspace = _workspace(asked, as_json)
    paper = pipeline.run(pipeline.plan(pipeline.resolve(workspace)))
    paper = pipeline.conclude(pipeline.report(pipeline.answer(paper)))
    if as_json and paper.verdict:
        typer.echo((workspace.figures_folder(paper.subject.name) / "scan.json").read_text(encoding="utf-8"))
    _end(paper.codes)


@command(*PLANNING, "only", "fresh")
def figures(request: Request, as_json: AsJson = False) -> None:
    """Draw figures from the store: PNG and SVG."""
    from repro import pipeline
    from repro.figures.draw import missing_error
    from repro.stages.paper import stored

    paper = pipeline.draw(stored(_workspace(request, as_json)))
    if as_json:
        rows = [{"figure": d.name, "files": list(map(str, d.files)), "skipped": d.skipped} for d in paper.drawn]
        _echo_json(rows)
    missing = missing_error(list(paper.drawn))
    if missing is not None:
        raise missing


@command(*PLANNING, "only", "fresh")
def report(request: Request) -> None:
    """Write report.html from the store: the answer, every figure, the scan as a map, where the numbers come from."""
    from repro import pipeline
    from repro.stages.paper import stored

    pipeline.report(stored(_workspace(request)))


@command(*PLANNING, "only")
def check(request: Request, as_json: AsJson = False) -> None:
    """Compare the stored numbers with the published ones: check.md and check.json."""
    from repro import pipeline
    from repro.stages.paper import stored

    paper = pipeline.check(stored(_workspace(request, as_json)))
    if as_json:
        typer.echo((paper.workspace.figures_folder(paper.subject.name) / "check.json").read_text())
    _end(paper.codes)


@command(*PLACE)
def verify(request: Request, as_json: AsJson = False) -> None:
    """Look for damage in the store: flipped bits, lost chunks, torn records, foreign files."""
    from repro.stages.maintain import verify as look

    findings = look(_workspace(request, as_json))
    if as_json:
        rows = [{"path": str(f.path), "what": f.what, "prompts": f.prompts, "foreign": f.foreign} for f in findings]
        _echo_json(rows)
    _end([Exit.CORRUPT] if findings else [])


@command("spec")
def subjects(request: Request, as_json: AsJson = False) -> None:
    """List the declared subjects and whether they can be had here without asking anyone."""
    from repro.subjects.resolve import listed

    rows = listed(_workspace(request).loaded)
    if as_json:
        _echo_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['name']:<12} {row['state']:<12} writer {row['writer']:<6} {row['about']}")


@command(*PLANNING)
def clean(
    request: Request,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show results that the spec no longer uses; remove them with --yes."""
    from repro.stages.maintain import clean as tidy
    from repro.stages.paper import stored

    workspace = _workspace(request, as_json)
    found = tidy(stored(workspace, announced=False), yes)
    if as_json:
        _echo_json({"removed": yes, "results": list(map(str, found))})


@command(*PLACE, "device")
def bench(
    request: Request,
    budget: Annotated[str, typer.Option(help="How long it may take, such as 8m.")] = "5m",
    only: Annotated[str | None, typer.Option(help="Kernels, shapes or kernel/shape, by commas.")] = None,
    compile_all: Annotated[bool, typer.Option("--compile-all", help="Compile every configuration, too.")] = False,
    whole: Annotated[bool, typer.Option("--end-to-end", help="The whole paper beside the bare forward pass.")] = False,
    sizes: Annotated[str, typer.Option(help="Numbers of prompts for --end-to-end.")] = "10,30,100,300",
    repeats: Annotated[int, typer.Option(min=1, help="Processes per size for --end-to-end.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Compare kernels with their reference in float64, then time them; or, with --end-to-end, the whole paper."""
    workspace = _workspace(request)
    if whole:
        from repro.bench.end_to_end import end_to_end, parse_sizes

        end_to_end(request.spec, workspace.store, parse_sizes(sizes), repeats, _say)
        return
    from repro.bench.kernels import bench as measure
    from repro.kernels.bench.command import Options

    asked = Options(request.device, budget, only, compile_all, as_json)
    _end([measure(asked, workspace.store, workspace.figures_folder("bench"), _say)])


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; every expected failure is a sentence, not a traceback."""
    if threading.current_thread() is threading.main_thread():
        # A request to end is an interruption: claims are given back, and the exit code says that the run can go on.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = app(args=arguments, standalone_mode=False)
    except ReproError as error:
        for line in error.message.splitlines():
            _to_stderr(f"error: {line}")
        return int(error.code)
    except (KeyboardInterrupt, typer.Abort):
        result = int(Exit.INTERRUPTED)
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's own usage errors
            error.show()
            return int(Exit.USAGE)
        raise
    # typer answers an interruption itself, with this code and without a word.
    if result == Exit.INTERRUPTED:
        _to_stderr("interrupted; what was committed is kept, run the same command again to go on")
    return int(result) if isinstance(result, int) else int(Exit.OK)


if __name__ == "__main__":
    sys.exit(main())
