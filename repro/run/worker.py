"""One worker process's share of a run: it keeps the model, opens the results, and fill the units it is asked for.

A job is plain data that travels to workers; the arrays never travel: a worker writes them to the store, which lies on a
file system that it shares with whoever asked, and answers with a few words.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro import __version__
from repro.errors import Exit, ReproError
from repro.measures.base import Stream
from repro.model.folder import Folder, tokens_fingerprint
from repro.plan.plan import Item, Settings
from repro.process import set_defaults
from repro.run.failures import Failures
from repro.run.loop import Compute, claimed, give_back, write
from repro.run.watchdog import Watchdog
from repro.store.records import MANIFEST, load_manifest
from repro.store.result import Result
from repro.subjects.resolve import ResolvedSubject

if TYPE_CHECKING:
    from repro.measures.batch import Engine
    from repro.run.session import Session

set_defaults()  # a worker of somebody else's cluster imports this module before it imports torch

KEPT = 2
"""Jobs that a worker keeps open: the current one, and the last in case two runs with one model share the workers."""
ENDED = (
    "a worker was at one unit for {seconds:g} s, half of --watchdog: it is ended and the unit tried again; {log} says "
    "where it hung"
)
PACKAGES = ("torch", "transformer_lens", "transformers", "xarray", "zarr", "numpy")


@dataclass(frozen=True)
class Job:
    """What a worker must know to fill the units of one pass. Small, and pickled for every unit."""

    token: str
    """Differs between jobs."""
    results: Mapping[str, Path]
    """Where each experiment's result lies; it has been created."""
    threads: int
    """Threads that compute a unit, the same on every worker, so that results are the same bits."""
    versions: Mapping[str, str]
    """Of this package and of those that numbers depend on; a worker with others is refused."""
    make: Callable[[Failures, int], Compute]
    """Failures and threads -> what computes a unit; called once per worker."""
    hang_s: float
    """Seconds after which a worker that is still at a unit is ended; 0: never."""
    logs: Path
    """Folder for the log of a worker that hangs."""


@dataclass(frozen=True)
class Outcome:
    """What became of a unit on a worker; its arrays are in the store."""

    done: tuple[str, ...]
    """Experiments that need not be asked again; the others are held by another living runner."""
    errors: Mapping[str, str]
    """Experiments that have failed on this worker, and how."""
    said: tuple[str, ...]
    """Lines for the user."""
    seconds: float
    """How long the worker was at it."""


def versions() -> dict[str, str]:
    """Return the versions of this package and of those that numbers depend on."""
    return {"repro": __version__, **{name: version(name) for name in PACKAGES}}


def fill_unit(job: Job, unit: int, names: Sequence[str]) -> Outcome:
    """Fill one unit of the named experiments and write it to the store, unless others did or are at it.

    Runs in a worker process, which is asked for several at once but fills one at a time: its threads are the unit's.
    Idempotent: a unit that is recorded is left alone. Raises ReproError for what concerns every experiment.
    Agreement: tests/run/test_cluster_worker.py, tests/run/test_cluster_faults.py.
    """
    with _one_at_a_time:
        if job.token not in _states:
            while len(_states) >= KEPT:
                _states.pop(next(iter(_states)))
            _states[job.token] = WorkerState(job)
        # Only now: loading a model may take longer than a unit, and whoever asked has a watchdog, too.
        with Watchdog(job.hang_s, job.logs, ENDED):
            return _states[job.token].fill(unit, names)


class WorkerState:
    """One job's open results and what computes their units, for as long as the worker keeps them."""

    def __init__(self, job: Job) -> None:
        _refuse_versions(job.versions)
        self.said: list[str] = []
        self.failures = Failures(self.said.append)
        self.results = {name: _opened(path) for name, path in job.results.items()}
        self.compute = job.make(self.failures, job.threads)

    def fill(self, unit: int, names: Sequence[str]) -> Outcome:
        started = time.perf_counter()
        mine = claimed(unit, names, self.results, self.failures)
        others = [name for name in names if name not in mine and name not in self.failures]
        held = [name for name in others if not self.results[name].has(unit)]
        try:
            filled = self.compute(unit, mine) if mine else {}
        except BaseException:
            # A worker outlives the run: what it could not compute must not stay claimed.
            give_back(unit, mine, self.results)
            raise
        write(unit, mine, filled, self.results, self.failures)
        said, self.said[:] = tuple(self.said), []
        return Outcome(
            done=tuple(name for name in names if name not in held),
            errors={name: self.failures.errors[name] for name in names if name in self.failures},
            said=said,
            seconds=time.perf_counter() - started,
        )


_one_at_a_time = threading.Lock()
_states: dict[str, WorkerState] = {}


def _refuse_versions(asked: Mapping[str, str]) -> None:
    """Raise ReproError for other versions here: their numbers must not be mixed into a result."""
    here = versions()
    other = [f"{name} {here.get(name)} instead of {v}" for name, v in asked.items() if here.get(name) != v]
    if other:
        raise ReproError(f"worker on {platform.node()} has {', '.join(other)}: install the same versions", Exit.FAILED)


def _opened(path: Path) -> Result:
    found = load_manifest(path)
    if found is None:
        raise ReproError(
            f"worker on {platform.node()} finds no {path / MANIFEST}: the store must lie on a file system that every "
            "worker shares, under the same path",
            Exit.FAILED,
        )
    return Result(path, *found)


@dataclass(frozen=True)
class Recipe:
    """How a worker computes a pass: the model's directory, settings and experiments. Called on the worker."""

    subject: ResolvedSubject
    settings: Settings
    items: tuple[Item, ...]
    stream: Stream
    """What the pass reads."""
    memory: int
    """Bytes that a pass may take in each worker."""

    @classmethod
    def of(cls, session: Session, items: Iterable[Item], stream: Stream) -> Recipe:
        """Return how to compute some items, with absolute paths and nothing a worker can read for itself."""
        subject = ResolvedSubject(session.subject.name, session.subject.subject, _absolute(session.subject.folder))
        return cls(subject, session.settings, tuple(items), stream, session.memory)

    def __call__(self, failures: Failures, threads: int) -> Compute:
        """Load the model at the pass's precision, unless it is the last one loaded, and prepare the experiments.

        Raises ReproError (exit 4) if model or prompts are not the ones that were planned.
        """
        import torch

        from repro.run.session import Session, Work

        torch.set_num_threads(threads)
        tokens = self.subject.tokens
        if any(tokens_fingerprint(tokens[: i.context.n_prompts]) != i.key["tokens"] for i in self.items):
            raise self._other(self.subject.folder.prompts)
        session = Session(self.subject, self.settings, self.memory, failures.say)
        with torch.inference_mode():
            session.engines = {self.stream.precision: self._engine(session)}
            work = Work(self.items, self.stream, session, failures)
            for item in self.items:
                with failures.guard(item.name):
                    work.prepare(item.name)

        def compute(unit: int, names: Sequence[str]) -> Any:
            # A worker's tasks come in several threads, and both settings are a thread's own.
            torch.set_num_threads(threads)
            with torch.inference_mode():
                return work.unit(unit, names)

        return compute

    def _engine(self, session: Session) -> Engine:
        precision, settings, weights = self.stream.precision, self.settings, self.items[0].key["weights"]
        loaded = (weights, precision, settings.kernels, settings.products, settings.device)
        if loaded not in _engines:
            if self.subject.weights != weights:
                raise self._other(self.subject.folder.path)
            # All other jobs hold on to the old model, for which there may be no room beside the new one.
            _states.clear()
            _engines.clear()
            _engines[loaded] = session.engine(precision)
        return _engines[loaded]

    def _other(self, path: Path) -> ReproError:
        return ReproError(
            f"worker on {platform.node()}: {path} differs from what was planned: every worker must see the same files",
            Exit.UNAVAILABLE,
        )


_engines: dict[tuple[str, ...], Engine] = {}


def _absolute(folder: Folder) -> Folder:
    """Return the same model directory, found from any working directory."""
    return replace(
        folder,
        path=folder.path.absolute(),
        weights=tuple(file.absolute() for file in folder.weights),
        prompts=folder.prompts.absolute(),
        tokenizer=folder.tokenizer and folder.tokenizer.absolute(),
    )
