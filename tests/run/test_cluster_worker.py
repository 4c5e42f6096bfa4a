"""One worker of a cluster: what it fills, keeps, refuses and tells, and whoever asks it."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest

from repro.errors import Exit, ReproError
from repro.request import Request, Workspace
from repro.run import cluster, loop
from repro.run import session as compute
from repro.run import worker as remote
from repro.run.failures import Failures
from repro.run.loop import UnitArrays
from repro.run.watchdog import Watchdog
from repro.run.worker import Job, Recipe, fill_unit, versions
from repro.store.result import Result, open_result
from tests import faulty
from tests.runs import PAPER
from tests.toys import make_native, write_prompts

TOLERANCE = 1e-5
"""Stated for another number of threads, relative to an array's largest value."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_native(tmp_path_factory.mktemp("clustered") / "toy")
    write_prompts(folder, n=18)
    return folder


@pytest.fixture
def result(tmp_path: Path) -> Iterator[Result]:
    """A result of six units that nobody has begun, open in another runner than the worker."""
    with open_result(tmp_path / "s" / "scan" / "k", faulty.layout(12), faulty.UNIT, faulty.PROVENANCE) as opened:
        yield opened


@pytest.fixture
def job(result: Result, tmp_path: Path) -> Job:
    """A job to fill it, by a worker that may import no torch; pickled as on the way to one."""
    remote._states.clear()
    made = Job(tmp_path.name, {"scan": result.path}, 1, versions(), Quick(faulty.layout(12)), 0.0, tmp_path)
    copy: Job = pickle.loads(pickle.dumps(made))
    return copy


class Quick:
    """What computes units, counting them."""

    def __init__(self, layout: Any) -> None:
        self.layout = layout
        self.units: list[int] = []
        self.trouble: Exception | None = None

    def __call__(self, failures: Failures, threads: int) -> Any:
        def compute(unit: int, names: list[str]) -> Any:
            self.units.append(unit)
            if self.trouble is not None:
                raise self.trouble
            failures.say(f"unit {unit}")
            arrays = faulty.measure(self.layout, self.layout.prompts(faulty.UNIT, unit))
            return {name: UnitArrays(arrays) for name in names}

        return compute


def test_a_unit_is_filled_once_however_often_it_is_asked_for(job: Job, result: Result) -> None:
    outcome = fill_unit(job, 3, ("scan",))
    assert (outcome.done, outcome.errors, outcome.said) == (("scan",), {}, ("unit 3",))
    assert result.missing() == [0, 1, 2, 4, 5]
    assert fill_unit(job, 3, ("scan",)).done == ("scan",)
    assert job.make.units == [3]  # type: ignore[attr-defined]


def test_what_another_living_runner_holds_is_left_to_it(job: Job, result: Result) -> None:
    assert result.claim(1)
    assert fill_unit(job, 1, ("scan",)).done == ()
    assert job.make.units == []  # type: ignore[attr-defined]
    result.release(1)
    assert fill_unit(job, 1, ("scan",)).done == ("scan",)


def test_a_worker_claims_nothing_after_an_error(job: Job, result: Result) -> None:
    job.make.trouble = ReproError("--memory: more is needed")  # type: ignore[attr-defined]
    with pytest.raises(ReproError, match="--memory"):
        fill_unit(job, 0, ("scan",))
    assert result.claim(0)


def test_a_worker_is_watched_only_once_it_has_loaded(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []

    class Watching(Watchdog):
        def __enter__(self) -> Self:
            began.append(self.ended.format(seconds=self.seconds, log="log"))
            return self

    monkeypatch.setattr(remote, "Watchdog", Watching)
    monkeypatch.setattr(remote, "_opened", lambda path: began.append("loads"))
    with suppress(AttributeError):  # what was opened is no result
        fill_unit(replace(job, hang_s=900.0), 3, ("scan",))
    said = "a worker was at one unit for 900 s, half of --watchdog: it is ended and the unit tried again; log says "
    assert began == ["loads", said + "where it hung"]


class Fed(Watchdog):
    """A watchdog that counts how often it is fed."""

    times = 0

    def feed(self) -> None:
        self.times += 1


class Answer:
    """The future of what a worker has done at once."""

    status = "finished"

    def __init__(self, outcome: remote.Outcome) -> None:
        self.outcome = outcome

    def result(self) -> remote.Outcome:
        return self.outcome


class Here:
    """A dask client whose only worker, once it has come, is this process."""

    status = "running"
    away = 0

    def nthreads(self) -> dict[str, int]:
        self.away -= 1
        return {} if self.away >= 0 else {"here": 1}

    def submit(self, call: Any, *given: Any, **_: Any) -> Answer:
        return Answer(call(*given))


@pytest.fixture
def asker(monkeypatch: pytest.MonkeyPatch) -> cluster.Cluster:
    """A cluster of one worker, here, that has answered as soon as it has come."""

    def finished(asked: cluster.Cluster, flying: dict[Any, Any]) -> list[Any]:
        return list(flying) if asked.n_workers else []

    monkeypatch.setattr(cluster.Cluster, "_finished", finished)
    client: Any = Here()
    return cluster.Cluster(client, "here", 1, print)


def test_a_unit_that_another_runner_holds_is_no_hang(
    asker: cluster.Cluster, job: Job, result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchdog, fed = Fed(0, tmp_path), list[int]()
    assert result.claim(1)

    def sleep(seconds: float) -> None:
        fed.append(watchdog.times)
        if len(fed) == 3:
            result.release(1)

    monkeypatch.setattr(loop, "time", SimpleNamespace(sleep=sleep))
    asker.fill({"scan": result}, job.make, Failures(print), lambda: None, watchdog)
    assert result.missing() == []
    assert 0 < fed[0] < fed[1] < fed[2], "before every time that it is waited for"


def test_a_cluster_without_workers_is_no_hang(
    asker: cluster.Cluster, job: Job, result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchdog, answers = Fed(0, tmp_path), len(result.missing())
    monkeypatch.setattr(Here, "away", 9)
    asker.fill({"scan": result}, job.make, Failures(print), lambda: None, watchdog)
    assert result.missing() == []
    assert watchdog.times > answers, "also while none was there"


def test_a_worker_keeps_two_jobs_open(job: Job) -> None:
    for token in "abcb":
        fill_unit(replace(job, token=token), 0, ("scan",))
    assert list(remote._states) == ["b", "c"]


def test_a_worker_that_differs_is_refused(job: Job, tmp_path: Path) -> None:
    other = replace(job, versions=versions() | {"numpy": "1.0"})
    with pytest.raises(ReproError, match=rf"^worker on .* has numpy {np.__version__} instead of 1\.0: install"):
        fill_unit(other, 0, ("scan",))
    elsewhere = replace(job, results={"scan": tmp_path / "elsewhere"})
    with pytest.raises(ReproError, match=r"finds no .*manifest\.json: the store must lie on a file system that every"):
        fill_unit(elsewhere, 0, ("scan",))
    assert list(remote._states) == []


@pytest.fixture
def sent(model: Path, tmp_path: Path) -> bytes:
    """How to compute the first experiment of the default spec on a toy, as it travels to a worker."""
    remote._engines.clear()
    world = Workspace(Request(PAPER, subject=str(model), out=tmp_path), print)
    plan = world.plan(world.choose(ask=False))
    item = next(item for item in plan.todo if item.name == "scan")
    session = compute.Session(plan.subject, plan.settings, 2**30, print)
    return pickle.dumps(Recipe.of(session, [item], item.stream))


@pytest.mark.usefixtures("one_thread")
def test_what_travels_is_small_and_another_number_of_threads_changes_last_bits_only(sent: bytes) -> None:
    assert len(sent) < 2**15
    one, two = (pickle.loads(sent)(Failures(print), n)(0, ["scan"])["scan"].arrays["path"] for n in (1, 2))
    assert one.shape[-1] == 4
    np.testing.assert_allclose(two, one, rtol=0, atol=TOLERANCE * np.nanmax(np.abs(one)))


@pytest.mark.usefixtures("one_thread")
def test_a_worker_computes_a_pass_at_its_own_precision_and_keeps_one_model(sent: bytes) -> None:
    recipe = pickle.loads(sent)
    coarse = replace(recipe, stream=replace(recipe.stream, precision="bf16"))
    one, other, again = (
        each(Failures(print), 1)(0, ["scan"])["scan"].arrays["path"] for each in (recipe, coarse, recipe)
    )
    assert len(remote._engines) == 1
    np.testing.assert_array_equal(again, one)
    assert 1e-4 < np.nanmax(np.abs(other - one)) / np.nanmax(np.abs(one)) < 0.1


@pytest.mark.usefixtures("one_thread")
def test_the_old_model_is_gone_before_another_is_loaded(
    sent: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote._states.clear()
    recipe = pickle.loads(sent)
    coarse = replace(recipe, stream=replace(recipe.stream, precision="bf16"))
    (item,) = recipe.items
    left: list[int] = []
    models: list[weakref.ref[Any]] = []

    def watched(*given: Any, real: Any = compute.load) -> Any:
        left.append(sum(model() is not None for model in models))
        models.append(weakref.ref(loaded := real(*given)))
        return loaded

    monkeypatch.setattr(compute, "load", watched)
    with open_result(item.path, item.layout, recipe.settings.unit, faulty.PROVENANCE) as opened:
        first = Job("first", {item.name: opened.path}, 1, versions(), recipe, 0.0, tmp_path)
        for unit, job in enumerate((first, replace(first, token="same"), replace(first, token="other", make=coarse))):
            assert fill_unit(job, unit, (item.name,)).errors == {}
    assert left == [0, 0]
    assert list(remote._states) == ["other"]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("file", ["prompts.safetensors", "model.safetensors"])
def test_a_worker_that_sees_other_files_is_refused(sent: bytes, model: Path, tmp_path: Path, file: str) -> None:
    other = make_native(tmp_path / "other", seed=1)
    write_prompts(other, seed=1)
    recipe = pickle.loads(sent)
    folder = recipe.subject.folder
    there = {"prompts": other / file} if file.startswith("prompts") else {"path": other, "weights": (other / file,)}
    elsewhere = replace(recipe, subject=replace(recipe.subject, folder=replace(folder, **there)))
    with pytest.raises(ReproError, match="differs from what was planned: every worker must see the same") as caught:
        elsewhere(Failures(print), 1)
    assert caught.value.code == Exit.UNAVAILABLE
    assert str(other) in caught.value.message
