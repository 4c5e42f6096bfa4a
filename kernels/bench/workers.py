"""Workers: on a CPU this process does the jobs; for a GPU one of its own, replaced when a kernel takes it down.

One device assert, or one kernel that never returns, then costs its own (kernel, shape, dtype) and nothing else.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol

from repro.kernels.bench import child
from repro.kernels.bench.child import Job, Record
from repro.kernels.bench.run import Passed
from repro.kernels.bench.timing import Budget, Clock

Say = Callable[[Record], None]
# The longest that a process may take to import torch.
START = 60.0


class WorkerLostError(Exception):
    """The process that measured has ended, or did not answer in time; the message says how."""


class Worker(Protocol):
    """Somebody who does jobs and can be replaced."""

    def ask(self, job: Job, say: Say) -> None:
        """Do a job, saying each record as soon as it is known; raise WorkerLostError if there will be no more."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class InThisProcess:
    """A worker without a process."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.passed: Passed = {}

    def ask(self, job: Job, say: Say) -> None:
        """Do the job here and now."""
        child.serve(job, say, self.passed, self.clock)

    def close(self) -> None:
        """Do nothing: nothing is held."""


class Child:
    """A process of its own; `work` is what it runs, with its end of a pipe."""

    def __init__(self, work: Callable[[Connection], None] = child.work) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU
        self.jobs, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,))
        self.process.start()
        theirs.close()
        self.ready = False

    def ask(self, job: Job, say: Say, grace: float = 5.0) -> None:
        """Have the process do the job; one that takes `grace` seconds longer than it may is not waited for.

        The time that a process needs to start is not the job's. Everything is read until `done`: what a job left in the
        pipe would be taken for the next one's.
        """
        if not self.ready:
            self.ready = self._next(START, "did not start")["record"] == "ready"
        deadline = Budget(job.seconds + grace)
        try:
            self.jobs.send(job)
        except OSError:
            raise self._ended() from None
        while True:
            record = self._next(max(deadline.left, 0.01), f"no answer within {job.seconds:.0f} s")
            if record["record"] == "done":
                return
            say(record)

    def _next(self, seconds: float, otherwise: str) -> Record:
        """Return the next record, if one comes in time."""
        if not self.jobs.poll(seconds):
            raise WorkerLostError(otherwise)
        try:
            record: Record = self.jobs.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        return record

    def _ended(self) -> WorkerLostError:
        self.process.join()
        return WorkerLostError(f"the process that measured it ended with {self.process.exitcode}")

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.join()
        self.jobs.close()
