"""A runner that can be killed at any step, and campaigns of kills and bit flips against the store it writes.

The runner is the real unit loop with a measure that imports no torch. Children are forked from a server that has zarr
loaded, so a kill costs milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from repro.errors import ReproError
from repro.layout import Layout, Variable
from repro.records import UNITS, load_manifest, load_record, unit_name
from repro.store import Result, open_result, pending, read_raw
from repro.verify import verify_result

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
    layout(1)
    import zarr.codecs
    import zarr.storage

    assert zarr.storage
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


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a result."""
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def recorded(path: Path) -> set[int]:
    """Units that have a valid record; every value of theirs is compared with what the measure gives."""
    found = load_manifest(path)
    if found is None:
        return set()
    declared, manifest = found
    result = Result(path, declared, manifest)
    done = set(range(result.n_units)) - set(result.missing())
    for i in done:
        prompts = result.unit_slice(i)
        for name, expected in measure(declared, prompts).items():
            got = result.read(name, prompt=prompts)
            assert got.tobytes() == expected.tobytes(), f"unit {i} of {name} holds wrong values"
    return done


def after_kill(path: Path) -> set[int]:
    """What a kill left: nothing damaged, no wrong value; returns the units that count."""
    if not path.exists():
        return set()
    assert verify_result(path) == []
    return recorded(path)


def kill_at_steps(root: Path, n_prompts: int) -> dict[str, int]:
    """Kills a run before every single system call that it makes, and inside every write; resumes each to the end."""
    reference = root / "s" / "e" / "reference"
    counts = {"kills": 0, "units kept": 0, "resumed": 0}
    run(reference, n_prompts)
    expected = contents(reference)
    for torn in (False, True):
        counted = root / f"calls-{torn}"
        assert finish(start(run_and_die, root / "s" / "e" / f"count-{torn}", n_prompts, 0, torn, counted)) == 0
        for step in range(1, int(counted.read_text()) + 1):
            home = root / f"{torn}-{step}" / "s" / "e"
            path = home / "reference"
            assert finish(start(run_and_die, path, n_prompts, step, torn)) == -signal.SIGKILL
            kept = after_kill(path)
            log = root / "log"
            log.write_text("")
            run(path, n_prompts, log)
            again = {int(line) for line in log.read_text().split()}
            assert not kept & again, f"step {step}: units {kept & again} were lost"
            left = contents(path)
            assert {name: left[name] for name in expected} == expected, f"step {step}: resumed to other bytes"
            counts["kills"] += 1
            counts["units kept"] += len(kept)
            counts["resumed"] += 1
            shutil.rmtree(root / f"{torn}-{step}")
    return counts


def _span(path: Path, n_prompts: int, log: Path) -> float:
    """Seconds that an uninterrupted run takes in a child."""
    here, there = pipe()
    child = start(run_until_killed, path, n_prompts, there, log)
    here.recv()
    begun = time.perf_counter()
    assert finish(child) == 0
    return time.perf_counter() - begun


def kill_at_random(root: Path, n_prompts: int, kills: int, seed: int) -> dict[str, int]:
    """Kills runs at random instants, each resuming what the last one left, until enough were killed at work."""
    rng = random.Random(seed)
    reference = root / "s" / "e" / "reference"
    span = _span(reference, n_prompts, root / "log")
    expected = contents(reference)
    counts = {"kills": 0, "stores finished": 0, "units recomputed": 0}
    store = 0
    while counts["kills"] < kills:
        path = root / str(store) / "s" / "e" / "reference"
        log = root / "log"
        log.write_text("")
        here, there = pipe()
        before = after_kill(path)
        child = start(run_until_killed, path, n_prompts, there, log)
        here.recv()
        time.sleep(rng.uniform(0, 0.7 * span))
        child.kill()
        killed = finish(child) == -signal.SIGKILL
        again = {int(line) for line in log.read_text().split()}
        assert not before & again, f"units {before & again} were lost"
        counts["kills"] += killed
        counts["units recomputed"] += len(again - after_kill(path))
        if not killed:
            left = contents(path)
            assert {name: left[name] for name in expected} == expected
            shutil.rmtree(root / str(store))
            counts["stores finished"] += 1
            store += 1
    return counts


def flip_bits(path: Path, flips: int, seed: int) -> dict[str, int]:
    """Flips one bit at a time, anywhere in the result; `verify` must name the file, and reading must not believe it."""
    rng = random.Random(seed)
    kinds: dict[str, list[Path]] = {"arrays": [], "metadata": [], "records": [], "seals": [], "summary": []}
    for file in sorted(f for f in path.rglob("*") if f.is_file()):
        name = file.relative_to(path).as_posix()
        if name.startswith(f"{UNITS}/"):
            kind = "records"
        elif "/summary/" in name:
            kind = "summary"
        elif "/c." in name and "/node/" not in name:
            kind = "arrays"
        else:
            kind = "metadata" if name.startswith("data.zarr/") else "seals"
        kinds[kind].append(file)
    counts = dict.fromkeys(kinds, 0)
    present = [kind for kind in kinds if kinds[kind]]
    assert verify_result(path) == []
    for n in range(flips):
        kind = present[n % len(present)]
        file = rng.choice(kinds[kind])
        original = file.read_bytes()
        place, bit = rng.randrange(len(original)), rng.randrange(8)
        changed = bytearray(original)
        changed[place] ^= 1 << bit
        file.write_bytes(changed)
        findings = verify_result(path)
        assert [finding.path for finding in findings] == [file], f"bit {bit} of byte {place} of {file}: {findings}"
        if kind == "arrays" and n % 5 == 0 and (path / "COMMIT").exists():
            assert not _believes(path, file.parent.name)
        file.write_bytes(original)
        counts[kind] += 1
    assert verify_result(path) == []
    return counts


def _believes(path: Path, variable: str) -> bool:
    """Whether reading a damaged array gives values at all."""
    try:
        read_raw(path)[variable].load()
    except (ReproError, ValueError, RuntimeError, OSError):
        return False
    return True


def prompts_of(path: Path, i: int) -> tuple[int, int]:
    """Prompts in the record of a unit."""
    found = load_manifest(path)
    assert found is not None
    record = load_record(path, *found, i)
    assert record is not None, unit_name(i)
    return tuple(record["prompts"])
