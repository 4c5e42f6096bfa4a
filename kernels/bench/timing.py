"""Time: a budget that runs out, and samples taken in turns so that a busy machine is equally unkind to everyone."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MIN_ROUNDS, MAX_ROUNDS = 5, 40
GPU_ROUNDS = 3
WALL_CLOCK, DO_BENCH, CUDA_GRAPH = "interleaved wall clock", "do_bench", "do_bench_cudagraph"

Clock = Callable[[], float]
Call = Callable[[], Any]


def parse_budget(text: str) -> float:
    """Return seconds from `90s`, `8m`, `1h` or a bare number. Raises ValueError naming what was given."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"{text!r} is no length of time: write 90s, 8m or 1h")
    return seconds


@dataclass
class Budget:
    """How much time is left; the clock is given so that tests can turn it."""

    seconds: float
    clock: Clock = time.monotonic
    start: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.clock()

    @property
    def spent(self) -> float:
        """Return the seconds since the start."""
        return self.clock() - self.start

    @property
    def left(self) -> float:
        """Return the seconds until the end; negative afterwards."""
        return self.seconds - self.spent


@dataclass(frozen=True)
class Samples:
    """Seconds of repeated calls."""

    seconds: list[float]
    rounds: list[float]
    """One number per round, in which every call had its turn: what ratios are taken from."""

    @property
    def median(self) -> float:
        """Return the middle sample."""
        return statistics.median(self.seconds)

    @property
    def p20(self) -> float:
        """Return the sample that a fifth of the samples is faster than."""
        return float(np.quantile(self.seconds, 0.2))

    @property
    def p80(self) -> float:
        """Return the sample that a fifth of the samples is slower than."""
        return float(np.quantile(self.seconds, 0.8))

    def against(self, other: Samples) -> Samples:
        """Return how many times as long the other takes, round by round: noise that both met in one round cancels."""
        ratios = [b / a for a, b in zip(self.rounds, other.rounds, strict=True)]
        return Samples(ratios, ratios)


def interleaved(
    calls: Mapping[str, Call], allowance: float, sync: Call, clock: Clock = time.perf_counter
) -> dict[str, Samples]:
    """Time every call once a round, in an order that turns, for MIN_ROUNDS rounds or about `allowance` seconds.

    calls: name -> function, all warmed up; sync: waits for the device. Returns name -> samples of equal number.
    """
    names = list(calls)
    taken: dict[str, list[float]] = {name: [] for name in names}
    start = clock()
    for turn in range(MAX_ROUNDS):
        if turn >= MIN_ROUNDS and clock() - start > allowance:
            break
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            sync()
            before = clock()
            result = calls[name]()
            sync()
            taken[name].append(clock() - before)
            # Released only now: giving memory back is no part of the call.
            del result
    return {name: Samples(seconds, seconds) for name, seconds in taken.items()}


def on_device(
    calls: Mapping[str, Call], timer: str, allowance: float, clock: Clock = time.monotonic
) -> dict[str, Samples]:
    """Time every call by one of Triton's timers, in turns: `do_bench` flushes the cache and includes launches.

    `do_bench_cudagraph` replays a recorded graph: no launches, no flushes. A call that cannot be recorded is absent,
    and so is one whose turn would not end within the allowance; a round that was not finished does not count.
    """
    start, slowest = clock(), 0.0
    taken: dict[str, list[list[float]]] = {name: [] for name in calls}
    for turn in range(GPU_ROUNDS):
        for name in list(taken):
            before = clock()
            if before - start + slowest > allowance:
                return _sampled({known: found[: max(turn, 1)] for known, found in taken.items()})
            try:
                taken[name].append([ms / 1e3 for ms in _triton_timer(calls[name], timer)])
            except RuntimeError as error:
                if timer != CUDA_GRAPH or lost(str(error)):
                    raise
                del taken[name]
            slowest = max(slowest, clock() - before)
    return _sampled(taken)


def _sampled(taken: Mapping[str, list[list[float]]]) -> dict[str, Samples]:
    """Return the samples of every call that has any; each as many rounds as the others."""
    return {
        name: Samples([x for found in by_round for x in found], [statistics.median(found) for found in by_round])
        for name, by_round in taken.items()
        if by_round
    }


def lost(words: str) -> bool:
    """Return whether an error's words say that its device is lost to this process: an assert, an illegal access."""
    return any(sign in words for sign in ("device-side assert", "illegal memory access", "unspecified launch failure"))


def _triton_timer(call: Call, timer: str) -> list[float]:
    """Return the milliseconds of the calls of one round."""
    from triton import testing

    if timer == DO_BENCH:
        samples: list[float] = testing.do_bench(call, warmup=10, rep=40, return_mode="all")
    else:
        samples = testing.do_bench_cudagraph(call, rep=20, return_mode="all")
    return samples
