"""The compile-time table as a benchmark step: processes of its own, rows as they come, an end when the budget ends."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from repro.kernels.bench.timing import Budget

Record = dict[str, Any]
_WIDTHS = (24, 8, 6, 5, 9, 46, 5, 6, 15, 18)


def in_children(
    everything: bool, budget: Budget, processes: int | None = None, only: Sequence[str] = ()
) -> Iterator[Record]:
    """Yield the records of all entries, compiled in processes without Triton's interpreter, until the budget ends.

    everything: every configuration instead of the default ones; only: of a few pairs of card and precision, such as
    `H100/bf16`. Yields one record per launch and configuration, and,
    if something is missing, one with `status` and the reason. Agreement: tests/kernels/test_compile_table.py.
    """
    if find_spec("triton") is None:
        yield {"record": "compile", "status": "unavailable: the package triton is not installed"}
        return
    context = multiprocessing.get_context("spawn")
    count = processes or min(os.cpu_count() or 1, 8)
    running: dict[Connection, BaseProcess] = {}  # where a process's rows arrive -> the process
    try:
        for first in range(count):
            rows, theirs = context.Pipe(duplex=False)
            running[rows] = context.Process(target=_compile, args=(first, count, everything, only, theirs))
            running[rows].start()
            theirs.close()
        while running:
            ready = wait(list(running), timeout=max(budget.left, 0.01))
            if not ready:
                yield {"record": "compile", "status": "skipped: the budget ended before the rest was compiled"}
                return
            for rows, child in list(running.items()):  # a copy: a process that has ended is taken out
                if rows not in ready:
                    continue
                try:
                    yield rows.recv()
                except EOFError:
                    del running[rows]
                    child.join()
                    if child.exitcode:
                        reason = f"failed: a compiling process ended in {child.exitcode}"
                        yield {"record": "compile", "status": reason}
    finally:
        for child in running.values():
            child.kill()
            child.join()


def _compile(first: int, step: int, everything: bool, only: Sequence[str], rows: Connection) -> None:
    """Compile every step-th entry and send its rows: what a process runs that has not imported torch or triton yet."""
    os.environ.pop("TRITON_INTERPRET", None)
    # The compilers use no more than one thread, and the processes share the machine.
    os.environ["OMP_NUM_THREADS"] = "1"
    from repro.kernels.bench.compile_table import table

    for row in table(everything, only, first, step):
        rows.send(row)


def heading() -> str:
    """Return the head of the table."""
    return _joined("launch", "shape", "card", "dtype", "precision", "configuration", "regs", "spills", "shared (limit)",
                   "bound")  # fmt: skip


def line_of(record: Record) -> str:
    """Return one record as a line of the table: what a reader asks first; the record holds the rest."""
    if "status" in record:
        return f"compile table {record['status']}"
    if "error" in record:
        names = ("launch", "card", "dtype", "precision")
        return "  ".join(str(record[name]) for name in names) + "  " + record["error"]
    columns = ("launch", "shape", "card", "dtype", "precision", "configuration", "registers", "spills")
    shared = f"{record['shared'] / 1024:.1f} ({record['shared_limit'] // 1024}) KiB"
    predicted = f"{record['predicted_us']:.1f} us ({record['bound']})" if record["predicted_us"] is not None else ""
    line = _joined(*(str(record[name]) for name in columns), shared, predicted)
    return line + ("  !! " + ", ".join(record["problems"]) if record["problems"] else "")


def _joined(*cells: str) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()
