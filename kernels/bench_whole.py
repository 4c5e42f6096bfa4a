"""After the single calls: where the slowest one spends its time, and the kernels' part of the paper from end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from repro.kernels import bench_time as timing
from repro.kernels.bench_providers import BASELINE, DTYPES, PROVIDERS, Provider, bind
from repro.kernels.bench_run import Bench, Group
from repro.kernels.cases import Case, every

LAYERS = 4
PROFILE_CALLS = 5
# What the steps take at least, in seconds: they are skipped when less is left.
PROFILE_SECONDS, WHOLE_SECONDS = 10.0, 15.0


def profile_slowest(bench: Bench, todo: Iterable[Group], ours: tuple[str, ...]) -> None:
    """Adds torch.profiler's table for the call of ours that lies farthest below its roofline, in time lost.

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
    """torch.profiler's table of operations, by time on the device."""
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


def end_to_end(bench: Bench, shape: str, ours: tuple[str, ...], dtype: str = "fp32") -> None:
    """Times the kernels' part of the paper: sites on the heads of four layers, one V-composition, top-2 of every row.

    shape: the name of a declared shape; ours: the providers to run beside the reference. Adds one record per provider.
    """
    cases = {case.kernel.name: case for case in every() if case.shape.name == shape}
    needed = ("projection", "v_composition", "top2_logits")
    failed = sorted(bench.failed & set(needed))
    if failed or not bench.budget.fits(WHOLE_SECONDS):
        reason = f"a check of {', '.join(failed)} failed" if failed else "the budget ended"
        bench.report.add({"record": "end_to_end", "status": f"skipped: {reason}"}, f"end to end: skipped, {reason}")
        return
    calls: dict[str, Callable[[], None]] = {}
    inputs = _inputs(cases, needed, bench.device, dtype)
    for entry in PROVIDERS:
        if entry.name not in (BASELINE, *ours) or bench.device not in entry.devices:
            continue
        whole = _whole(entry, inputs, bench.device)
        whole()
        calls[entry.name] = whole
    samples = timing.interleaved(calls, bench.budget.left / 4, bench.sync)
    for name, taken in samples.items():
        ms, faster = 1e3 * taken.median, taken.against(samples[BASELINE]).median
        prompts = cases["projection"].shape.prompts
        bench.report.add(
            {
                "record": "end_to_end", "status": "ok", "provider": name, "shape": shape, "dtype": dtype,
                "prompts": prompts, "layers": LAYERS, "median_ms": ms, "p20_ms": 1e3 * taken.p20, "p80_ms": 1e3 * taken.p80,
                "samples": len(taken.seconds), "faster": faster, "timer": timing.WALL_CLOCK,
            },
            f"end to end, {prompts} prompts of {shape} ({LAYERS} projections, V-composition, top-2), {name}, {dtype}: "
            f"{ms:.2f} ms ({1e3 * taken.p20:.2f}, {1e3 * taken.p80:.2f}), {faster:.2f}x the einsum reference",
        )  # fmt: skip


Arguments = list[tuple[str, dict[str, Any]]]


def _inputs(cases: dict[str, Case], needed: tuple[str, ...], device: str, dtype: str) -> Arguments:
    """(kernel, arguments) of every call, layer after layer: the sites are the same, the heads are not."""
    made = {kernel: cases[kernel].inputs(DTYPES[dtype], device) for kernel in needed}
    first = made["projection"]
    layers = [{**first, "z": _rolled(first["z"], i), "W_O": _rolled(first["W_O"], i)} for i in range(LAYERS)]
    return [*(("projection", layer) for layer in layers), *((kernel, made[kernel]) for kernel in needed[1:])]


def _rolled(tensor: Tensor, by: int) -> Tensor:
    """Another tensor with the same numbers in other places, so that no layer finds its data in a cache."""
    return tensor.roll(by, dims=-1)


def _whole(entry: Provider, inputs: Arguments, device: str) -> Callable[[], None]:
    functions = {kernel: entry.function(kernel, device) for kernel, _ in inputs}
    calls = [bind(functions[kernel], arguments) for kernel, arguments in inputs]

    def whole() -> None:
        for call in calls:
            call()

    return whole
