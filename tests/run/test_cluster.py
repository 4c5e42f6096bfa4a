"""Units filled by other processes: the same bytes as by one, each once, and one sentence where it cannot be."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from repro.errors import Exit, ReproError
from repro.run import cluster, workers
from repro.run import worker as remote
from repro.run.failures import Failures
from tests.pages import ANY, blocks
from tests.runs import PAPER, ROOT, cli, contents, only_error
from tests.toys import make_native, write_prompts

(SHOWN,) = (block.parsed for name, block in blocks(ANY).items() if re.match(r"docs/cluster\.md:\d+ sh", name))


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
    install, here, there = (shlex.split(line, comments=True) for line in SHOWN.splitlines())
    assert install == ["pip", "install", "distributed>=2026.1"]
    assert there == ["python", "-m", "repro", "all", "--scheduler", "tcp://host:8786"]
    options = ("--spec", PAPER, "--subject", model, "--out")
    said = apart(*here[3:], *options, tmp_path / "two", threads=2)
    assert "workers: 2 processes here; threads per unit: 1\n" in said
    assert "distributed" not in said
    alone = cli("run", *options, tmp_path / "one")
    assert alone.code == Exit.OK, alone.text
    expected = contents(*(tmp_path / "one" / "store").glob("toy-*"))
    assert sum("/c." in name for name in expected) > 50
    assert sum("/c." in name for name in expected if name.startswith("scan/")) > 5
    assert contents(*(tmp_path / "two" / "store").glob("toy-*")) == expected
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
    assert not list((tmp_path / "store").glob("toy*"))


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
        "from repro.run import workers; workers.CONNECT_S = 0.3\n"
        f"try: workers.open_cluster(None, {address!r}, 'cpu', print).__enter__()\n"
        "except workers.ReproError as error: print(int(error.code), error)"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    (line,) = ran.stdout.splitlines()
    assert line.startswith(f"2 --scheduler {address}: {why}")


def test_dask_and_torch_are_imported_only_when_they_are_needed() -> None:
    code = "import sys, repro.pipeline; print({'dask', 'distributed', 'torch'} & set(sys.modules))"
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

    def local(n_workers: int, threads_per_worker: int, **given: Any) -> SimpleNamespace:
        spec = {"cls": None, "options": {"nthreads": threads_per_worker, **given}}
        return SimpleNamespace(worker_spec={}, new_spec=spec)

    monkeypatch.setattr(distributed, "LocalCluster", local)
    plain = workers._cluster(4, ["3", "5"])
    assert [spec["options"]["env"] for spec in plain.worker_spec.values()] == [
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"CUDA_VISIBLE_DEVICES": "5"},
    ]
    assert {(spec["options"]["nthreads"], spec["options"]["host"]) for spec in plain.worker_spec.values()} == {
        (4, "127.0.0.1")
    }
    assert [spec["options"]["env"] for spec in workers._cluster(4, ["", ""]).worker_spec.values()] == [{}, {}]


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
    cluster._await_visible({"scan": late}, Failures(print))
    assert list(looks) == []
    monkeypatch.setattr(cluster, "VISIBLE_S", 0.0)
    cluster._await_visible({"scan": SimpleNamespace(missing=lambda: [0])}, Failures(print))  # type: ignore[dict-item]
