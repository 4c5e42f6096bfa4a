"""A runner that can be killed at any step, fill its disk, or run where it may not write.

The runner is the real unit loop, commit thread and all, with a measure that imports no torch. Children are forked from
a server that has zarr loaded, so a kill costs milliseconds.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from repro import files
from repro.errors import Exit, ReproError
from repro.run import loop
from repro.run.failures import Failures
from repro.store.layout import Layout, Variable
from repro.store.result import Result, open_result

UNIT = 2
PROVENANCE = {"environment": {"numpy": "2", "device": "cpu"}, "git": "0000"}
NODES = ("L0H0", "L0H1", "MLP0")
STEPS = ("open", "write", "fsync", "replace", "unlink", "mkdir", "rmdir")


def layout(n_prompts: int, n_positions: int = 8) -> Layout:
    """A small result: a ratio per node and position, and a count per prompt."""
    variables = (
        Variable("pr", ("node", "prompt", "position"), units="1", long_name="projection ratio"),
        Variable("count", ("prompt",), dtype="int32"),
    )
    return Layout(variables, {"node": NODES}, {"prompt": n_prompts, "position": n_positions})


def measure(declared: Layout, prompts: slice) -> dict[str, np.ndarray]:
    """What every run must find for these prompts; prompts 2 and 3 are nothing but NaN, and there are signed zeros."""
    n_positions = declared.sizes["position"]
    rows = []
    for prompt in range(prompts.start, prompts.stop):
        row = np.random.default_rng(prompt).standard_normal((len(NODES), n_positions)).astype(np.float32)
        row[0, 0], row[1, 0] = -0.0, np.nan
        rows.append(np.full_like(row, np.nan) if prompt in (2, 3) else row)
    return {"pr": np.stack(rows, axis=1), "count": np.arange(prompts.start, prompts.stop, dtype=np.int32)}


def summary(result: Result) -> xr.Dataset:
    """A summary that depends on every value."""
    pr = np.nanmedian(result.read("pr"), axis=(1, 2)).astype(np.float32)
    attrs = {"found": True, "erasers": ["L0H1"], "n_prompts": result.layout.n_prompts}
    return xr.Dataset({"pr": ("node", pr)}, {"node": np.array(NODES, dtype=object)}, attrs)


def nothing() -> None:
    """What a run does beside computing, unless told otherwise."""


def computed(result: Result, names: Sequence[str], unit: int) -> dict[str, loop.UnitArrays]:
    """What the unit loop wants of whoever computes: a unit's arrays for every name."""
    arrays = measure(result.layout, result.unit_slice(unit))
    return {name: loop.UnitArrays(arrays, {"halved": 0}) for name in names}


def complete(result: Result, log: Path | None = None, before: Callable[[], None] = nothing, **more: Any) -> None:
    """The real unit loop over a result; `before` runs before each unit is computed, `log` takes its number."""

    def compute(unit: int, names: Sequence[str]) -> dict[str, loop.UnitArrays]:
        if log is not None:
            with log.open("a") as handle:
                handle.write(f"{unit}\n")
        before()
        return computed(result, names, unit)

    failures = Failures(lambda line: None)
    loop.fill({"scan": result}, compute, failures, **more)
    if failures.errors:
        raise ReproError(failures.errors["scan"], Exit.FAILED)


def run(path: Path, n_prompts: int, log: Path | None = None, n_positions: int = 8, **more: Any) -> None:
    """What `python -m repro run` does with one experiment: open or resume, fill, reduce, commit."""
    with open_result(path, layout(n_prompts, n_positions), UNIT, PROVENANCE) as result:
        complete(result, log, **more)
        if not result.committed:
            result.finalise(summary(result))


def run_slowly(path: Path, n_prompts: int, log: Path) -> None:
    """`run` with 10 ms of computing a unit."""
    run(path, n_prompts, log, before=lambda: time.sleep(0.01))


def reopened(path: Path, n_prompts: int) -> Result:
    """The result of `run`, open again."""
    return open_result(path, layout(n_prompts), UNIT, PROVENANCE)


def _die() -> None:
    assert "torch" not in sys.modules
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def _in_turn() -> dict[str, Any]:
    """Makes the loop wait for each commit before it goes on, so that system calls come in the same order every time."""
    written = threading.Semaphore(0)
    real = loop.write

    def write(*args: Any) -> None:
        try:
            real(*args)
        finally:
            written.release()

    setattr(loop, "write", write)  # noqa: B010 - a type checker refuses the assignment
    return {"advance": written.acquire}


def run_and_die(
    path: Path, n_prompts: int, step: int, torn: bool, in_turn: bool = True, counted: Path | None = None
) -> None:
    """`run`, killed just before the given system call, or in the middle of it if it is a write and `torn`.

    in_turn: whether computing waits for commits; else the kill meets both at once, wherever they are.
    """
    calls, one_by_one = 0, threading.Lock()

    def hooked(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            if name == "write" or not torn:
                with one_by_one:
                    calls += 1
                    here = calls
                if here == step:
                    if torn:
                        real(args[0], bytes(args[1])[: len(args[1]) // 2])
                    _die()
            return real(*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, hooked(name, getattr(os, name)))
    run(path, n_prompts, **(_in_turn() if in_turn else {}))
    if counted is not None:
        counted.write_text(str(calls))


def run_carelessly_and_die(path: Path, n_prompts: int, step: int) -> None:
    """The control: files are written in place, without temporary file and rename; killed inside a write."""

    def in_place(file: Path, content: bytes) -> None:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.write(handle, content)
        os.close(handle)

    setattr(files, "write_durably", in_place)  # noqa: B010 - a type checker refuses the assignment
    run_and_die(path, n_prompts, step, torn=True)


def run_until_killed(path: Path, n_prompts: int, ready: Any, log: Path) -> None:
    """`run`, after saying that the imports are done; an interruption ends it as it ends the command."""
    try:
        ready.send(None)
        run(path, n_prompts, log)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)


def run_out_of_memory(path: Path, n_prompts: int, log: Path, at: int) -> None:
    """`run` in 256 MiB more than it has, of which unit `at` takes all there is."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**28, resource.RLIM_INFINITY))
    hoard: list[bytearray] = []

    def greedy() -> None:
        while len(log.read_text().split()) > at:
            hoard.append(bytearray(2**22))

    run(path, n_prompts, log, before=greedy)


def modules_of_a_run(path: Path, n_prompts: int, answer: Any) -> None:
    """`run`; answers with the packages that it has imported."""
    run(path, n_prompts)
    answer.send(sorted({name.partition(".")[0] for name in sys.modules}))


def run_on_full_disk(path: Path, n_prompts: int, limit: int, n_positions: int, answer: Any) -> None:
    """`run` where no file may grow beyond `limit` bytes; answers with the error's code and sentence."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        run(path, n_prompts, n_positions=n_positions)
        answer.send((0, ""))
    except ReproError as error:
        answer.send((int(error.code), str(error)))


def run_as_nobody(path: Path, n_prompts: int, answer: Any) -> None:
    """`run` by a user who may not write there; answers with the error's code and sentence."""
    # Loaded before the change of user, who may not be able to read the environment's packages.
    for module in ("zarr.codecs", "zarr.storage", "xarray.backends.zarr"):
        importlib.import_module(module)
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        run(path, n_prompts)
        answer.send((0, ""))
    except ReproError as error:
        answer.send((int(error.code), str(error)))


_server = multiprocessing.get_context("forkserver")
# pytest because a child imports its parent's main module again, dask because xarray imports it where it is installed,
# this module because a child finds its target in it.
_server.set_forkserver_preload(
    ["pytest", "zarr.storage", "xarray.backends.zarr", "dask.array", "repro.store.verify", "tests.faulty"]
)


def start(target: Callable[..., None], *args: Any) -> BaseProcess:
    """A child process, forked where zarr is loaded."""
    process = _server.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def pipe() -> tuple[Any, Any]:
    """Both ends of a pipe to a child."""
    return _server.Pipe()


def finish(process: BaseProcess) -> int:
    """Exit code of a child, which must end."""
    process.join(60)
    code = process.exitcode
    if code is None:
        process.kill()
        raise AssertionError("a child process hangs")
    process.close()
    return code
