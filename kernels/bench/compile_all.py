"""The compile-time table as a benchmark step: processes of its own, rows as they come, an end when the budget ends."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from repro.kernels.bench.timing import Budget

Record = dict[str, Any]
_WIDTHS = (24, 8, 6, 5, 9, 46, 5, 6, 15, 5, 4, 6, 5, 5, 16, 16, 9, 24)


def in_children(
    everything: bool, budget: Budget, processes: int | None = None, only: Sequence[str] = ()
) -> Iterator[Record]:
    """Yield the records of all entries, compiled in processes without Triton's interpreter, until the budget ends.

    everything: every configuration instead of the default ones; only: of a few pairs of card and precision, such as
    `H100/bf16`. Yields one record per launch and configuration, then,
    if something is missing, one with `status` and the reason. Agreement: tests/kernels/test_compile_table.py.
    """
    if find_spec("triton") is None:
        yield {"record": "compile", "status": "unavailable: the package triton is not installed"}
        return
    count = processes or min(os.cpu_count() or 1, 8)
    children = [_start(f"{i}/{count}", everything, only) for i in range(count)]
    lines: queue.Queue[str | None] = queue.Queue()
    readers = [threading.Thread(target=_read, args=(child, lines), daemon=True) for child in children]
    for reader in readers:
        reader.start()
    running = count
    try:
        while running:
            line = lines.get(timeout=max(budget.left, 0.01))
            if line is None:
                running -= 1
            else:
                yield json.loads(line)
    except queue.Empty:
        yield {"record": "compile", "status": "skipped: the budget ended before the rest was compiled"}
    finally:
        for child in children:
            child.kill()
            child.wait()
        for reader in readers:
            reader.join()
    for child in children:
        if running == 0 and child.returncode:
            yield {"record": "compile", "status": f"failed: a compiling process ended in {child.returncode}"}


def _start(part: str, everything: bool, only: Sequence[str]) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # Not resolved: in a checkout repro/kernels is a link, and the folder above repro/ is what makes repro importable.
    root = str(Path(__file__).absolute().parents[3])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    # One thread each: the compilers use no more, and the processes share the machine.
    environment["OMP_NUM_THREADS"] = "1"
    command = [
        sys.executable,
        "-m",
        "repro.kernels.bench.compile_table",
        part,
        *(["--all"] if everything else []),
        *only,
    ]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603 - this module


def _read(child: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert child.stdout is not None
    with child.stdout as stream:
        for line in stream:
            lines.put(line)
    # The end of the output comes a moment before the end of the process, whose exit code is wanted.
    child.wait()
    lines.put(None)


def heading() -> str:
    """Return the head of the table; loop: instructions of the longest inner one, reads: times, of components."""
    names = ("launch", "shape", "card", "dtype", "precision", "configuration", "regs", "spills", "shared (limit)",
             "loop", "bar", "matrix", "reads", "forms", "MFLOP (least)", "MB (least)", "calls", "bound")  # fmt: skip
    return _joined(names)


def line_of(record: Record) -> str:
    """Return one record as a line of the table."""
    if "status" in record:
        return f"compile table {record['status']}"
    if "error" in record:
        names = ("launch", "card", "dtype", "precision")
        return "  ".join(str(record[name]) for name in names) + "  " + record["error"]
    predicted = f"{record['predicted_us']:.1f} us ({record['bound']})" if record["predicted_us"] is not None else ""
    cells = (
        record["launch"],
        record["shape"],
        record["card"],
        record["dtype"],
        record["precision"],
        record["configuration"],
        str(record["registers"]),
        str(record["spills"]),
        f"{record['shared'] / 1024:.1f} ({record['shared_limit'] // 1024}) KiB",
        str(record["loop"]),
        str(record["barriers"]),
        str(record["matrix"]),
        _times(record["component_reads"]),
        _times(record["formed"]),
        _of(record["tile_flop"], record["flop"]),
        _of(record["loaded"], record["bytes"]),
        str(record["calls"]),
        predicted,
    )
    return _joined(cells) + ("  !! " + ", ".join(record["problems"]) if record["problems"] else "")


def _times(times: float | None) -> str:
    return "" if times is None else f"{times:.1f}"


def _of(done: float | None, least: float | None) -> str:
    """Return millions done and, in brackets, the least."""
    return "" if least is None else f"{(done or least) / 1e6:.0f} ({least / 1e6:.0f})"


def _joined(cells: tuple[str, ...]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=False)).rstrip()
