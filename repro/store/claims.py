"""Claims on the units of a result: a lock file for each unit, which the system releases when its process ends.

A claim saves work, it does not guard correctness: every write is idempotent and the unit's record decides.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

SUFFIX = ".claim"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class Claims:
    """The claims of one runner on the units of one result.

    directory: where the lock files lie. A process that is killed leaves its files, but not their locks. On a file
    system without locks every claim is granted: two runners may then compute the same unit.
    Agreement: tests/store/test_claims.py, tests/run/test_faults.py (four runners write each unit once).
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._held: dict[str, FileLock] = {}

    def holds(self, name: str) -> bool:
        """Return whether this runner has claimed `name`; a forked child does not inherit claims."""
        return name in self._held and self._held[name].is_locked

    def take(self, name: str, wait: bool = False) -> bool:
        """Claim `name` unless another runner holds it; `wait`: until that one gives it back."""
        if self.holds(name):
            return True
        # Claimed by the main thread, given back by the one that commits. A soft lock (the library's fallback where a
        # file system has no locks) would outlive a killed process.
        lock = FileLock(self.directory / f"{name}{SUFFIX}", thread_local=False, fallback_to_soft=False)
        self._held[name] = lock  # before it is locked, so that an interruption in between is given back by `drop_all`
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        return True

    def drop(self, name: str) -> None:
        """Give a claim back if this runner holds it."""
        lock = self._held.pop(name, None)
        if lock is not None and lock.is_locked:
            # Removed while it is locked: whoever waits for this file finds it unlinked and opens a new one.
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release(force=True)

    def drop_all(self) -> None:
        """Give back everything this runner holds."""
        for name in sorted(self._held):
            self.drop(name)

    def sweep(self) -> None:
        """Remove the files that killed runners left; those of living ones stay."""
        for file in self.directory.glob(f"*{SUFFIX}"):
            if not self.holds(file.stem) and self.take(file.stem):
                self.drop(file.stem)

    @contextlib.contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Hold `name` while the block runs, after whoever holds it now."""
        self.take(name, wait=True)
        try:
            yield
        finally:
            self.drop(name)
