"""Tiles side by side: one thread each, with single-threaded products inside, instead of many small parallel ones.

A product of a tile is too short to be worth sharing: where another program holds one core, everybody waits for it at
every product. Here a thread takes the next tile when it is done with one, so nobody waits before the end, and no bit
depends on how many threads there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from queue import SimpleQueue
from typing import TypeVar

import torch

Tile = TypeVar("Tile")
Job = Callable[[], None]


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
    left, stopped = iter(tiles), threading.Event()  # a list's iterator gives every tile once, whoever asks
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    inference = torch.is_inference_mode_enabled()

    def job() -> None:
        try:
            # Both are a thread's own, and what this thread made under one could not be written under the other.
            with torch.inference_mode(inference), torch.no_grad():
                _take((tile for tile in left if not stopped.is_set()), start)
        except BaseException as error:
            ended.put(error)
        else:
            ended.put(None)

    jobs = _team(threads)
    try:
        for _ in range(threads):
            jobs.put(job)
        errors = [ended.get() for _ in range(threads)]
    finally:
        stopped.set()  # whoever interrupts this thread does not wait for tiles that nobody wants any more
    for error in errors:
        if error is not None:
            raise error


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
def _team(threads: int) -> SimpleQueue[Job]:
    """Return the queue of jobs of so many threads, all started, in each of which torch multiplies alone.

    Not the standard library's pool: its locks are Python's own, and an interruption that meets this thread just behind
    one leaves it locked, so that the process never ends. A SimpleQueue has no such gap, and daemons keep nobody.
    """
    before = torch.get_num_threads()
    jobs: SimpleQueue[Job] = SimpleQueue()
    begun: SimpleQueue[None] = SimpleQueue()

    def work() -> None:
        torch.get_num_threads()  # without having asked, a thread forgets at its first product what it is set to
        torch.set_num_threads(1)
        begun.put(None)
        while True:
            jobs.get()()

    for number in range(threads):
        threading.Thread(target=work, name=f"tiles_{number}", daemon=True).start()
    for _ in range(threads):
        begun.get()
    # The number is each thread's own, but the last one that was set is what a thread starts with that comes later.
    torch.set_num_threads(before)
    return jobs
