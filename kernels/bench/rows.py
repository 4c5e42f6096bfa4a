"""One row of the results: what was asked, how far it lies from float64, how long it took, and what bounds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from repro.kernels.bench import roofline
from repro.kernels.bench.cases import Case
from repro.kernels.bench.gate import Check
from repro.kernels.bench.providers import Provider
from repro.kernels.bench.report import Row, device_name
from repro.kernels.bench.timing import Samples
from repro.kernels.work import Work


def row_of(
    case: Case, dtype: str, entry: Provider, device: str, verdict: Check | None, status: str = "ok", note: str = ""
) -> Row:
    """Return the row of a provider at a case, with the verdict on it if there is one."""
    row = Row(
        case=case.name,
        kernel=case.kernel.name,
        shape=case.shape.name,
        model=case.shape.model,
        dims=case.shape.label(),
        provider=entry.name,
        dtype=dtype,
        precision=entry.precision(dtype),
        device=device_name(device),
        status=status,
        note=note,
    )
    if verdict is None:
        return row
    error = verdict.error if math.isfinite(verdict.error) else None
    return replace(row, check_result=verdict.result, check_error=error, check_allowed=verdict.allowed)


def with_speed(row: Row, samples: Samples, baseline: Samples | None, timer: str) -> Row:
    """Return the row with the times that one timer took, against the baseline's in the same rounds."""
    row.timer, row.samples = timer, len(samples.seconds)
    row.median_ms, row.p20_ms, row.p80_ms = (1e3 * x for x in (samples.median, samples.p20, samples.p80))
    if baseline is not None:
        ratio = samples.against(baseline)
        row.faster, row.faster_p20, row.faster_p80 = ratio.median, ratio.p20, ratio.p80
    return row


def with_floor(row: Row, work: Work, rates: Mapping[str, float]) -> Row:
    """Return the row with its least work, and with the least time for it at the rates measured in this run."""
    row.flop, row.bytes = work.flop, work.bytes
    rate, bandwidth = rates.get(f"matmul {row.precision}"), rates.get("copy")
    if rate is None or bandwidth is None:
        return row
    row.matmul_flop_per_s, row.copy_bytes_per_s = rate, bandwidth
    seconds, row.bound = roofline.floor(work, rate, bandwidth)
    row.floor_ms = 1e3 * seconds
    assert row.median_ms is not None
    row.roofline_percent = 100 * row.floor_ms / row.median_ms
    return row
