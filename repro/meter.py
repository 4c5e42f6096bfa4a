"""What a process has taken: memory from the kernel's own account, and time since it was started. Linux."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path


def resident() -> int:
    """Resident bytes now."""
    return _status("VmRSS")


def peak() -> int:
    """The most bytes that were ever resident in this program; unlike `getrusage`, not in the one that started it."""
    return _status("VmHWM")


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def age() -> float:
    """Seconds since this process was started, the interpreter's own start included."""
    # The command's name is in brackets and may hold blanks; the start, in clock ticks since boot, is the 22nd field.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
