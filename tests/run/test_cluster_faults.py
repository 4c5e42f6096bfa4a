"""Workers, schedulers and whole runs that are killed: what was written counts, the rest is done once."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from repro.errors import Exit
from repro.store.records import status
from repro.store.verify import verify_result
from tests import faulty
from tests.campaigns import contents, same_bytes
from tests.runs import ROOT

pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.faults

PROMPTS = 40
UNITS = PROMPTS // faulty.UNIT
END_S = 60.0
"""Seconds in which an interrupted run must have ended."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the result that one process computes."""
    path = tmp_path_factory.mktemp("one") / "s" / "scan" / "k"
    faulty.run(path, PROMPTS)
    return contents(path)


def driver(root: Path, *options: object, **environment: str) -> subprocess.Popen[str]:
    """A run over a cluster, in a process group of its own."""
    command = [sys.executable, "-m", "tests.clustered", str(root), "--prompts", str(PROMPTS), *map(str, options)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, start_new_session=True, stdout=pipe, stderr=pipe, text=True
    )


def ended(process: subprocess.Popen[str], code: int) -> str:
    """What a driver printed; it must have ended with this code and without a word of dask's."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, out + err
    assert "distributed" not in out + err
    assert "Traceback" not in err
    return out + err


def begun(root: Path) -> list[tuple[int, int]]:
    """Units in the order in which they were begun, each with its process."""
    log = root / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines]


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits for something while a process runs."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def result(root: Path) -> Path:
    """Where a driver's result lies."""
    return root / "s" / "scan" / "k"


def _say(capsys: pytest.CaptureFixture[str], what: str, counts: dict[str, int]) -> None:
    with capsys.disabled():
        print(f"\n{what}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))


def test_a_lost_worker_costs_one_unit(
    folder: Path, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    process = driver(folder, "--workers", 4, "--pause", 0.4)
    until(lambda: len(begun(folder)) >= 6, process)
    # The last unit begun is still being computed, for its pause is longer than this took.
    lost, victim = begun(folder)[-1]
    os.kill(victim, signal.SIGKILL)
    ended(process, Exit.OK)
    times = Counter(unit for unit, _ in begun(folder))
    assert times == Counter(range(UNITS)) + Counter([lost])
    assert len({worker for _, worker in begun(folder)}) >= 4
    assert same_bytes(result(folder), expected)
    assert verify_result(result(folder)) == []
    _say(capsys, "a worker of four killed", {"units": UNITS, "units computed twice": sum(times.values()) - UNITS})


def test_eight_workers_interrupted_and_two_that_go_on_end_in_the_same_bytes(
    folder: Path, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    process = driver(folder, "--workers", 8, "--pause", 0.5)
    until(lambda: len(begun(folder)) >= 12, process)
    children = psutil.Process(process.pid).children(recursive=True)
    open_to = {connection.laddr.ip for child in children for connection in child.net_connections("tcp")}
    assert open_to == {"127.0.0.1"}
    # As Ctrl-C does: to every process of the group.
    os.killpg(process.pid, signal.SIGINT)
    at = time.monotonic()
    ended(process, Exit.INTERRUPTED)
    assert time.monotonic() - at < END_S
    assert not psutil.wait_procs(children, timeout=END_S)[1]
    kept = [unit for unit in range(UNITS) if (result(folder) / "units" / f"{unit:06d}.json").exists()]
    before = len(begun(folder))
    ended(driver(folder, "--workers", 2), Exit.OK)
    again = [unit for unit, _ in begun(folder)[before:]]
    assert sorted(again + kept) == list(range(UNITS))
    assert same_bytes(result(folder), expected)
    _say(capsys, "8 workers, interrupted, then 2", {"units kept": len(kept), "units of the second run": len(again)})


@contextmanager
def existing(port: int, workers: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A scheduler and its workers as somebody else would start them; the scheduler is the first."""
    address = f"tcp://127.0.0.1:{port}"
    modules = [["dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]]
    modules += [["dask_worker", address, "--nthreads", "2", "--no-nanny", "--no-dashboard"]] * workers
    void = subprocess.DEVNULL
    started = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{module}", *options], cwd=ROOT, stdout=void, stderr=void
        )
        for module, *options in modules
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_killed_scheduler_ends_the_run_and_another_lets_it_go_on(
    folder: Path, expected: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    there = ("--scheduler", f"tcp://127.0.0.1:{port}")
    with existing(port, workers=2) as (scheduler, *_):
        process = driver(folder, *there, "--pause", 0.2)
        until(lambda: len(begun(folder)) >= 6, process)
        scheduler.kill()
        at = time.monotonic()
        said = ended(process, Exit.FAILED)
        assert time.monotonic() - at < END_S
    assert said.splitlines()[-1] == (
        f"error: --scheduler tcp://127.0.0.1:{port}: the scheduler is gone; what was written is kept, run the same "
        "command again to go on"
    )
    before = len(begun(folder))
    kept = status(result(folder)).present
    assert 0 < kept < UNITS
    with existing(port, workers=2), faulty.reopened(result(folder), PROMPTS) as mine:
        # One unit is held by somebody else, and asked for again until that one gives it back.
        held = mine.missing()[0]
        assert mine.claim(held)
        process = driver(folder, *there)
        until(lambda: mine.missing() == [held], process)
        mine.release(held)
        assert "; threads per unit: 2" in ended(process, Exit.OK)
    assert begun(folder)[-1][0] == held
    again = [unit for unit, _ in begun(folder)[before:]]
    assert len(again) == len(set(again)) == UNITS - kept
    assert same_bytes(result(folder), expected)
    _say(capsys, "scheduler killed and restarted", {"units kept": kept, "units of the second run": len(again)})


def test_an_experiment_that_fails_on_a_worker_stops_no_other(folder: Path, expected: dict[str, bytes]) -> None:
    said = ended(driver(folder, "--workers", 2, "--odd", "fails"), Exit.FAILED)
    assert said.count("odd failed: ValueError: no such thing") == 1
    assert same_bytes(result(folder), expected)
    assert str(status(folder / "s" / "odd" / "k")).startswith("partial 0/")


def test_a_unit_that_hangs_worker_after_worker_is_given_up_and_leaves_their_stacks(folder: Path) -> None:
    limit = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    said = ended(driver(folder, "--workers", 2, "--odd", "hangs", "--watchdog", 2, **limit), Exit.FAILED)
    assert re.search(r"odd failed: unit \d+ was given up after 2 workers died at it", said)
    assert (
        f"a worker was at one unit for 1 s, half of --watchdog: it is ended and the unit tried again; {folder}" in said
    )
    assert "no unit was finished" not in said, "that is the run's sentence"
    logs = [log.read_text() for log in (folder / "logs").iterdir()]
    assert len(logs) >= 2
    assert all("tests/clustered.py" in log for log in logs)
