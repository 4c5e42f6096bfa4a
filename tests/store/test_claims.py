"""Workers share a store without doing anything twice, and nobody ever unlocks by hand."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from repro.errors import ReproError
from repro.run import loop
from repro.run.failures import Failures
from repro.run.loop import UnitArrays, fill
from repro.store.layout import result_path
from repro.store.result import Result, open_result
from tests import faulty

N_PROMPTS = 9  # five units, the last one short


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return result_path(tmp_path / "store", "mini", "scan", "0123456789ab")


def _open(path: Path, n_prompts: int = N_PROMPTS, unit: int = faulty.UNIT, **provenance: Any) -> Result:
    return open_result(path, faulty.layout(n_prompts), unit, {**faulty.PROVENANCE, **provenance})


Compute = Callable[[int, Sequence[str]], dict[str, UnitArrays]]


def _say_nothing() -> Failures:
    return Failures(lambda line: None)


def _computing(
    results: dict[str, Result], seen: dict[int, list[str]], lacking: tuple[str, int] | None = None
) -> Compute:
    """Computes units as the runner does, says for whom in `seen`, and leaves one experiment out of one unit."""

    def compute(unit: int, names: Sequence[str]) -> dict[str, UnitArrays]:
        seen[unit] = [*seen.get(unit, []), *names]
        wanted = [name for name in names if (name, unit) != lacking]
        return {
            name: UnitArrays(faulty.measure(results[name].layout, results[name].unit_slice(unit))) for name in wanted
        }

    return compute


def _claimed(path: Path) -> list[str]:
    return sorted(file.name for file in (path / "units").glob("*.claim"))


def test_one_pass_feeds_several_results(path: Path) -> None:
    with _open(path) as first, _open(path.with_name("second"), n_prompts=5) as second:
        first.write_unit(1, faulty.measure(first.layout, first.unit_slice(1)))
        results, seen = {"first": first, "second": second}, dict[int, list[str]]()
        fill(results, _computing(results, seen), _say_nothing())
        assert seen == {0: ["first", "second"], 1: ["second"], 2: ["first", "second"], 3: ["first"], 4: ["first"]}
        assert first.missing() == second.missing() == []
        with _open(path.with_name("third"), unit=3) as third, pytest.raises(AssertionError, match="one unit"):
            fill({"first": first, "third": third}, _computing(results, seen), _say_nothing())


def test_a_unit_that_is_left_out_is_given_back_and_not_tried_again(path: Path) -> None:
    with _open(path) as result, _open(path) as other:
        results, seen = {"scan": result}, dict[int, list[str]]()
        compute = _computing(results, seen, lacking=("scan", 1))
        free = []

        def watched(unit: int, names: Sequence[str]) -> dict[str, UnitArrays]:
            if unit == 4:
                # By now the commits of units 0 and 1 have ended.
                free.append(other.claim(1))
            return compute(unit, names)

        fill(results, watched, _say_nothing())
        assert free == [True], "another runner need not wait until this one ends"
        assert list(seen) == [0, 1, 2, 3, 4]
        assert result.missing() == [1]
        assert _claimed(path) == ["1.claim"]


@pytest.mark.parametrize("how", ["while it computes", "while it is written"])
def test_a_failed_experiment_keeps_no_claim_and_stops_no_other(path: Path, how: str) -> None:
    with _open(path, 15) as first, _open(path.with_name("second"), 15) as second:
        results, seen, failures = {"first": first, "second": second}, dict[int, list[str]](), _say_nothing()
        compute = _computing(results, seen)

        def fails(unit: int, names: Sequence[str]) -> dict[str, UnitArrays]:
            filled = compute(unit, names)
            if unit == 2 and how == "while it computes":
                failures.errors["first"] = "no such thing"
                del filled["first"]
            elif unit == 2:
                filled["first"] = UnitArrays({})
            return filled

        fill(results, fails, failures)
        assert list(failures.errors) == ["first"]
        assert second.missing() == []
        # By unit 5 the commit of unit 2 has ended. What waited to be written may be lost with it.
        assert {2, 5, 6, 7} <= set(first.missing())
        assert all("first" not in seen[unit] for unit in (5, 6, 7))
        assert _claimed(path) == _claimed(path.with_name("second")) == []
        again: dict[int, list[str]] = {}
        fill(results, _computing(results, again), _say_nothing())
        assert first.missing() == []
        assert {name for names in again.values() for name in names} == {"first"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_end_in_the_middle_leaves_no_claim_and_writes_what_was_computed(
    path: Path, error: type[BaseException]
) -> None:
    with _open(path) as result:
        results = {"scan": result}
        compute = _computing(results, {})

        def ends(unit: int, names: Sequence[str]) -> dict[str, UnitArrays]:
            if unit == 3:
                raise error
            return compute(unit, names)

        with pytest.raises(error):
            fill(results, ends, _say_nothing())
        assert result.missing() == [3, 4]
        assert _claimed(path) == []


def test_a_disk_that_takes_no_claim_is_one_experiments_failure(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _open(path) as first, _open(path.with_name("second")) as second:
        results, failures = {"first": first, "second": second}, _say_nothing()

        def full(name: str) -> bool:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(first._claims, "take", full)
        fill(results, _computing(results, {}), failures)
        cannot = f"cannot write {path}: No space left on device; what was finished is kept, run again to go on"
        assert failures.errors == {"first": cannot}
        assert second.missing() == []


@pytest.mark.parametrize("writes", [True, False], ids=["who writes it", "who gives it back"])
def test_a_unit_that_another_living_runner_holds_is_waited_for(
    path: Path, writes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "POLL_S", 0.01)
    with _open(path) as one, _open(path) as other:
        assert other.claim(1)
        seen: dict[int, list[str]] = {}

        def ends() -> None:
            if writes:
                other.write_unit(1, faulty.measure(other.layout, other.unit_slice(1)))
            other.close()

        later = threading.Timer(0.3, ends)
        later.start()
        waited: list[None] = []
        fill({"scan": one}, _computing({"scan": one}, seen), _say_nothing(), waits=lambda: waited.append(None))
        later.join()
        assert one.missing() == []
        assert waited, "who waits for another runner is not hung"
        assert list(seen) == ([0, 2, 3, 4] if writes else [0, 2, 3, 4, 1])


def test_a_claim_keeps_others_out_until_it_ends(path: Path) -> None:
    arrays = faulty.measure(faulty.layout(N_PROMPTS), slice(0, 2))
    with _open(path) as one, _open(path) as two:
        assert one.claim(0)
        assert one.claim(0)
        assert not two.claim(0)
        with pytest.raises(ReproError, match="unit 0 is held by another runner"):
            two.write_unit(0, arrays)
        two.release(0)
        assert not two.claim(0)
        one.release(0)
        assert two.claim(0)
        assert two.write_unit(0, arrays)
        assert not one.claim(0)
        assert two.claim(1)
        two.close()
        assert one.claim(1)


def _claim_and_wait(path: Path, ready: Any) -> None:
    result = faulty.reopened(path, N_PROMPTS)
    assert result.claim(0)
    ready.send(None)
    time.sleep(600)


def test_the_claim_of_a_killed_process_ends_with_it(path: Path) -> None:
    with _open(path) as result:
        here, there = faulty.pipe()
        child = faulty.start(_claim_and_wait, path, there)
        here.recv()
        assert not result.claim(0)
        child.kill()
        child.join()
        assert _claimed(path) == ["0.claim"]
        assert result.claim(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_holds_no_claim_of_its_parent(path: Path) -> None:
    with _open(path) as result:
        assert result.claim(0)
        child = os.fork()
        if child == 0:
            os._exit(10 * result._claims.holds("0") + result.claim(0))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert result._claims.holds("0")


def test_a_commit_removes_the_claims_of_the_dead_and_leaves_those_of_the_living(path: Path) -> None:
    faulty.run(path, N_PROMPTS)
    (path / "units" / "3.claim").touch()
    with _open(path) as result, _open(path) as other:
        assert other._claims.take("1")
        result._claims.sweep()
        assert _claimed(path) == ["1.claim"]
        assert not result._claims.take("1")


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_grants_every_claim(
    path: Path, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", refuses)
    with _open(path) as one, _open(path) as two:
        assert one.claim(0)
        assert two.claim(0)
        arrays = faulty.measure(one.layout, one.unit_slice(0))
        assert one.write_unit(0, arrays)
        assert not two.write_unit(0, arrays)


def test_whatever_lies_in_a_claim_file_it_can_be_taken(path: Path) -> None:
    with _open(path) as result:
        (path / "units" / "0.claim").write_text("{")
        assert result.claim(0)
