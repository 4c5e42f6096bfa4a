"""Tiles side by side: one thread each, with single-threaded products inside, instead of many small parallel ones.

A product of a tile is too short to be worth sharing: where another program holds one core, everybody waits for it at
every product. Here a thread takes the next tile when it is done with one, so nobody waits before the end, and no bit
depends on how many threads there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

Tile = TypeVar("Tile")


def each(tiles: Sequence[Tile], start: Callable[[], Callable[[Tile], None]]) -> None:
    """Do something for every tile, in as many threads as torch may use here.

    start: called once in every thread, for scratch of its own; returns what is done for a tile. What a tile raises is
    raised here. Agreement: tests/kernels/test_parallel.py.
    """
    threads = min(torch.get_num_threads(), len(tiles))
    if threads == 1:
        with _single():
            _take(iter(tiles), start)
        return
    left = iter(tiles)  # a list's iterator gives every tile once, whoever asks
    inference = torch.is_inference_mode_enabled()

    def take() -> None:
        # Both are a thread's own, and what this thread made under one could not be written under the other.
        with torch.inference_mode(inference), torch.no_grad():
            _take(left, start)

    others = [_pool(threads).submit(take) for _ in range(threads)]
    for other in others:
        other.result()


def _take(left: Iterator[Tile], start: Callable[[], Callable[[Tile], None]]) -> None:
    """Do the tiles that nobody has taken yet."""
    do = start()
    for tile in left:
        do(tile)


@contextmanager
def _single() -> Iterator[None]:
    """Multiply in one thread for as long as this lasts."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return threads, all started, in each of which torch multiplies alone."""
    before = torch.get_num_threads()
    together = threading.Barrier(threads)

    def begin() -> None:
        torch.get_num_threads()  # without having asked, a thread forgets at its first product what it is set to
        torch.set_num_threads(1)
        together.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="tiles")
    for started in [pool.submit(begin) for _ in range(threads)]:
        started.result()
    # The number is each thread's own, but the last one that was set is what a thread starts with that comes later.
    torch.set_num_threads(before)
    return pool
