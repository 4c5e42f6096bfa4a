"""What fuzzed input may do to a command: end in time, in plain words, and touch nothing but its own folder."""

from __future__ import annotations

import os
import resource
import signal
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from repro.errors import LONGEST

MOST_SENTENCES = 101
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
_DEEDS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "socket.connect")


class HangError(BaseException):
    """Input that keeps a command busy; no handler of Exception may take it for a refusal."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise HangError in what takes more processor time, or twenty times as long by the clock because it sleeps."""

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise HangError(f"still busy after {seconds} s of processor time")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, 20 * seconds)}
    before = {number: signal.signal(number, late) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


@contextmanager
def little_memory(more: int) -> Iterator[None]:
    """Refuses the process more than so many further bytes of addresses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class _Watch:
    """An audit hook, which can never be taken away again, only sent to sleep."""

    def __init__(self) -> None:
        self.seen: list[str] | None = None
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.seen is None:
            return
        if event in _DEEDS:
            self.seen.append(f"{event} {arguments}")
        elif event in _CHANGES:
            self.seen += [f"{event} {os.fsdecode(path)}" for path in arguments if isinstance(path, str | bytes | Path)]
        elif event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else flags & _WRITES
            if writes and isinstance(path, str | bytes | Path):
                self.seen.append(f"{event} {os.fsdecode(path)}")


_watch: list[_Watch] = []


@contextmanager
def watched() -> Iterator[list[str]]:
    """Every file written or moved, every process started and every connection made from Python meanwhile."""
    if not _watch:
        _watch.append(_Watch())
    found: list[str] = []
    _watch[0].seen = []
    try:
        yield found
    finally:
        # Python's own copies of modules that are imported late, and nothing at all, are no files of anybody.
        found += [deed for deed in _watch[0].seen if "__pycache__" not in deed and not deed.endswith(os.devnull)]
        _watch[0].seen = None


def is_plain(text: str) -> bool:
    """Whether a text is one line without anything that a terminal would obey."""
    return not any(unicodedata.category(letter) in ("Cc", "Zl", "Zp", "Cs") for letter in text)


def sentences(err: str) -> list[str]:
    """What a command that refused has said; AssertionError unless it is plain sentences of bearable length."""
    lines = err.split("\n")
    assert lines.pop() == "", "the last line is not ended"
    assert 0 < len(lines) <= MOST_SENTENCES, f"{len(lines)} lines"
    for line in lines:
        assert line.startswith("error: "), line
        assert is_plain(line), repr(line)
        assert 20 < len(line) <= LONGEST + len("error: "), f"{len(line)} characters: {line[:200]}"
        assert "Traceback" not in line
    return [line.removeprefix("error: ") for line in lines]
