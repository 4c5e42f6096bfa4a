"""What a benchmark leaves: tidy rows, one JSON object a line, and the same as a table for people."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

# BROKEN: the measurement itself ended in an error, whatever the check said.
OK, FAILED, BROKEN, UNAVAILABLE, SKIPPED = "ok", "check failed", "failed", "unavailable", "skipped"
WIDTHS = (24, 16, 6, 8, 26, 15, 9, 9, 8, 18, 12, 9)


@dataclass
class Row:
    """One provider at one case in one dtype by one timer; what was not measured is None, and `status` says why."""

    case: str
    kernel: str
    shape: str
    model: str
    dims: str
    provider: str
    dtype: str
    precision: str
    device: str
    status: str = OK
    note: str = ""
    check_result: str | None = None
    check_error: float | None = None
    """Error ratio against float64 of the worst result."""
    check_allowed: float | None = None
    timer: str | None = None
    samples: int = 0
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    faster: float | None = None
    """Median over rounds of the einsum reference's time over this provider's, both measured in the same round."""
    faster_p20: float | None = None
    faster_p80: float | None = None
    flop: float | None = None
    """The least arithmetic of the case, whatever the provider does."""
    bytes: float | None = None
    """Arguments read once and results written once."""
    matmul_flop_per_s: float | None = None
    copy_bytes_per_s: float | None = None
    floor_ms: float | None = None
    """The longer of flop / matmul rate and bytes / copy rate, rates measured in the same run."""
    bound: str | None = None
    roofline_percent: float | None = None
    peak_bytes: int | None = None
    """Peak memory beyond the arguments, results included."""
    result_bytes: int | None = None
    meter: str | None = None
    less_memory: float | None = None
    """The einsum reference's peak over this provider's."""


def environment(device: str, seconds: float) -> dict[str, Any]:
    """Return where and with what a benchmark ran: the first line of its results."""
    cuda = device == "cuda"
    properties = torch.cuda.get_device_properties(0) if cuda else None
    return {
        "record": "environment",
        "device": device_name(device),
        "kind": device,
        "arch": _arch(properties),
        "device_bytes": properties.total_memory if properties else None,
        "threads": torch.get_num_threads(),
        # Waiting threads that spin lose to other programs on a shared machine, where passive ones do not.
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "python": platform.python_version(),
        "system": platform.platform(),
        "budget_s": seconds,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def device_name(device: str) -> str:
    """Return the name by which the device calls itself."""
    if device == "cuda":
        return torch.cuda.get_device_name(0)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _arch(properties: Any) -> str | None:
    """Return the compiler's name for a GPU: sm_90, gfx942."""
    if properties is None:
        return None
    # NVIDIA's builds have the attribute of AMD's too, with another meaning.
    return str(properties.gcnArchName) if torch.version.hip else f"sm_{properties.major}{properties.minor}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass
class Report:
    """Receives records as they come: kept, written to the results file at once, and said."""

    path: Path | None = None
    as_json: bool = False
    say: Callable[[str], None] = print
    records: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """`kernel/shape dtype` of which a check failed."""
    broken: list[str] = field(default_factory=list)
    """Steps and cases that ended in an error of their own."""

    def add(self, record: dict[str, Any], *lines: str) -> None:
        """Keep a record and say it: as its own JSON line, or in the given words, the first speed below a heading."""
        if record["record"] == "speed" and not any(known["record"] == "speed" for known in self.records):
            lines = (heading(), *lines)
        line = json.dumps(record, allow_nan=False)
        if self.path is not None:
            # Written record by record: what was measured before a machine is taken away is not lost.
            with self.path.open("a" if self.records else "w", encoding="utf-8") as file:
                file.write(line + "\n")
        self.records.append(record)
        for words in (line,) if self.as_json else lines:
            self.say(words)

    def row(self, row: Row) -> None:
        """Add a row of the table."""
        self.add({"record": "speed", **asdict(row)}, line_of(row))


def heading() -> str:
    """Return the head of the table."""
    names = ("case", "provider", "dtype", "timer", "median ms (20 %, 80 %)", "vs einsum", "GFLOP", "MB", "floor ms",
             "of roofline", "peak MB", "error")  # fmt: skip
    return "  ".join(name.ljust(width) for name, width in zip(names, WIDTHS, strict=True)).rstrip()


_TIMERS = {"interleaved wall clock": "wall", "do_bench": "bench", "do_bench_cudagraph": "graph"}


def line_of(row: Row) -> str:
    """Return one row of the table; a provider without a speed says why in the speed's place."""
    start = (row.case, row.provider, row.dtype, _TIMERS.get(row.timer or "", ""))
    error = "" if row.check_error is None else f"{row.check_error:.1e}"
    if row.median_ms is None:
        words = [f"{row.status}: {row.note}" if row.note else row.status]
        return "  ".join([*(text.ljust(width) for text, width in zip(start, WIDTHS, strict=False)), *words])
    cells = (
        *start,
        f"{row.median_ms:.3f} ({row.p20_ms:.3f}, {row.p80_ms:.3f})",
        "" if row.faster is None else f"{row.faster:.2f}x in time",
        f"{(row.flop or 0) / 1e9:.2f}",
        f"{(row.bytes or 0) / 1e6:.1f}",
        f"{row.floor_ms:.3f}" if row.floor_ms is not None else "",
        f"{row.roofline_percent:.0f} % ({row.bound})" if row.roofline_percent is not None else "",
        f"{row.peak_bytes / 1e6:.2f}" + (f" ({row.less_memory:.0f}x)" if row.less_memory else "")
        if row.peak_bytes is not None
        else "",
        error,
    )
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)) + row.note


def describe(environment: dict[str, Any]) -> str:
    """Return the environment on two lines."""
    apart = ("record", "kind", "device", "system", "started")
    named = ", ".join(f"{key} {value}" for key, value in environment.items() if value is not None and key not in apart)
    return (
        f"{environment['device']} ({environment['kind']}), {named}\n{environment['system']}, {environment['started']}"
    )
