"""Campaigns of kills and bit flips against a store, and what must hold after each."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from repro.errors import Exit, ReproError
from repro.run.loop import MAX_WAITING
from repro.store.records import UNITS, load_manifest
from repro.store.result import Result, read_raw
from repro.store.verify import verify_result
from tests.faulty import finish, measure, pipe, run, run_and_die, run_until_killed, start

AT_RISK = MAX_WAITING + 1
"""Units that a kill may cost: the one that is being computed, and those that wait to be written."""
STOP_S = 60.0
"""Seconds within which an interrupted run ends."""


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


def numbers(log: Path) -> set[int]:
    """The units that a run began to compute."""
    return {int(line) for line in log.read_text().split()}


def same_bytes(path: Path, expected: dict[str, bytes]) -> bool:
    """Whether a result holds what an uninterrupted run leaves."""
    left = contents(path)
    return {name: left.get(name) for name in expected} == expected


def kill_at_steps(root: Path, n_prompts: int, torn: bool, in_turn: bool = True, every: int = 1) -> dict[str, int]:
    """Kills a run before every single system call that it makes, or inside every write; resumes each to the end.

    in_turn: whether computing waits for commits, so that the calls come in the same order every time; every: only each
    so manieth call.
    """
    reference, counted, log = root / "s" / "e" / "reference", root / "calls", root / "log"
    counts = {"kills": 0, "units kept": 0, "resumed": 0}
    run(reference, n_prompts)
    expected = contents(reference)
    assert finish(start(run_and_die, root / "s" / "e" / "count", n_prompts, 0, torn, in_turn, counted)) == 0
    for step in range(1, int(counted.read_text()) + 1, every):
        path = root / str(step) / "s" / "e" / "reference"
        assert finish(start(run_and_die, path, n_prompts, step, torn, in_turn)) == -signal.SIGKILL
        kept = after_kill(path)
        log.write_text("")
        run(path, n_prompts, log)
        assert not kept & numbers(log), f"step {step}: units {kept & numbers(log)} were lost"
        assert same_bytes(path, expected), f"step {step}: resumed to other bytes"
        counts["kills"] += 1
        counts["units kept"] += len(kept)
        counts["resumed"] += 1
        shutil.rmtree(root / str(step))
    return counts


def _span(path: Path, n_prompts: int, log: Path) -> float:
    """Seconds that an uninterrupted run takes in a child."""
    here, there = pipe()
    child = start(run_until_killed, path, n_prompts, there, log)
    here.recv()
    begun = time.perf_counter()
    assert finish(child) == 0
    return time.perf_counter() - begun


def kill_at_random(root: Path, n_prompts: int, kills: int, seed: int, how: int = signal.SIGKILL) -> dict[str, int]:
    """Kills runs at random instants, each resuming what the last one left, until enough were killed at work.

    how: the signal; after SIGINT a run has to end within `STOP_S`.
    """
    rng = random.Random(seed)
    reference, log = root / "s" / "e" / "reference", root / "log"
    span = _span(reference, n_prompts, log)
    expected = contents(reference)
    counts = {"kills": 0, "stores finished": 0, "units recomputed": 0}
    store = 0
    while counts["kills"] < kills:
        path = root / str(store) / "s" / "e" / "reference"
        log.write_text("")
        here, there = pipe()
        before = after_kill(path)
        child = start(run_until_killed, path, n_prompts, there, log)
        here.recv()
        time.sleep(rng.uniform(0, 0.7 * span))
        assert child.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, how)
        begun = time.perf_counter()
        code = finish(child)
        assert time.perf_counter() - begun < STOP_S
        assert code in (0, -how if how == signal.SIGKILL else Exit.INTERRUPTED)
        again = numbers(log)
        assert not before & again, f"units {before & again} were lost"
        lost = again - after_kill(path)
        assert len(lost) <= AT_RISK, f"units {lost} were computed and not written"
        counts["kills"] += code != 0
        counts["units recomputed"] += len(lost)
        if code == 0:
            assert same_bytes(path, expected)
            shutil.rmtree(root / str(store))
            counts["stores finished"] += 1
            store += 1
    return counts


def _refusal(path: Path) -> ReproError | None:
    """How a run ended that could not go on; None if it could."""
    try:
        run(path, n_prompts=5)
    except ReproError as error:
        return error
    return None


def fill_disks(root: Path) -> dict[str, int]:
    """Runs on ever larger disks of a few pages, until one suffices; each full one gets more room and is resumed.

    For a process that may mount.
    """
    reference, disk = root / "s" / "e" / "reference", root / "disk"
    path = disk / "s" / "e" / "reference"
    run(reference, n_prompts=5)
    expected = contents(reference)
    disk.mkdir()
    counts = {"full disks": 0, "units kept": 0, "resumed": 0}
    enough = False
    while not enough:
        pages = counts["full disks"] + 1
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={4 * pages}k", "tmpfs", disk], check=True)
        error = _refusal(path)
        enough = error is None
        if error is not None:
            assert error.code == Exit.FAILED
            assert str(error).startswith("cannot write "), error
            assert "No space left" in str(error), error
            counts["full disks"] += 1
            counts["units kept"] += len(after_kill(path))
            subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
            counts["resumed"] += _refusal(path) is None
        assert same_bytes(path, expected)
        subprocess.run(["umount", disk], check=True)
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


def kill_command(model: str, units: str, command: list[str], kills: int) -> dict[str, int]:
    """Kills `python -m repro` with a command, again and again, each time once two more units have been recorded.

    Children are forked where torch and the libraries are loaded and have been used, so that a kill costs no start-up;
    for a process of its own with one thread. model: its directory; units: pattern of the records' paths; all below the
    working directory.
    """
    from repro.__main__ import main
    from repro.model.folder import read_folder
    from repro.model.load import load
    from repro.run import execute  # noqa: F401 - imported once

    load(read_folder(Path(model)))

    def records() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(Path().glob(units))}

    kept: dict[Path, bytes] = {}
    for _ in range(kills):
        child = os.fork()
        if not child:
            os._exit(main(command))
        while len(records()) < len(kept) + 2:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the command ended before it could be killed"
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        before, kept = kept, records()
        assert before.items() <= kept.items()
    return {"kills": kills, "units kept": len(kept)}
