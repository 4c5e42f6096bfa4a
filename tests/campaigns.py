"""Campaigns of kills and bit flips against a store, and what must hold after each."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

from repro.errors import ReproError
from repro.records import UNITS, load_manifest
from repro.store import Result, read_raw
from repro.verify import verify_result
from tests.faulty import finish, measure, pipe, run, run_and_die, run_until_killed, start


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
