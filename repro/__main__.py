"""`python -m repro`: spec -> plan -> run -> store -> figure -> check; one command a stage, `all` for the paper."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from repro.errors import Exit, ReproError, worst
from repro.process import set_defaults

set_defaults()

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=__doc__,
)

Spec = Annotated[Path, typer.Option("--spec", help="The paper as a TOML file.")]
SubjectName = Annotated[
    str | None, typer.Option("--subject", help="A declared subject, a model folder, or a hub name.")
]
Only = Annotated[str, typer.Option("--only", help="Experiments, figures or groups, separated by commas.")]
Prompts = Annotated[int | None, typer.Option("--prompts", min=1, help="Only the first N prompts.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
KernelChoice = Annotated[str, typer.Option("--kernels", help="auto, triton, torch or reference.")]
Memory = Annotated[str, typer.Option("--memory", help="How much memory a pass may take, such as 2GiB.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Root of store/ and paper_figures/out/; default: the spec's folder.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the hub; only what is cached counts.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Compute and draw anew what is already there.")]
Watchdog = Annotated[
    str, typer.Option("--watchdog", help="End a run in which no unit is finished for so long; 0: never.")
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Compute in N processes on this machine.")]
Scheduler = Annotated[str | None, typer.Option("--scheduler", help="Compute on an existing dask cluster, tcp://…")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
DEFAULT_SPEC = Path("experiments.toml")


def _world(say: Callable[[str], None], only: str = "", **given: Any) -> Any:
    from repro.request import Request, World

    names = tuple(part.strip() for part in only.split(",") if part.strip())
    return World(Request(only=names, **given), say)


def _say(line: str) -> None:
    typer.echo(line)


def _to_stderr(line: str) -> None:
    typer.echo(line, err=True)


def _end(codes: list[Exit]) -> None:
    raise typer.Exit(int(worst(codes)))


@app.command("all")
def all_(
    spec: Spec = DEFAULT_SPEC, subject: SubjectName = None, only: Only = "", prompts: Prompts = None,
    device: Device = "auto", kernels: KernelChoice = "auto", memory: Memory = "2GiB", out: Out = None,
    offline: Offline = False, fresh: Fresh = False, watchdog: Watchdog = "30m", workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:  # fmt: skip
    """Plan, run, figures, check: the whole paper."""
    from repro import pipeline

    world = _world(
        _say, only, spec=spec, subject=subject, prompts=prompts, device=device, kernels=kernels, memory=memory, out=out,
        offline=offline, fresh=fresh, watchdog=watchdog, workers=workers, scheduler=scheduler,
    )  # fmt: skip
    chosen = world.choose(ask=True)
    pipeline.announce(world, chosen)
    plan, codes = pipeline.run(world, chosen)
    pipeline.draw(world, plan)
    _end(codes + pipeline.check(world, plan))


@app.command()
def plan(
    spec: Spec = DEFAULT_SPEC, subject: SubjectName = None, only: Only = "", prompts: Prompts = None,
    device: Device = "auto", kernels: KernelChoice = "auto", out: Out = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """What is fresh, stale or partial, why, and what the rest will cost. Needs no weights in memory."""
    from repro import pipeline

    world = _world(_to_stderr if as_json else _say, only, spec=spec, subject=subject, prompts=prompts, device=device,
                   kernels=kernels, out=out)  # fmt: skip
    chosen = world.choose(ask=False)
    pipeline.announce(world, chosen)
    made = world.plan(chosen)
    if as_json:
        typer.echo(pipeline.as_json({"subject": chosen.name, "items": pipeline.plan_rows(made)}))
    else:
        pipeline.show_plan(world, made, about=True)


@app.command()
def run(
    names: Annotated[list[str] | None, typer.Argument(help="Experiments, figures, groups; nothing: all.")] = None,
    spec: Spec = DEFAULT_SPEC, subject: SubjectName = None, prompts: Prompts = None, device: Device = "auto",
    kernels: KernelChoice = "auto", memory: Memory = "2GiB", out: Out = None, offline: Offline = False,
    fresh: Fresh = False, watchdog: Watchdog = "30m", workers: Workers = None, scheduler: Scheduler = None,
) -> None:  # fmt: skip
    """Computes experiments that are not fresh and commits them to the store."""
    from repro import pipeline

    world = _world(
        _say, ",".join(names or ()), spec=spec, subject=subject, prompts=prompts, device=device, kernels=kernels,
        memory=memory, out=out, offline=offline, fresh=fresh, watchdog=watchdog, workers=workers, scheduler=scheduler,
    )  # fmt: skip
    chosen = world.choose(ask=True)
    pipeline.announce(world, chosen)
    made, codes = pipeline.run(world, chosen)
    pipeline.show_plan(world, made)
    _end(codes)


@app.command()
def figures(
    spec: Spec = DEFAULT_SPEC, subject: SubjectName = None, only: Only = "", prompts: Prompts = None,
    device: Device = "auto", kernels: KernelChoice = "auto", out: Out = None, fresh: Fresh = False,
) -> None:  # fmt: skip
    """Draws figures from the store: HTML, PNG and SVG."""
    from repro import pipeline
    from repro.figures import draw as drawing

    world = _world(_say, only, spec=spec, subject=subject, prompts=prompts, device=device, kernels=kernels, out=out,
                   fresh=fresh)  # fmt: skip
    chosen = world.choose(ask=False)
    pipeline.announce(world, chosen)
    missing = drawing.missing_error(pipeline.draw(world, world.plan(chosen)))
    if missing is not None:
        raise missing


@app.command()
def check(
    spec: Spec = DEFAULT_SPEC, subject: SubjectName = None, only: Only = "", prompts: Prompts = None,
    device: Device = "auto", kernels: KernelChoice = "auto", out: Out = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Compares the stored numbers with the published ones: check.md and check.json."""
    from repro import pipeline

    world = _world(_to_stderr if as_json else _say, only, spec=spec, subject=subject, prompts=prompts, device=device,
                   kernels=kernels, out=out)  # fmt: skip
    chosen = world.choose(ask=False)
    pipeline.announce(world, chosen)
    codes = pipeline.check(world, world.plan(chosen))
    if as_json:
        typer.echo((world.figures_folder(chosen.name) / "check.json").read_text())
    _end(codes)


@app.command()
def verify(spec: Spec = DEFAULT_SPEC, out: Out = None) -> None:
    """Looks for damage in the store: flipped bits, lost chunks, torn records, foreign files."""
    from repro import pipeline

    _end(pipeline.verify(_world(_say, spec=spec, out=out)))


@app.command()
def subjects(spec: Spec = DEFAULT_SPEC, as_json: AsJson = False) -> None:
    """Lists the declared subjects and whether they can be had here without asking anyone."""
    from repro.spec.read import read_spec
    from repro.subjects.resolve import listed

    rows = listed(read_spec(spec))
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        typer.echo(f"{row['name']:<12} {row['state']:<12} writer {row['writer']:<6} {row['about']}")


@app.command()
def clean(
    spec: Spec = DEFAULT_SPEC, subject: SubjectName = None, prompts: Prompts = None, device: Device = "auto",
    kernels: KernelChoice = "auto", out: Out = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them.")] = False,
) -> None:  # fmt: skip
    """Shows results that the spec no longer uses; removes them with --yes."""
    from repro import pipeline

    world = _world(_say, spec=spec, subject=subject, prompts=prompts, device=device, kernels=kernels, out=out)
    pipeline.clean(world, world.plan(world.choose(ask=False)), yes)


@app.command()
def bench(
    spec: Spec = DEFAULT_SPEC, out: Out = None, device: Device = "auto",
    budget: Annotated[str, typer.Option("--budget", help="How long it may take, such as 8m.")] = "5m",
    only: Annotated[str | None, typer.Option("--only", help="Kernels, shapes or kernel/shape, by commas.")] = None,
    compile_all: Annotated[bool, typer.Option("--compile-all", help="Compile every configuration, too.")] = False,
    whole: Annotated[bool, typer.Option("--end-to-end", help="The whole paper beside the bare forward pass.")] = False,
    sizes: Annotated[str, typer.Option("--sizes", help="Numbers of prompts for --end-to-end.")] = "10,30,100,300",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Processes per size for --end-to-end.")] = 1,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Kernels against their reference: checked in float64, then timed. Or, with --end-to-end, the whole paper."""
    world = _world(_say, spec=spec, out=out)
    if whole:
        from repro.bench.end_to_end import end_to_end, parse_sizes

        end_to_end(spec, world.store, parse_sizes(sizes), repeats, _say)
        return
    from repro.bench.kernels import BenchOptions
    from repro.bench.kernels import bench as measure

    figures = world.figures_folder("bench")
    _end([measure(BenchOptions(world.store, figures, device, budget, only, compile_all, as_json), _say)])


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code; every expected failure is a sentence, not a traceback."""
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
