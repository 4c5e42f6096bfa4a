"""Peak memory of a call beyond its inputs, by a meter named in every row: process size is noise at this scale."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

CPU_METER = "torch.profiler, CPU allocator events"
CUDA_METER = "torch.cuda.max_memory_allocated"


class Peak(NamedTuple):
    """Bytes live at the worst moment of a call, above what was live before it, and who says so."""

    bytes: int
    meter: str


def peak_memory(call: Callable[[], Any], device: str) -> Peak:
    """Return the most memory that a call holds beyond its inputs, its results included.

    CPU: every allocation and release of torch's allocator, also those inside an operation or a compiled kernel, summed
    in time; scratch space that a matrix library takes for itself is not seen. CUDA: the caching allocator's own count.
    Raises nothing of its own. Agreement: tests/bench/test_bench_parts.py, test_the_meter_counts_what_is_allocated.
    """
    return _cuda(call) if device.startswith("cuda") else _cpu(call)


def _cuda(call: Callable[[], Any]) -> Peak:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return Peak(peak, CUDA_METER)


def _cpu(call: Callable[[], Any]) -> Peak:
    # Without this the profiler's library announces on standard error that it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    del result
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return Peak(_highest([event for event in events if event.get("name") == "[memory]"]), CPU_METER)


def _highest(events: list[dict[str, Any]]) -> int:
    """Return the largest running sum of allocations less releases."""
    live = highest = 0
    for event in sorted(events, key=lambda event: (event["ts"], event["args"]["Ev Idx"])):
        live += event["args"]["Bytes"]
        highest = max(highest, live)
    return highest
