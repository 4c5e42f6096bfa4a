"""`python -m repro bench`: runs the kernels' benchmark, keeps its rows in the store and draws them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.errors import Exit, ReproError

if TYPE_CHECKING:
    from repro.kernels.bench.command import Options

Record = Mapping[str, Any]
PNG_SCALE = 2


def bench(options: Options, store: Path, figures: Path, say: Callable[[str], None] = print) -> Exit:
    """Check every kernel against float64, time those that are right, write rows and a chart.

    options: what to measure, its `out` aside; store: its root, rows go to `bench/` below it; figures: the directory of
    the chart. Returns OK, or FAILED if a check or a measurement failed: then no speed of that kernel exists. Raises
    ReproError (exit 2) for a device, case or budget that cannot be, or a store that cannot be written. Agreement:
    tests/kernels/test_bench.py.
    """
    from repro.kernels.bench import command as benchmark
    from repro.kernels.bench.report import device_name
    from repro.kernels.errors import KernelError

    folder = store / "bench"
    try:
        name = _file_name(device_name(benchmark.resolve(options.device)), options.only)
        folder.mkdir(parents=True, exist_ok=True)
        # A run that is cut short leaves its rows beside the last whole ones, not in their place.
        unfinished = folder / f"{name}.jsonl.part"
        report = benchmark.run(replace(options, out=unfinished), say)
        unfinished.replace(folder / f"{name}.jsonl")
    except KernelError as error:
        raise ReproError(str(error)) from None
    except OSError as error:
        raise ReproError(f"{folder}: results cannot be written ({error.strerror})") from None
    drawn = draw(report.records, figures)
    if not options.as_json:
        say(f"rows: {folder / f'{name}.jsonl'}" + (f"; chart: {drawn}" if drawn else "; nothing to draw"))
    return Exit.FAILED if report.failed or report.broken else Exit.OK


def _file_name(device: str, only: str | None) -> str:
    """Return one file per device; a selection never takes the place of the whole."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "device"
    return slug if only is None else f"{slug}-selected"


def draw(records: Sequence[Record], folder: Path) -> Path | None:
    """Draw the speeds as png and svg; the svg's path, or None where no speed was measured."""
    from paper_figures import bench as view

    dataset = dataset_of(records)
    if dataset is None:
        return None
    chart = view.chart(dataset)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        chart.save(folder / "bench.png", scale_factor=PNG_SCALE)
        chart.save(folder / "bench.svg")
    except OSError as error:
        raise ReproError(f"{folder}: the chart cannot be written ({error.strerror})") from None
    return folder / "bench.svg"


def dataset_of(records: Sequence[Record]) -> Any:
    """Return the measured rows of one timer as a Dataset over `row`, for `paper_figures.bench`; None if there are none.

    median, lower and upper (20 and 80 %), floor in milliseconds; peak in bytes; faster: times the einsum reference.
    """
    import xarray as xr

    rows = [r for r in records if r["record"] == "speed" and r["median_ms"] is not None]
    # Of a GPU's two timers the one that includes launches is drawn: it is what a caller sees.
    rows = [r for r in rows if r["timer"] == rows[0]["timer"]]
    seen = next((r for r in records if r["record"] == "environment"), None)
    if not rows or seen is None:
        return None
    fields = {"lower": "p20_ms", "median": "median_ms", "upper": "p80_ms", "floor": "floor_ms", "faster": "faster",
              "peak": "peak_bytes"}  # fmt: skip
    values = {
        name: ("row", [math.nan if row[field] is None else float(row[field]) for row in rows])
        for name, field in fields.items()
    }
    cases = [f"{row['kernel']} · {row['model']} · {row['dtype']} · {row['dims']}" for row in rows]
    threads = f"{seen['threads']} thread{'s' * (seen['threads'] > 1)}" if seen["kind"] == "cpu" else str(seen["arch"])
    versions = f"torch {seen['torch']}, triton {seen['triton']}, python {seen['python']}"
    attrs = {
        "title": "Kernels: time and memory of every provider",
        "subtitle": f"{seen['device']}, {threads} · {versions} · all agreed with float64 before they were timed",
        "notes": [f"Timer: {rows[0]['timer']}. Peak memory: {rows[0]['meter']}, results included."],
    }
    names = {"case": ("row", cases), "provider": ("row", [row["provider"] for row in rows])}
    return xr.Dataset(values, names, attrs)
