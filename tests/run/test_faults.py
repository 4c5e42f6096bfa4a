"""Nothing lost and nothing wrong: kills, bit flips, full and read-only disks, racing runners. Counts are printed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from repro.errors import Exit
from repro.store.result import read_summary, status
from repro.store.verify import verify, verify_result
from tests import campaigns, faulty
from tests.runs import ROOT, SPECS, cli, lasting

pytestmark = pytest.mark.faults

UNITS = "killed/store/toy/scan/*/units/*.json"
INTERRUPTED = "interrupted; what was committed is kept, run the same command again to go on"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: what a killed process wrote is the kernel's, whatever the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def _say(capsys: pytest.CaptureFixture[str], what: str, counts: dict[str, int]) -> None:
    with capsys.disabled():
        print(f"\n{what}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))


def test_the_killed_child_is_the_real_loop_without_torch(tmp_path: Path) -> None:
    here, there = faulty.pipe()
    child = faulty.start(faulty.modules_of_a_run, tmp_path / "e" / "k", 5, there)
    modules = set(here.recv())
    assert faulty.finish(child) == 0
    assert "zarr" in modules
    assert not modules & {"torch", "transformers", "transformer_lens", "triton"}
    from repro.run import execute as runner

    assert faulty.loop.fill is runner.fill


@pytest.mark.parametrize(
    ("torn", "in_turn", "every", "least"),
    [(False, True, 1, 100), (True, True, 1, 10), (False, False, 5, 20)],
    ids=["before each call", "inside each write", "while another unit computes"],
)
def test_a_kill_at_every_step_loses_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], torn: bool, in_turn: bool, every: int, least: int
) -> None:
    counts = campaigns.kill_at_steps(folder, 3 if in_turn else 7, torn, in_turn, every)
    _say(capsys, f"killed at every step ({torn=}, {in_turn=}, {every=}), 0 lost, 0 wrong", counts)
    assert counts["kills"] >= least
    assert counts["resumed"] == counts["kills"]


def test_the_campaign_notices_a_careless_writer(folder: Path) -> None:
    # Half a chunk without a record is work left; half a record, manifest or provenance is damage.
    noticed = 0
    for step in range(1, 15):
        path = folder / str(step) / "e" / "k"
        faulty.finish(faulty.start(faulty.run_carelessly_and_die, path, 5, step))
        try:
            campaigns.after_kill(path)
        except AssertionError:
            noticed += 1
    assert noticed >= 3


def test_kills_at_random_instants_lose_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = campaigns.kill_at_random(folder, n_prompts=21, kills=100, seed=0)
    _say(capsys, "killed at random instants, 0 lost, 0 wrong", counts)
    assert counts["kills"] >= 100
    assert counts["stores finished"] >= 1


def test_interruptions_at_random_instants_lose_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = campaigns.kill_at_random(folder, n_prompts=21, kills=40, seed=4, how=signal.SIGINT)
    _say(capsys, f"interrupted at random instants, 0 lost, 0 wrong, over within {campaigns.STOP_S:.0f} s", counts)
    assert counts["kills"] >= 40


@pytest.mark.parametrize("at", [1, 4])
def test_a_run_out_of_memory_dies_and_resumes(tmp_path: Path, at: int) -> None:
    reference, path, log = tmp_path / "s" / "e" / "reference", tmp_path / "t" / "e" / "reference", tmp_path / "log"
    faulty.run(reference, n_prompts=13)
    log.write_text("")
    assert faulty.finish(faulty.start(faulty.run_out_of_memory, path, 13, log, at)) not in (0, Exit.INTERRUPTED)
    kept = campaigns.after_kill(path)
    assert kept <= campaigns.numbers(log) == set(range(at + 1))
    assert len(campaigns.numbers(log) - kept) <= campaigns.AT_RISK
    log.write_text("")
    faulty.run(path, 13, log)
    assert campaigns.numbers(log) == set(range(7)) - kept
    assert campaigns.contents(path) == campaigns.contents(reference)


@pytest.mark.parametrize("committed", [True, False])
def test_every_flipped_bit_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str], committed: bool) -> None:
    path = tmp_path / "s" / "e" / "k"
    faulty.run(path, n_prompts=9)
    if not committed:
        shutil.rmtree(path / "data.zarr" / "summary")
        (path / "COMMIT").unlink()
    counts = campaigns.flip_bits(path, flips=400 if committed else 150, seed=1)
    _say(capsys, f"bits flipped in a {'committed' if committed else 'partial'} result, all found", counts)
    assert sum(counts.values()) >= (400 if committed else 150)


@pytest.mark.parametrize("limit", [0, 300, 1000, 3000])
def test_a_full_disk_is_one_sentence_and_resumes(tmp_path: Path, limit: int) -> None:
    reference, path = tmp_path / "s" / "e" / "reference", tmp_path / "t" / "e" / "reference"
    faulty.run(reference, n_prompts=5, n_positions=256)
    here, there = faulty.pipe()
    child = faulty.start(faulty.run_on_full_disk, path, 5, limit, 256, there)
    code, sentence = here.recv()
    assert faulty.finish(child) == 0
    assert code == Exit.FAILED
    assert "cannot write" in sentence
    assert "too large" in sentence
    assert not [file for file in path.rglob("*.tmp") if file.is_file()]
    assert campaigns.after_kill(path) == set()
    faulty.run(path, n_prompts=5, n_positions=256)
    assert campaigns.contents(path) == campaigns.contents(reference)


def test_disks_of_every_size_lose_nothing_when_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apart = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.getuid() else [])]
    small = ["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run([*apart, *small], capture_output=True).returncode:
        pytest.skip("nobody may mount a small disk here; the limit on a file's size has to do")
    code = "import json, sys, pathlib, tests.campaigns as c; print(json.dumps(c.fill_disks(pathlib.Path(sys.argv[1]))))"
    line = [*apart, sys.executable, "-c", code, str(tmp_path)]
    said = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    counts = json.loads(said.stdout)
    _say(capsys, "disks of every size until one is enough, 0 lost, 0 wrong", counts)
    assert counts["resumed"] == counts["full disks"] >= 10
    assert counts["units kept"] >= 10


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_folder_is_refused_and_can_be_read(open_folder: Path) -> None:
    fresh, done = open_folder / "s" / "e" / "fresh", open_folder / "s" / "e" / "done"
    faulty.run(done, n_prompts=5)
    before = campaigns.contents(done)
    for folder in (open_folder, *(path for path in open_folder.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    for path, expected in ((fresh, Exit.FAILED), (done, Exit.OK)):
        here, there = faulty.pipe()
        child = faulty.start(faulty.run_as_nobody, path, 5, there)
        code, sentence = here.recv()
        assert faulty.finish(child) == 0
        assert code == expected, sentence
        assert ("cannot write" in sentence) == (expected != Exit.OK)
    assert not fresh.exists()
    assert campaigns.contents(done) == before


def test_four_racing_runners_write_each_unit_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = tmp_path / "s" / "e" / "reference"
    faulty.run(reference, n_prompts=25)
    counts = {"rounds": 0, "units": 0, "units computed twice": 0, "runners killed": 0}
    for turn in range(6):
        path = tmp_path / str(turn) / "e" / "reference"
        logs = [tmp_path / f"{turn}-{n}.log" for n in range(4)]
        children = [faulty.start(faulty.run_slowly, path, 25, log) for log in logs]
        if turn >= 3:
            while children[0].is_alive() and not (logs[0].exists() and campaigns.numbers(logs[0])):
                time.sleep(0.001)
            children[0].kill()
        codes = [faulty.finish(child) for child in children]
        assert codes[1:] == [0, 0, 0]
        counts["runners killed"] += codes[0] != 0
        written = Counter(int(line) for log in logs if log.exists() for line in log.read_text().split())
        assert set(written) == set(range(13))
        # Only the units that a killed runner was at are computed again.
        assert sum(written.values()) - 13 <= campaigns.AT_RISK * (turn >= 3)
        counts["units computed twice"] += sum(written.values()) - 13
        left = campaigns.contents(path)
        assert {name: left[name] for name in campaigns.contents(reference)} == campaigns.contents(reference)
        assert verify_result(path) == []
        assert str(status(path)) == "committed"
        counts["rounds"] += 1
        counts["units"] += 13
    _say(capsys, "four runners on one store", counts)
    assert counts["runners killed"] >= 1
    assert verify(tmp_path / "s" / "nothing") == []
    assert read_summary(reference).attrs["found"] == 1


def _records(out: Path) -> dict[str, bytes]:
    """The records of all units below a store."""
    return {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.glob("*/*/*/units/*.json"))}


def test_the_command_stops_within_seconds_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Here, so that the rest of this file and the soak start without torch.
    from tests.toys import make_native, write_prompts

    make_native(tmp_path / "toy")
    write_prompts(tmp_path / "toy", n=400)
    spec, out = Path(shutil.copy(SPECS / "minimal.toml", tmp_path)), tmp_path / "store"
    kept: dict[str, bytes] = {}
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        line = [sys.executable, "-m", "repro", "run", "--spec", str(spec)]
        child = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while child.poll() is None and len(_records(out)) < len(kept) + 3:
            time.sleep(0.002)
        child.send_signal(how)
        begun = time.perf_counter()
        _, said = child.communicate(timeout=600)
        seconds = time.perf_counter() - begun
        killed = how == signal.SIGKILL
        assert child.returncode == (-how if killed else Exit.INTERRUPTED), said
        assert said == (
            "" if killed else "interrupted; what was committed is kept, run the same command again to go on\n"
        )
        assert seconds < campaigns.STOP_S
        before, kept = kept, _records(out)
        assert before.items() <= kept.items()
        claims = [file.name for file in out.glob("*/*/*/units/*.claim")]
        # An interruption while a claim is being taken may leave its file, unlocked; the commit removes it.
        assert killed or len(claims) <= 1, claims
        counts = {"units kept": len(kept), "ms to the end": round(1000 * seconds)}
        _say(capsys, f"`repro run` after {how.name}", counts)
    assert len(kept) < 100
    assert cli("run", "--spec", spec).code == cli("run", "--spec", spec, "--out", tmp_path / "other").code == Exit.OK
    assert kept.items() <= _records(out).items()
    assert not list(out.glob("*/*/*/units/*.claim"))
    assert lasting(out / "toy") == lasting(tmp_path / "other" / "store" / "toy")
    assert verify(out) == []


SCAN = """
[experiment.scan]
measure = "path_shares"
group = "paper"
stride = 8
decoys = 8
"""


def test_a_scan_killed_ten_times_ends_in_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.toys import make_native, write_prompts

    make_native(tmp_path / "toy", n_layers=2)
    write_prompts(tmp_path / "toy", n=90, length=20)
    minimal = (SPECS / "minimal.toml").read_text()
    (tmp_path / "spec.toml").write_text(minimal.replace("[run]", "[run]\nprompts_per_unit = 2", 1) + SCAN)
    line = ["run", "scan", "--spec", "spec.toml", "--out"]
    call = f"kill_command('toy', {UNITS!r}, {[*line, 'killed']}, 10)"
    code = f"import json, tests.campaigns as c; print(json.dumps(c.{call}))"
    alone = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=alone, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    counts = json.loads(said.stdout.splitlines()[-1])
    _say(capsys, "`repro run scan` killed, 0 lost, 0 wrong", counts)
    assert counts["kills"] == 10
    assert 20 <= counts["units kept"] <= 45
    store = {}
    for name in ("killed", "whole"):
        assert cli(*line[:3], tmp_path / "spec.toml", "--out", tmp_path / name).code == Exit.OK
        store[name] = lasting(tmp_path / name / "store" / "toy")
    assert any(name.startswith("scan/") and "/c." in name for name in store["whole"])
    assert store["killed"] == store["whole"]
    assert verify(tmp_path / "killed" / "store") == []
