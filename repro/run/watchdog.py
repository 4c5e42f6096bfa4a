"""A run that hangs is ended, and a log says where every thread was; running again goes on."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
from pathlib import Path
from typing import IO, Self

from repro import files
from repro.errors import Exit, ReproError

GRACE_S = 1.0
"""Seconds more for a process in which no Python thread can run, because native code keeps the interpreter's lock."""

ENDED = (
    "no unit was finished for {seconds:g} s (--watchdog): ended; {log} says where it hung; run the same command again "
    "to go on"
)


class Watchdog:
    """Ends the process (exit 1) when `feed` was not called for some seconds, the stacks of all threads in a log.

    seconds: 0 never ends anything; folder: for the log, which is removed where nothing hung; ended: what is then said,
    with {seconds} and {log} in it. Use as a context; one at a time in a process. Agreement: tests/run/test_watchdog.py.
    """

    def __init__(self, seconds: float = 0, folder: Path = Path(), ended: str = ENDED) -> None:
        self.seconds = seconds
        self.ended = ended
        self.waited = False
        self.path = folder / f"hang-{socket.gethostname()}-{os.getpid()}.log"
        self._log: IO[str] | None = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        if self.seconds:
            with files.disk(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._log = self.path.open("w")
                self._log.write(f"nothing was finished for {self.seconds:g} s; where every thread was:\n")
                self._log.flush()
            self.feed()
        return self

    def feed(self) -> None:
        """Reset the timeout: something was finished."""
        if self._log is None:
            return
        faulthandler.dump_traceback_later(self.seconds + GRACE_S, exit=True, file=self._log)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(self.seconds, self._bite)
        self._timer.daemon = True
        self._timer.start()

    def wait(self) -> None:
        """Reset the timeout while others compute what is left, and set `waited`: seconds no longer tell of speed."""
        self.waited = True
        self.feed()

    def _bite(self) -> None:
        """Say so, which native code that keeps Python's lock prevents, and end the process."""
        assert self._log is not None
        print(self.ended.format(seconds=self.seconds, log=self.path), file=sys.stderr, flush=True)
        faulthandler.dump_traceback(self._log, all_threads=True)
        os._exit(Exit.FAILED)

    def __exit__(self, *_: object) -> None:
        if self._log is None or self._timer is None:
            return
        self._timer.cancel()
        faulthandler.cancel_dump_traceback_later()
        self._log.close()
        self.path.unlink(missing_ok=True)
        self._log = self._timer = None


def parse_watchdog(text: str) -> float:
    """Return the seconds of `--watchdog`: `30m`, `90s`, `2h`; `0` turns it off. Raises ReproError (exit 2)."""
    from repro.kernels.bench.timing import parse_budget

    try:
        seconds = parse_budget(text) if text.strip() != "0" else 0.0
    except ValueError:
        seconds = threading.TIMEOUT_MAX
    if seconds >= threading.TIMEOUT_MAX:
        raise ReproError(f"--watchdog {text}: write 90s, 30m or 2h, or 0 to turn it off")
    return seconds
