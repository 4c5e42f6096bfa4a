"""Progress of a long pass: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[], None]
LINES = 10


@contextmanager
def progress(total: int, what: str, say: Callable[[str], None]) -> Iterator[Advance]:
    """Yield a function to call after each of `total` steps.

    what: shown beside the bar; say: prints the plain lines, about ten of them.
    """
    if sys.stdout.isatty():
        yield from _bar(total, what)
    else:
        yield from _lines(total, what, say)


def _bar(total: int, what: str) -> Iterator[Advance]:
    from rich.progress import Progress

    with Progress(transient=True) as bars:
        task = bars.add_task(what, total=total)
        yield lambda: bars.advance(task)


def _lines(total: int, what: str, say: Callable[[str], None]) -> Iterator[Advance]:
    done = 0
    step = max(total // LINES, 1)

    def advance() -> None:
        nonlocal done
        done += 1
        if done % step == 0 or done == total:
            say(f"  {done}/{total} {what}")

    yield advance
