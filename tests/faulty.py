"""A runner that can be killed at any step, fill its disk, or run where it may not write.

The runner is the real unit loop with a measure that imports no torch. Children are forked from a server that has zarr
loaded, so a kill costs milliseconds.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from repro import records
from repro.errors import ReproError
from repro.layout import Layout, Variable
from repro.store import Result, open_result, pending

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


def run(path: Path, n_prompts: int, log: Path | None = None, n_positions: int = 8, pause_s: float = 0.0) -> None:
    """The real unit loop: open or resume, compute what is missing, commit."""
    declared = layout(n_prompts, n_positions)
    with open_result(path, declared, UNIT, PROVENANCE) as result:
        for i, mine in pending([result]):
            if log is not None:
                with log.open("a") as handle:
                    handle.write(f"{i}\n")
            time.sleep(pause_s)
            for one in mine:
                one.write_unit(i, measure(declared, one.unit_slice(i)), {"halved": 0})
        if not result.committed:
            result.finalise(summary(result))


def reopened(path: Path, n_prompts: int) -> Result:
    """The result of `run`, open again."""
    return open_result(path, layout(n_prompts), UNIT, PROVENANCE)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def run_and_die(path: Path, n_prompts: int, step: int, torn: bool, counted: Path | None = None) -> None:
    """`run`, killed just before the given system call, or in the middle of it if it is a write and `torn`."""
    calls = 0

    def hooked(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            if name == "write" or not torn:
                calls += 1
                if calls == step:
                    if torn:
                        real(args[0], bytes(args[1])[: len(args[1]) // 2])
                    _die()
            return real(*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, hooked(name, getattr(os, name)))
    run(path, n_prompts)
    if counted is not None:
        counted.write_text(str(calls))


def run_carelessly_and_die(path: Path, n_prompts: int, step: int) -> None:
    """The control: files are written in place, without temporary file and rename; killed inside a write."""

    def in_place(file: Path, content: bytes) -> None:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.write(handle, content)
        os.close(handle)

    setattr(records, "write_durably", in_place)  # noqa: B010 - a type checker refuses the assignment
    run_and_die(path, n_prompts, step, torn=True)


def run_until_killed(path: Path, n_prompts: int, ready: Any, log: Path) -> None:
    """`run`, after saying that the imports are done."""
    ready.send(None)
    run(path, n_prompts, log)


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
# pytest because a child imports its parent's main module again, dask because xarray imports it where it is installed.
_server.set_forkserver_preload(["pytest", "zarr.storage", "xarray.backends.zarr", "dask.array", "repro.verify"])


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
