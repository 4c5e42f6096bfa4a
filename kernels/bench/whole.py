"""After the single calls: where the slowest one spends its time, and the kernels' part of the paper from end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from repro.kernels.bench import timing
from repro.kernels.bench.providers import BASELINE, DTYPES, PROVIDERS, Call, bind
from repro.kernels.bench.run import COMPILE_SECONDS, Bench, Group
from repro.kernels.registry import KERNELS

CALLS = {name: entry.paper_calls for name, entry in KERNELS.items() if entry.paper_calls}
PROFILE_CALLS = 5
# What the whole paper takes at least, in seconds: it is skipped when less is left.
WHOLE_SECONDS = 15.0


def profile(bench: Bench, group: Group, provider: str) -> None:
    """Add torch.profiler's table of a group's call by one provider that passed its check."""
    inputs = group.case.inputs(DTYPES[group.dtype], bench.device)
    table = profiled(bind(group.functions[provider], inputs), bench.device)
    record = {"record": "profile", "status": "ok", "provider": provider, "case": group.case.name}
    bench.report.add(
        {**record, "dtype": group.dtype, "calls": PROFILE_CALLS, "table": table},
        f"profile of what loses most against its roofline, {group.name} by {provider}, {PROFILE_CALLS} calls:",
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
    reason = "" if passed else "no provider passed every part"
    if bench.budget.left < WHOLE_SECONDS:
        reason = reason or f"less than {WHOLE_SECONDS:.0f} s of the budget are left"
    if reason:
        bench.report.add({"record": "end_to_end", "status": f"skipped: {reason}"}, f"end to end: skipped, {reason}")
        return
    passed = _affordable(bench, passed, groups)
    arguments = _arguments(groups, bench.device)
    calls = {name: _whole([bind(groups[k].functions[name], given) for k, given in arguments]) for name in passed}
    for call in calls.values():
        call()
    samples = timing.interleaved(calls, bench.budget.left / 4, bench.sync)
    first = next(iter(groups.values()))
    where, note = first.case.shape, first.note
    parts = ", ".join(f"{times} {kernel}" for kernel, times in CALLS.items())
    for name, taken in samples.items():
        low, ms, high = (1e3 * seconds for seconds in (taken.p20, taken.median, taken.p80))
        faster = taken.against(samples[BASELINE]).median if BASELINE in samples else None
        record = {
            "record": "end_to_end", "status": "ok", "provider": name, "shape": shape, "dims": where.label(),
            "dtype": dtype, "prompts": where.prompts, "calls": CALLS, "timer": timing.WALL_CLOCK,
            "samples": len(taken.seconds), "median_ms": ms, "p20_ms": low, "p80_ms": high, "faster": faster,
            "note": note,
        }  # fmt: skip
        bench.report.add(
            record,
            f"end to end ({parts}), {where.prompts} x {where.positions} tokens of "
            f"{shape}, {dtype}, {name}: {ms:.2f} ms ({low:.2f}, {high:.2f})"
            + (f", {faster:.2f}x the einsum reference" if faster is not None else "")
            + (f"; {note}" if note else ""),
        )


def _affordable(bench: Bench, names: list[str], groups: dict[str, Group]) -> list[str]:
    """Return the providers without those for whose compilations the budget has no time; say which they are."""
    left, kept = bench.budget.left - WHOLE_SECONDS, []
    for entry in PROVIDERS:
        if entry.name not in names:
            continue
        anew = [g for g in groups.values() if entry.compiles and (entry.name, g.case, g.dtype) not in bench.passed]
        needed = COMPILE_SECONDS * len(anew)
        if anew and needed > left:
            status = "skipped: compiling it anew does not fit the budget"
            record = {"record": "end_to_end", "status": status, "provider": entry.name}
            bench.report.add(record, f"end to end, {entry.name}: {status}")
            continue
        left -= needed
        kept.append(entry.name)
    return kept


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
