"""What a process has taken: memory from the kernel's own account, and time since it was started. Linux."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

PAPER = "paper"
"""The group that is timed: the experiments that the baseline computes as well."""


def peak() -> int:
    """Return the most bytes ever resident in this program; unlike `getrusage`, not in the one that started it."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def above(weights: Iterable[Path]) -> int:
    """Return how far the peak lies above the files of a model's weights, in bytes."""
    return peak() - sum(file.stat().st_size for file in weights)


def age() -> float:
    """Return the seconds since this process was started, the interpreter's own start included."""
    # The command's name is in brackets and may hold blanks; the start, in clock ticks since boot, is the 22nd field.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
