"""Nothing lost and nothing wrong: kills, bit flips, full and read-only disks, racing runners. Counts are printed."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from repro.errors import Exit
from repro.store import read_summary, status
from repro.verify import verify, verify_result
from tests import campaigns, faulty

pytestmark = pytest.mark.faults


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: what a killed process wrote is the kernel's, whatever the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def _say(capsys: pytest.CaptureFixture[str], what: str, counts: dict[str, int]) -> None:
    with capsys.disabled():
        print(f"\n{what}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))


def test_a_kill_at_every_step_loses_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = campaigns.kill_at_steps(folder, n_prompts=3)
    _say(capsys, "killed at every step, 0 lost, 0 wrong", counts)
    assert counts["kills"] >= 100
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
        children = [faulty.start(faulty.run, path, 25, log, 8, 0.01) for log in logs]
        if turn >= 3:
            while not (logs[0].exists() and len(logs[0].read_text().split()) > 1):
                time.sleep(0.001)
            children[0].kill()
            counts["runners killed"] += 1
        codes = [faulty.finish(child) for child in children]
        assert codes[1:] == [0, 0, 0]
        written = Counter(int(line) for log in logs if log.exists() for line in log.read_text().split())
        assert set(written) == set(range(13))
        # Only the unit that a killed runner was at is computed again.
        assert sum(written.values()) - 13 <= (turn >= 3)
        counts["units computed twice"] += sum(written.values()) - 13
        left = campaigns.contents(path)
        assert {name: left[name] for name in campaigns.contents(reference)} == campaigns.contents(reference)
        assert verify_result(path) == []
        assert status(path) == "committed"
        counts["rounds"] += 1
        counts["units"] += 13
    _say(capsys, "four runners on one store", counts)
    assert verify(tmp_path / "s" / "nothing") == []
    assert read_summary(reference).attrs["found"] is True
