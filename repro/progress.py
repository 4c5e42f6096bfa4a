"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere; both with rate and time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINES = 5
"""Plain lines about one piece of work, at most."""


@contextmanager
def progress(
    total: int, what: str, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each of `total` steps.

    what: the steps' plural, `units`; say: prints the plain lines; clock: seconds.
    """
    with _bar(total, what) if sys.stdout.isatty() else _lines(total, what, say) as show:
        started, done = clock(), 0

        def advance() -> None:
            nonlocal done
            done += 1
            show(done, pace(done, total, clock() - started))

        yield advance


@contextmanager
def _bar(total: int, what: str) -> Iterator[Callable[[int, str], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    with Progress(*columns, transient=True) as bars:
        task = bars.add_task(what, total=total, pace="")
        yield lambda done, told: bars.update(task, completed=done, pace=told)


@contextmanager
def _lines(total: int, what: str, say: Callable[[str], None]) -> Iterator[Callable[[int, str], None]]:
    step = max(-(-total // LINES), 1)

    def show(done: int, told: str) -> None:
        if done % step == 0 or done == total:
            say(f"  {done}/{total} {what}{', ' if told else ''}{told}")

    yield show


def pace(done: int, total: int, seconds: float) -> str:
    """Return rate and time left, `1.2 a second, 40 s left`; empty where nothing can be said yet or nothing is left."""
    if done < 1 or done >= total or seconds <= 0:
        return ""
    rate = done / seconds
    words = f"{_few(rate)} a second" if rate >= 1 else f"{duration(1 / rate)} each"
    return f"{words}, {duration((total - done) / rate)} left"


def _few(number: float) -> str:
    """Return a number with two digits that count, whole from 10 on."""
    return f"{number:.2g}" if number < 10 else f"{number:,.0f}"


def duration(seconds: float) -> str:
    """Return a time as people say it: `0.4 s`, `40 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{round(seconds / 60)} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
