"""After the single calls: where the slowest one spends its time, and the kernels' part of the paper from end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from repro.kernels.bench import timing
from repro.kernels.bench.providers import BASELINE, DTYPES, PROVIDERS, Call, bind
from repro.kernels.bench.run import Bench, Group
from repro.kernels.registry import KERNELS

CALLS = {name: entry.paper_calls for name, entry in KERNELS.items() if entry.paper_calls}
PROFILE_CALLS = 5
# What the steps take at least, in seconds: they are skipped when less is left.
PROFILE_SECONDS, WHOLE_SECONDS = 10.0, 15.0


def profile_slowest(bench: Bench, todo: Iterable[Group], ours: tuple[str, ...]) -> None:
    """Add torch.profiler's table for the call of ours that lies farthest below its roofline, in time lost.

    todo: the groups that were timed; ours: names of providers that are ours to improve.
    """
    timed = [r for r in bench.report.records if r["record"] == "speed" and r["median_ms"] and r["provider"] in ours]
    worst = max(timed, key=lambda r: r["median_ms"] - (r["floor_ms"] or 0.0), default=None)
    if worst is None:
        bench.report.add({"record": "profile", "status": "nothing was timed"}, "profile: nothing was timed")
        return
    if not bench.budget.fits(PROFILE_SECONDS):
        bench.report.add(
            {"record": "profile", "status": "skipped: the budget ended"}, "profile: skipped, the budget ended"
        )
        return
    group = next(g for g in todo if (g.case.name, g.dtype) == (worst["case"], worst["dtype"]))
    inputs = group.case.inputs(DTYPES[group.dtype], bench.device)
    call = bind(group.functions[worst["provider"]], inputs)
    table = profiled(call, bench.device)
    what = f"{worst['case']} by {worst['provider']} in {worst['dtype']}"
    lost = f"{worst['median_ms']:.3f} ms, floor {worst['floor_ms'] or 0.0:.3f} ms"
    record = {"record": "profile", "status": "ok", "provider": worst["provider"], "case": worst["case"]}
    bench.report.add(
        {**record, "dtype": worst["dtype"], "calls": PROFILE_CALLS, "table": table},
        f"profile of the slowest, {what} ({lost}), {PROFILE_CALLS} calls:",
        table,
    )


def profiled(call: Callable[[], Any], device: str) -> str:
    """Return torch.profiler's table of operations, by time on the device."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    call()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PROFILE_CALLS):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
    return str(
        profile.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=12, max_name_column_width=48)
    )


def end_to_end(bench: Bench, todo: Iterable[Group], shape: str, dtype: str = "fp32") -> None:
    """Time the kernels' part of the paper, each as often as its entry in the registry says.

    todo: the groups that were checked; shape: the name of a declared shape. Adds one record per provider that has
    passed its check in all of them.
    """
    groups = {g.case.kernel.name: g for g in todo if (g.case.shape.name, g.dtype) == (shape, dtype)}
    passed = [
        entry.name
        for entry in PROVIDERS
        if all(kernel in groups and entry.name in groups[kernel].functions for kernel in CALLS)
    ]
    failed = sorted(bench.failed & set(CALLS))
    reason = f"a check of {', '.join(failed)} failed" if failed else "" if passed else "its parts were not all checked"
    if not bench.budget.fits(WHOLE_SECONDS):
        reason = reason or "the budget ended"
    if reason:
        bench.report.add({"record": "end_to_end", "status": f"skipped: {reason}"}, f"end to end: skipped, {reason}")
        return
    arguments = _arguments(groups, bench.device)
    calls = {name: _whole([bind(groups[k].functions[name], given) for k, given in arguments]) for name in passed}
    for call in calls.values():
        call()
    samples = timing.interleaved(calls, bench.budget.left / 4, bench.sync)
    where = next(iter(groups.values())).case.shape
    parts = ", ".join(f"{times} {kernel}" for kernel, times in CALLS.items())
    for name, taken in samples.items():
        low, ms, high = (1e3 * seconds for seconds in (taken.p20, taken.median, taken.p80))
        faster = taken.against(samples[BASELINE]).median if BASELINE in samples else None
        record = {
            "record": "end_to_end", "status": "ok", "provider": name, "shape": shape, "dims": where.label(),
            "dtype": dtype, "prompts": where.prompts, "calls": CALLS, "timer": timing.WALL_CLOCK,
            "samples": len(taken.seconds), "median_ms": ms, "p20_ms": low, "p80_ms": high, "faster": faster,
        }  # fmt: skip
        bench.report.add(
            record,
            f"end to end ({parts}), {where.prompts} x {where.positions} tokens of "
            f"{shape}, {dtype}, {name}: {ms:.2f} ms ({low:.2f}, {high:.2f})"
            + (f", {faster:.2f}x the einsum reference" if faster is not None else ""),
        )


def _arguments(groups: dict[str, Group], device: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (kernel, arguments) of every call, layer after layer: the sites are the same, the heads are not."""
    calls = []
    for kernel, times in CALLS.items():
        given = groups[kernel].case.inputs(DTYPES[groups[kernel].dtype], device)
        # The same numbers in other places, so that no layer finds its data in a cache.
        heads = {name: given[name] for name in ("z", "W_O") if times > 1}
        calls += [
            (kernel, given | {name: tensor.roll(i, dims=-1) for name, tensor in heads.items()}) for i in range(times)
        ]
    return calls


def _whole(calls: list[Call]) -> Callable[[], None]:
    def whole() -> None:
        for call in calls:
            call()

    return whole
