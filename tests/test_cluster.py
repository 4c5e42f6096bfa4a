"""Units filled by other processes: the same bytes as by one, each once, and one sentence where it cannot be."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from repro import cluster, remote, workers
from repro.errors import Exit, ReproError
from repro.failures import Failures
from repro.loop import Filled
from repro.remote import Job, Recipe, fill_unit, versions
from repro.session import Request, World
from repro.store import Result, open_result
from tests import faulty
from tests.runs import PAPER, ROOT, cli, contents, only_error
from tests.toys import make_native, write_prompts

TOLERANCE = 1e-5
"""Stated for another number of threads, relative to an array's largest value."""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A single thread for torch, as for each worker of the runs compared with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_native(tmp_path_factory.mktemp("clustered") / "toy")
    write_prompts(folder, n=18)
    return folder


# --------------------------------------------------------------------------------------------------------- whole runs


def apart(*arguments: object, threads: int) -> str:
    """A command in a process of its own, with so many threads to divide; it must end well and warn of nothing."""
    command = [sys.executable, "-W", "error", "-m", "repro", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == Exit.OK, ran.stdout + ran.stderr
    assert ran.stderr == ""
    return ran.stdout


@pytest.mark.usefixtures("one_thread")
def test_two_workers_store_the_bytes_that_one_process_stores(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    options = ("--spec", PAPER, "--subject", model, "--out")
    said = apart("run", *options, tmp_path / "two", "--workers", 2, threads=2)
    assert "workers: 2 processes here; threads per unit: 1\n" in said
    assert "distributed" not in said
    alone = cli("run", *options, tmp_path / "one")
    assert alone.code == Exit.OK, alone.text
    expected = contents(tmp_path / "one" / "store" / "toy")
    assert sum("/c." in name for name in expected) > 50
    assert contents(tmp_path / "two" / "store" / "toy") == expected
    states = json.loads(cli("plan", *options, tmp_path / "two", "--json").out)["items"]
    assert {row["state"] for row in states} == {"fresh"}


# ------------------------------------------------------------------------------------------------------------- options


def test_what_cannot_be_is_one_sentence(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("run", "--spec", PAPER, "--subject", model, "--out", tmp_path)
    both = cli("all", *options[1:], "--workers", "2", "--scheduler", "tcp://127.0.0.1:1")
    assert both.code == Exit.USAGE
    assert only_error(both) == "--workers starts a cluster and --scheduler joins one: give one of them"
    assert cli(*options, "--workers", "0").code == Exit.USAGE
    monkeypatch.setattr(workers, "find_spec", lambda name: None)
    for option in (("--workers", "2"), ("--scheduler", "tcp://127.0.0.1:1")):
        answer = cli(*options, *option)
        assert answer.code == Exit.USAGE
        expected = f'{option[0]}: the package distributed is not installed: pip install "distributed>=2026.1"'
        assert only_error(answer) == expected
    assert not (tmp_path / "store" / "toy").exists()


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("nonsense", "an address such as tcp://host:8786 is needed"),
        ("http://here:8786", "an address such as tcp://host:8786 is needed"),
        ("tcp://127.0.0.1:1", "it cannot be reached (Timed out trying to connect"),
        ("tls://here:8786", "it cannot be reached (dask is not configured for TLS: distributed.comm.tls)"),
    ],
)
def test_a_scheduler_that_does_not_answer_is_one_sentence(address: str, why: str) -> None:
    pytest.importorskip("distributed")
    code = (
        "from repro import workers; workers.CONNECT_S = 0.3\n"
        f"try: workers.at_hand(None, {address!r}, 'cpu', print).__enter__()\n"
        "except workers.ReproError as error: print(int(error.code), error)"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    (line,) = ran.stdout.splitlines()
    assert line.startswith(f"2 --scheduler {address}: {why}")


def test_dask_and_torch_are_imported_only_when_they_are_needed() -> None:
    code = "import sys, repro.stages; print({'dask', 'distributed', 'torch'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def test_each_worker_gets_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5f,MIG-7")
    assert workers._devices(2) == ["3", "GPU-5f"]
    with pytest.raises(ReproError, match=r"^--workers 4: each takes a GPU, and 3 are visible here$"):
        workers._devices(4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert workers._devices(2) == ["0", "1"]
    monkeypatch.setattr(distributed, "SpecCluster", lambda **given: SimpleNamespace(worker_spec={}, **given))
    monkeypatch.setattr(workers, "find_spec", lambda name: None)
    plain = workers._cluster(4, ["3", "5"])
    assert [spec["options"]["env"] for spec in plain.worker_spec.values()] == [
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"CUDA_VISIBLE_DEVICES": "5"},
    ]
    assert {spec["options"]["nthreads"] for spec in plain.worker_spec.values()} == {4}
    monkeypatch.setattr(workers, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "dask_cuda", SimpleNamespace(LocalCUDACluster=lambda **given: given))
    cuda = workers._cluster(4, ["3", "5"])
    assert (cuda["n_workers"], cuda["threads_per_worker"], cuda["host"]) == (2, 4, "127.0.0.1")
    assert not hasattr(workers._cluster(4, ["", ""]), "n_workers"), "without a device, no cluster of GPUs"


def test_what_goes_wrong_on_a_worker_is_told_as_what_it_is() -> None:
    distributed = pytest.importorskip("distributed")
    said: list[str] = []
    client: Any = SimpleNamespace(status="running")
    asker = cluster.Cluster(client, "--scheduler tcp://there:1", 1, said.append)

    def answer(error: Exception, cause: Exception | None = None) -> remote.Outcome:
        error.__cause__ = cause
        future: Any = SimpleNamespace(status="error", exception=lambda: error)
        return asker._answer(future, 7, ("scan", "odd"))

    with pytest.raises(ReproError, match=r"^--memory: give more$"):
        answer(ReproError("--memory: give more"))
    with pytest.raises(ReproError, match=r"tcp://there:1: ModuleNotFoundError: .* need this package and what it needs"):
        answer(RuntimeError("many words"), ModuleNotFoundError("No module named 'repro'"))
    assert said == []
    with pytest.raises(ReproError, match=r"tcp://there:1: a worker could not fill unit 7 \(KeyError: 'x'\)$"):
        answer(KeyError("x"))
    assert "KeyError" in said[0]
    lost = answer(distributed.KilledWorker("unit-7", None, 3))
    assert lost.done == tuple(lost.errors) == ("scan", "odd")
    assert lost.errors["odd"] == "unit 7 was given up after 4 workers died at it, perhaps of memory"
    client.status = "closed"
    with pytest.raises(ReproError, match=r"tcp://there:1: the scheduler is gone; what was written is kept") as caught:
        answer(KeyError("x"))
    assert caught.value.code == Exit.FAILED


def test_what_workers_have_written_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "POLL_S", 0.0)
    looks = iter([[3, 4], [4], []])
    late: Any = SimpleNamespace(missing=lambda: next(looks))
    cluster._await_sight({"scan": late}, Failures(print))
    assert list(looks) == []
    monkeypatch.setattr(cluster, "SEEN_S", 0.0)
    cluster._await_sight({"scan": SimpleNamespace(missing=lambda: [0])}, Failures(print))  # type: ignore[dict-item]


# ---------------------------------------------------------------------------------------------------------- one worker


@pytest.fixture
def result(tmp_path: Path) -> Iterator[Result]:
    """A result of six units that nobody has begun, open in another runner than the worker."""
    with open_result(tmp_path / "s" / "scan" / "k", faulty.layout(12), faulty.UNIT, faulty.PROVENANCE) as opened:
        yield opened


@pytest.fixture
def job(result: Result, tmp_path: Path) -> Job:
    """A job to fill it, by a worker that may import no torch; pickled as on the way to one."""
    remote._desks.clear()
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
            return {name: Filled(arrays) for name in names}

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


def test_a_worker_keeps_two_jobs_open(job: Job) -> None:
    for token in "abcb":
        fill_unit(replace(job, token=token), 0, ("scan",))
    assert list(remote._desks) == ["b", "c"]


def test_a_worker_that_differs_is_refused(job: Job, tmp_path: Path) -> None:
    other = replace(job, versions=versions() | {"numpy": "1.0"})
    with pytest.raises(ReproError, match=rf"^worker on .* has numpy {np.__version__} instead of 1\.0: install"):
        fill_unit(other, 0, ("scan",))
    elsewhere = replace(job, results={"scan": tmp_path / "elsewhere"})
    with pytest.raises(ReproError, match=r"finds no .*manifest\.json: the store must lie on a file system that every"):
        fill_unit(elsewhere, 0, ("scan",))
    assert list(remote._desks) == []


@pytest.fixture
def sent(model: Path, tmp_path: Path) -> bytes:
    """How to compute the first experiment of the default spec on a toy, as it travels to a worker."""
    remote._engines.clear()
    world = World(Request(PAPER, subject=str(model), out=tmp_path), print)
    plan = world.plan(world.choose(ask=False))
    (item,) = plan.todo
    return pickle.dumps(Recipe.of(plan, [item], item.stream, 2**30))


@pytest.mark.usefixtures("one_thread")
def test_what_travels_is_small_and_another_number_of_threads_changes_last_bits_only(sent: bytes) -> None:
    assert len(sent) < 2**15
    one, two = (pickle.loads(sent)(Failures(print), n)(0, ["writer"])["writer"].arrays["pr"] for n in (1, 2))
    assert one.shape[-2:] == (4, 40)
    np.testing.assert_allclose(two, one, rtol=0, atol=TOLERANCE * np.nanmax(np.abs(one)))


@pytest.mark.usefixtures("one_thread")
def test_a_worker_computes_a_pass_at_its_own_precision_and_keeps_one_model(sent: bytes) -> None:
    recipe = pickle.loads(sent)
    coarse = replace(recipe, stream=replace(recipe.stream, precision="bf16"))
    one, other, again = (
        each(Failures(print), 1)(0, ["writer"])["writer"].arrays["pr"] for each in (recipe, coarse, recipe)
    )
    assert len(remote._engines) == 1
    np.testing.assert_array_equal(again, one)
    assert 1e-4 < np.nanmax(np.abs(other - one)) / np.nanmax(np.abs(one)) < 0.1


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
