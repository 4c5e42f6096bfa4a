"""Units filled by the workers of a `dask.distributed` cluster.

Units are futures, not dask arrays: each is idempotent and lands in the store under its own record, so a worker that is
lost costs the unit it was at.
"""

from __future__ import annotations

import secrets
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from repro.errors import Exit, ReproError
from repro.run.failures import Failures, Say
from repro.run.loop import POLL_S, Answer, Compute, Missing, missing, rounds, units_of
from repro.run.watchdog import Watchdog
from repro.run.worker import Job, Outcome, fill_unit, versions
from repro.store.result import Result

if TYPE_CHECKING:
    from distributed import Client, Future

IN_FLIGHT = 2
"""Units per worker that are on their way at once: one at work, one waiting."""
RECOUNT_S = 2.0
"""Seconds between two looks at how many workers there are, where none has answered in between."""
NO_WORKERS_S = 10.0
"""Seconds without any worker after which the user is told."""
VISIBLE_S = 60.0
"""Seconds that a network file system may take to show here what workers have written."""


class Cluster:
    """Worker processes that fill units; this process only asks, and reduces what they have stored.

    where: what the user knows it by; threads: how many compute a unit, the same on every worker.
    """

    def __init__(self, client: Client, where: str, threads: int, say: Say) -> None:
        self.client = client
        self.where = where
        self.threads = threads
        self.say = say
        self.n_workers = 0
        self.seconds = 0.0
        """What workers have spent on units."""
        self._met = time.monotonic()
        self._told = False

    def fill(
        self,
        results: Mapping[str, Result],
        make: Callable[[Failures, int], Compute],
        failures: Failures,
        advance: Callable[[], None],
        watchdog: Watchdog,
    ) -> None:
        """Run `repro.run.loop.rounds` on the workers; a unit is written by whoever computed it.

        results: open results with the same unit, by experiment; make: pure data that a worker calls, once, for what
        computes units (repro.run.worker.Recipe); failures: what has failed and fails; advance: called after each unit;
        watchdog: how long a unit may take, and where a worker that hangs says so: it is ended after half that time, so
        that the unit is tried again; fed while other runners or new workers are waited for. Raises ReproError: exit 1
        if the scheduler is lost, and what workers raise for all experiments.
        Agreement: tests/run/test_cluster.py, tests/run/test_cluster_worker.py, tests/run/test_cluster_faults.py.
        """
        paths = {name: result.path.absolute() for name, result in results.items()}
        logs = watchdog.path.parent.absolute()
        job = Job(secrets.token_hex(8), paths, self.threads, versions(), make, watchdog.seconds / 2, logs)
        rounds(results, partial(self._answers, job, failures, watchdog), failures, advance, watchdog.feed)
        _await_visible(results, failures)

    def await_workers(self) -> int:
        """Wait until there is a worker; return the least number of threads that one offers."""
        while not (offered := self._nthreads()):
            time.sleep(POLL_S)
        return min(offered.values())

    def _answers(
        self, job: Job, failures: Failures, watchdog: Watchdog, units: Sequence[int], lacking: Missing
    ) -> Iterator[Answer]:
        """Submit units, a few per worker at a time, and yield what was answered of each."""
        waiting = deque(units)
        flying: dict[Future, tuple[int, tuple[str, ...]]] = {}
        while waiting or flying:
            if not self._nthreads():
                watchdog.feed()  # waiting for a worker is not a hang
            while waiting and len(flying) < IN_FLIGHT * max(self.n_workers, 1):
                unit = waiting.popleft()
                names = tuple(name for name in lacking if unit in lacking[name] and name not in failures)
                if names:
                    flying[self._submit(job, unit, names)] = unit, names
            for future in self._finished(flying):
                unit, names = flying.pop(future)
                outcome = self._answer(future, unit, names)
                watchdog.feed()  # a sign of life, even where others hold the unit
                self.seconds += outcome.seconds
                self._tell(outcome, failures)
                yield unit, names, outcome.done

    def _submit(self, job: Job, unit: int, names: tuple[str, ...]) -> Future:
        with self._scheduler():
            # A key of its own: a unit that is asked for again must not get the answer of before.
            key = f"unit-{unit}-{secrets.token_hex(8)}"
            return self.client.submit(fill_unit, job, unit, names, key=key, pure=False)

    def _finished(self, flying: Mapping[Future, Any]) -> Sequence[Future]:
        """Return the futures that are done, once there are some or it is time to look around again."""
        from distributed import wait

        if not flying:
            return []
        with self._scheduler(), self.client.as_current(), suppress(TimeoutError):
            return list(wait(list(flying), timeout=RECOUNT_S, return_when="FIRST_COMPLETED").done)
        return []

    def _answer(self, future: Future, unit: int, names: tuple[str, ...]) -> Outcome:
        """Return what a worker answered. Raises what it raised; a unit that kills worker after worker has failed."""
        from distributed import KilledWorker

        with self._scheduler():
            error = future.exception() if future.status == "error" else None
            if error is None:
                answer: Outcome = future.result()
                return answer
        if isinstance(error, KilledWorker):
            lost = f"unit {unit} was given up after {error.allowed_failures + 1} workers died at it, perhaps of memory"
            return Outcome(names, dict.fromkeys(names, lost), tuple(f"{name} failed: {lost}" for name in names), 0.0)
        if isinstance(error, ReproError):
            raise error
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        said = f"{type(cause).__name__}: {cause}"
        if isinstance(cause, ImportError):
            advice = "the scheduler and every worker need this package and what it needs, in the same versions"
            raise ReproError(f"{self.where}: {said}; {advice}", Exit.FAILED) from error
        self.say("".join(traceback.format_exception(error)))
        raise ReproError(f"{self.where}: a worker could not fill unit {unit} ({said})", Exit.FAILED) from error

    def _tell(self, outcome: Outcome, failures: Failures) -> None:
        """Repeat what a worker said, unless it is about failures that another worker has told of."""
        new = {name: error for name, error in outcome.errors.items() if name not in failures}
        failures.errors.update(new)
        if new or not outcome.errors:
            for line in outcome.said:
                self.say(line)

    def _nthreads(self) -> dict[str, int]:
        """Return the threads of each worker, which come and go; say once where there has been none for a while."""
        with self._scheduler():
            offered: dict[str, int] = self.client.nthreads()
        self.n_workers, now = len(offered), time.monotonic()
        if offered:
            self._met, self._told = now, False
        elif not self._told and now - self._met > NO_WORKERS_S:
            self.say(f"{self.where}: there are no workers; waiting for one")
            self._told = True
        return offered

    @contextmanager
    def _scheduler(self) -> Iterator[None]:
        """Turn a scheduler that is gone into one sentence."""
        from distributed import CancelledError

        try:
            yield
            lost = self.client.status != "running"
        except (CancelledError, OSError):
            lost = True
        if lost:
            raise ReproError(
                f"{self.where}: the scheduler is gone; what was written is kept, run the same command again to go on",
                Exit.FAILED,
            )


def _await_visible(results: Mapping[str, Result], failures: Failures) -> None:
    """Wait until what others have written is seen here, too."""
    deadline = time.monotonic() + VISIBLE_S
    while units_of(missing(results, failures, set())) and time.monotonic() < deadline:
        time.sleep(POLL_S)
