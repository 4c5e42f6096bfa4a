"""The scripts of docs/cluster.md: Slurm's with the real dask-jobqueue, Kubernetes' with a stand-in for its cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from repro.errors import Exit
from tests.pages import ANY, blocks
from tests.runs import SPECS

SLURM, KUBERNETES = (
    example.parsed
    for name, example in blocks(ANY).items()
    if name.startswith("docs/cluster.md") and name.endswith("python")
)
# Two of the jobs asked for start, each a process group of its own; the others wait, as on a full cluster.
SBATCH = """#!/bin/sh
number=1
until mkdir "$QUEUE/job-$number" 2>/dev/null; do number=$((number + 1)); done
if [ "$number" -le 2 ]; then
  setsid bash "$1" > "$QUEUE/job-$number/log" 2>&1 &
  echo $! > "$QUEUE/job-$number/pid"
fi
echo "Submitted batch job $number"
"""
SCANCEL = """#!/bin/sh
for job in "$@"; do
  if [ -f "$QUEUE/job-$job/pid" ]; then kill -TERM -- "-$(cat "$QUEUE/job-$job/pid")"; fi
done
"""
# What a script needs of dask_kubernetes.operator; the pod's spec has the fields that dask-kubernetes 2026.3.0 gives it.
OPERATOR = """
import json, os, pathlib

def make_cluster_spec(name, image, n_workers=None, resources=None, worker_command="dask-worker"):
    worker = {"name": "worker", "image": image, "args": worker_command.split(), "resources": resources}
    pod = {"replicas": n_workers, "spec": {"containers": [worker]}}
    return {"kind": "DaskCluster", "metadata": {"name": name}, "spec": {"worker": pod}}

class KubeCluster:
    scheduler_address = "tls://here:8786"
    def __init__(self, *, custom_cluster_spec):
        pathlib.Path(os.environ["QUEUE"], "spec.json").write_text(json.dumps(custom_cluster_spec))
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-ins are and what they were asked is written."""
    queue = tmp_path / "queue"
    queue.mkdir()
    monkeypatch.setenv("QUEUE", str(queue))
    return queue


def script(code: str, path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script of the page from the directory that it lies in."""
    path.write_text(code)
    command = [sys.executable, str(path), *map(str, arguments)]
    return subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)


def test_the_slurm_script_has_jobs_compute_the_units(
    folders: dict[str, Path], queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (queue / name).write_text(text)
        (queue / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{queue}{os.pathsep}{os.environ['PATH']}")
    shutil.copy(SPECS / "minimal.toml", tmp_path / "experiments.toml")
    shutil.copytree(folders["native"], tmp_path / "toy")
    ran = script(SLURM, tmp_path / "slurm.py", "--subject", "toy")
    assert ran.returncode == Exit.OK, ran.stdout + ran.stderr
    assert len(list(queue.glob("job-*"))) >= 2
    (result,) = (path.parent for path in (tmp_path / "store").glob("toy/nodes/*/COMMIT"))
    assert len(list((result / "units").glob("*.json"))) == 2
    assert json.loads((result / "provenance.json").read_text())["threads"] == 8, "as many as the job asks for"


def test_the_kubernetes_script_asks_for_a_cluster_that_shares_the_store(
    folders: dict[str, Path], queue: Path, tmp_path: Path
) -> None:
    package = tmp_path / "dask_kubernetes"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "operator.py").write_text(OPERATOR)
    shutil.copy(SPECS / "minimal.toml", tmp_path / "experiments.toml")
    shutil.copytree(folders["native"], tmp_path / "toy")
    ran = script(KUBERNETES.replace('"/data"', repr(str(tmp_path))), tmp_path / "pod.py", "--subject", "toy")
    assert ran.returncode == Exit.USAGE, ran.stdout + ran.stderr
    assert "--scheduler tls://here:8786: it cannot be reached" in ran.stderr
    pod = json.loads((queue / "spec.json").read_text())["spec"]["worker"]["spec"]
    assert pod["containers"][0]["volumeMounts"] == [{"name": "data", "mountPath": str(tmp_path)}]
    assert [volume["name"] for volume in pod["volumes"]] == ["data"]
