"""Block sizes: the declared default, or the fastest candidate on this device where tuning was asked for.

A launch is built once for all tensors of the same shapes, strides and types, and then given others: what Python spends
before each launch would otherwise be more than many a kernel takes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from repro.kernels.launch.launch import Argument, Launch

Blocks = Mapping[str, int]
Timer = Callable[[Launch], float]

_enabled = False
_candidate = 0
_fastest: dict[tuple[Any, ...], Blocks] = {}
_built: dict[tuple[Any, ...], Launch] = {}
# Beyond so many shapes all are built anew: a process that sees more does not repeat them.
_MOST_BUILT = 4096


@contextmanager
def tuning() -> Iterator[None]:
    """Time each launch's candidates first within this context, once per kernel, shape and device.

    Off by default, because another choice of blocks is another order of summation, hence other last bits.
    """
    global _enabled
    before, _enabled = _enabled, True
    try:
        yield
    finally:
        _enabled = before


@contextmanager
def candidate(index: int) -> Iterator[None]:
    """Take each launch's candidate of this index, or its last, within this context: to compile what tuning may take."""
    global _candidate
    before, _candidate = _candidate, index
    try:
        yield
    finally:
        _candidate = before


def choose(
    name: str,
    tensors: Mapping[str, Argument],
    extra: tuple[Any, ...],
    candidates: Sequence[Blocks],
    build: Callable[[Blocks], Launch],
    time: Timer | None = None,
) -> Launch:
    """Return the launch that `build` makes of the first candidate, or within `tuning()` of the fastest.

    name: of the kernel; tensors: its tensor arguments; extra: what else its grid and numbers depend on; candidates:
    block sizes, the default first; build: called once for all tensors that lie alike; time: milliseconds of a launch
    (Triton's own timer unless given; launches on a CPU are never timed). Agreement: tests/kernels/test_launch.py.
    """
    key = (name, extra, _enabled, _candidate, *map(_layout, tensors.values()))
    if key in _built:
        return _built[key].on(tensors)
    launch = _chosen(key, candidates, build, time)
    if len(_built) >= _MOST_BUILT:
        _built.clear()
    _built[key] = launch.on(dict.fromkeys(tensors))  # keeps no tensor alive
    return launch


def _layout(tensor: Argument) -> tuple[Any, ...] | None:
    """Return all of a tensor that a launch may depend on, but for its address."""
    if not isinstance(tensor, torch.Tensor):
        return None
    return (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def _chosen(
    key: tuple[Any, ...], candidates: Sequence[Blocks], build: Callable[[Blocks], Launch], time: Timer | None
) -> Launch:
    default = build(candidates[min(_candidate, len(candidates) - 1)])
    timer = _milliseconds if time is None else time
    if not _enabled or (time is None and not _on_gpu(default)):
        return default
    if key not in _fastest:
        timed = [(_time_or_never(build(blocks), timer), index) for index, blocks in enumerate(candidates)]
        _fastest[key] = candidates[min(timed)[1]]
    return build(_fastest[key])


def _on_gpu(launch: Launch) -> bool:
    """Return whether a launch's tensors live on a GPU."""
    return any(isinstance(value, torch.Tensor) and value.is_cuda for value in launch.arguments.values())


def _time_or_never(launch: Launch, timer: Timer) -> float:
    """Return a candidate's time; one that asks more shared memory than the card has is never chosen."""
    from triton.runtime.errors import OutOfResources

    try:
        return timer(launch)
    except OutOfResources:
        return float("inf")


def _milliseconds(launch: Launch) -> float:
    """Return the median time of a launch."""
    from triton.testing import do_bench

    return float(do_bench(launch.run, return_mode="median"))
