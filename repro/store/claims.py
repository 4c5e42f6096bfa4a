"""Who is working on what: a claim file for each unit, which expires by itself when its process is gone.

A claim saves work, it does not guard correctness: every write is idempotent and the unit's record decides.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from repro.files import temporary

LEASE_S = 600.0
"""Seconds after which a claim from another machine, whose process cannot be asked after from here, is given up.

At worst a unit that takes longer is computed twice."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the advisory lock of a folder; the kernel drops it when the process ends, however it ends.

    File systems without locks go without: two processes may then claim the same unit and compute it twice.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@cache
def _machine() -> tuple[str, str, str]:
    """Host name, boot id and process-number namespace; empty where the system has no such thing."""
    boot, namespace = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return socket.gethostname(), boot, namespace


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; "" where that cannot be known, None if there is no process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        fields = []
    if fields:
        return None if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return ""
    return ""


def _alive(claim: dict[str, Any], age_s: float) -> bool:
    """Whether the process that made a claim may still be at work."""
    host, boot, namespace = _machine()
    if claim["host"] != host or claim["namespace"] != namespace:
        return age_s < LEASE_S
    return claim["boot"] == boot and _started(int(claim["pid"])) == claim["started"]


class Claims:
    """The claims of one worker on the units of one result.

    folder: where claim files lie. Agreement: tests/run/test_faults.py (four runners write each unit once).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._token = secrets.token_hex(8)
        self._held: set[str] = set()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.claim"

    def holder(self, name: str) -> dict[str, Any] | None:
        """Who holds a claim now; None if nobody does, or only a dead process or a torn file."""
        file = self._file(name)
        try:
            claim = json.loads(file.read_bytes())
            age_s = time.time() - file.stat().st_mtime
            return claim if _alive(claim, age_s) else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def holds(self, name: str) -> bool:
        """Whether this worker holds that claim."""
        holder = self.holder(name) if name in self._held else None
        return holder is not None and self._mine(holder)

    def _mine(self, claim: dict[str, Any]) -> bool:
        # The process too: a forked child has the token of its parent, but not its claims.
        return claim.get("token") == self._token and claim.get("pid") == os.getpid()

    def take(self, name: str) -> bool:
        """Takes a claim unless another living worker holds it; call with the folder locked."""
        holder = self.holder(name)
        if holder is not None:
            return self._mine(holder)
        host, boot, namespace = _machine()
        pid = os.getpid()
        claim = {"pid": pid, "started": _started(pid), "host": host, "boot": boot, "namespace": namespace}
        temp = temporary(self._file(name))
        temp.write_text(json.dumps({**claim, "token": self._token, "time": round(time.time(), 3)}))
        temp.replace(self._file(name))
        self._held.add(name)
        return True

    def drop(self, name: str) -> None:
        """Gives a claim back if it is this worker's; call with the folder locked."""
        if self.holds(name):
            self._file(name).unlink(missing_ok=True)
        self._held.discard(name)

    def drop_all(self) -> None:
        """Gives back everything this worker holds."""
        if self._held:
            with locked(self.folder):
                for name in sorted(self._held):
                    self.drop(name)
