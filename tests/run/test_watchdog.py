"""A run that hangs is ended with its stacks in a log, and running again ends as if nothing had happened."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from repro.errors import Exit, ReproError
from repro.run.watchdog import Watchdog, parse_watchdog
from tests.runs import PAPER, Run, cli, lasting

Finished = Callable[[str], Run]

# The real command, with a measure that hangs at its second unit: first where Python threads run, then where none can.
HANGS = """
import ctypes, sys, time
from repro.__main__ import main
from repro.measures import VPatch

def waits_for_ever(): {hang}

def hangs(self, context, prepared, batch, real=VPatch.compute):
    if batch.first_prompt:
        waits_for_ever()
    return real(self, context, prepared, batch)

VPatch.compute = hangs
sys.exit(main(sys.argv[1:]))
"""
ASLEEP = "time.sleep(600)"
HOLDING_THE_LOCK = "ctypes.PyDLL(None).sleep(600)"


@pytest.fixture(scope="module")
def unharmed(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in which one experiment was computed alone, without interruption."""
    run = without_patch(finished, tmp_path_factory.mktemp("unharmed"))
    assert run.cli("run", "v_patch").code == Exit.OK
    return run


def without_patch(finished: Finished, folder: Path) -> Run:
    run = finished("native").copy(folder)
    shutil.rmtree(run.store / "v_patch")
    return run


@pytest.mark.parametrize("hang", [ASLEEP, HOLDING_THE_LOCK], ids=["asleep", "holding-the-lock"])
def test_a_hang_is_ended_with_its_stack_and_resumes(
    finished: Finished, unharmed: Run, tmp_path: Path, hang: str
) -> None:
    run = without_patch(finished, tmp_path)
    command = ("run", "v_patch", "--spec", str(PAPER), "--subject", str(run.model), "--out", str(run.out))
    ended = subprocess.run(
        [sys.executable, "-c", HANGS.format(hang=hang), *command, "--watchdog", "1s"],
        capture_output=True, text=True, check=False, timeout=300, cwd=PAPER.parent,
    )  # fmt: skip
    assert ended.returncode == Exit.FAILED
    assert "Traceback" not in ended.stderr, ended.stderr
    (log,) = (run.out / "store" / "logs").iterdir()
    text = log.read_text()
    assert text.startswith("nothing was finished for 1 s; where every thread was:\n")
    assert "in waits_for_ever" in text
    assert "in fill" in text, "the stack of the loop, too"
    if hang == ASLEEP:
        assert f"no unit was finished for 1 s (--watchdog): ended; {log} says where it hung; run " in ended.stderr
    # Who keeps the lock keeps the thread that writes from writing, too.
    recorded = len(list((run.result("v_patch") / "units").glob("*.json")))
    assert recorded == 1 or (recorded == 0 and hang == HOLDING_THE_LOCK)
    assert cli("verify", "--spec", PAPER, "--out", run.out).code == Exit.OK
    resumed = run.cli("run", "v_patch")
    assert resumed.code == Exit.OK, resumed.text
    assert f"pass over {2 - recorded} units" in resumed.out
    assert lasting(run.store) == lasting(unharmed.store)


def test_what_is_said_is_up_to_whoever_watches(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from repro.run.watchdog import Watchdog\n"
        "with Watchdog(0.1, Path(sys.argv[1]), 'over after {seconds:g} s, see {log}') as dog: print(dog.path)\\\n"
        "    or time.sleep(20)"
    )
    ended = subprocess.run([sys.executable, "-uc", code, tmp_path], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (Exit.FAILED, f"over after 0.1 s, see {ended.stdout}")


def test_nothing_that_goes_on_is_ended_and_no_log_is_left(tmp_path: Path) -> None:
    with Watchdog(0.4, tmp_path / "logs") as watchdog:
        for _ in range(6):
            time.sleep(0.1)
            watchdog.feed()
        assert list((tmp_path / "logs").iterdir()) == [watchdog.path]
    time.sleep(0.6)
    assert list((tmp_path / "logs").iterdir()) == []


def test_none_makes_no_file(tmp_path: Path) -> None:
    with Watchdog(0, tmp_path / "logs") as watchdog:
        watchdog.feed()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ends_well_leaves_no_log(finished: Finished) -> None:
    assert list((finished("native").out / "store" / "logs").iterdir()) == []


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("2h", 7200), ("90s", 90), ("1.5", 1.5), ("0", 0)])
def test_times(text: str, seconds: float) -> None:
    assert parse_watchdog(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1m", "nan", "1e300h", "inf", "0s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ReproError) as caught:
        parse_watchdog(text)
    assert caught.value.code == Exit.USAGE
    assert caught.value.message == f"--watchdog {text}: write 90s, 30m or 2h, or 0 to turn it off"


def test_the_command_refuses_what_is_no_time(finished: Finished) -> None:
    answer = finished("native").cli("run", "--watchdog", "soon")
    assert answer.code == Exit.USAGE
    assert "--watchdog soon: write 90s" in answer.err
