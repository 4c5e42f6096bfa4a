"""Block sizes: the declared default, or the fastest candidate on this device where tuning was asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from repro.kernels.launch.launch import Launch

Blocks = Mapping[str, int]

_enabled = False
_fastest: dict[tuple[Any, ...], Blocks] = {}


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


def choose(
    key: tuple[Any, ...],
    candidates: Sequence[Blocks],
    build: Callable[[Blocks], Launch],
    time: Callable[[Launch], float] | None = None,
) -> Launch:
    """Return the launch that `build` makes of the first candidate, or within `tuning()` of the fastest.

    key: kernel, shape, dtype, precision and device; candidates: block sizes, the default first; time: milliseconds of
    a launch (Triton's own timer unless given; launches on a CPU are never timed).
    Agreement: tests/kernels/test_projection.py.
    """
    default = build(candidates[0])
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


def _time_or_never(launch: Launch, timer: Callable[[Launch], float]) -> float:
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
