"""What bounds every kernel on a device, measured there: a copy and a matrix product of every precision."""

from __future__ import annotations

from repro.kernels.bench import timing
from repro.kernels.bench.providers import dtypes
from repro.kernels.bench.run import Bench

# A GPU's rates take at most so many seconds of a budget.
SECONDS = 20.0


def measure_rates(bench: Bench) -> None:
    """Measure copy and matrix-product rates that bound every kernel; on a CPU again beside each case."""
    meters = {name: meter for dtype in dtypes(bench.device) for name, meter in bench.meters(dtype).items()}
    calls = {name: meter.run for name, meter in meters.items()}
    for call in calls.values():
        call()
    if bench.device == "cuda":
        allowance = min(SECONDS, bench.budget.left)
        taken = timing.on_device(calls, timing.DO_BENCH, allowance, bench.budget.clock)
    else:
        taken = timing.interleaved(calls, 0.0, bench.sync)
    for name, samples in taken.items():
        rate, unit = meters[name].amount / samples.median, "B" if name == "copy" else "FLOP"
        bench.rates[name] = rate
        record = {"record": "rate", "meter": name, "per_second": rate, "unit": unit, "samples": len(samples.seconds),
                  "seconds": samples.seconds}  # fmt: skip
        bench.report.add(record, f"measured here: {name} {rate / 1e9:.1f} G{unit}/s")
