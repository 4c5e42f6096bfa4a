"""Where worker processes come from: started here by `--workers`, or found at `--scheduler`.

Whoever owns a scheduler can run code on its workers and on its clients, for dask speaks pickle: give only the address
of one that you trust. What is started here listens on the loopback address alone.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from repro.errors import ReproError
from repro.run.cluster import Cluster
from repro.run.failures import Say

if TYPE_CHECKING:
    from distributed import Client

CONNECT_S = 10.0
"""Seconds in which a scheduler must answer."""
HERE = "127.0.0.1"
_SILENT = logging.CRITICAL + 1


def check_options(workers: int | None, scheduler: str | None) -> None:
    """Raise ReproError (exit 2) for both options at once, or where the package that they need is not installed."""
    if workers is not None and scheduler is not None:
        raise ReproError("--workers starts a cluster and --scheduler joins one: give one of them")
    option = "--workers" if workers is not None else "--scheduler" if scheduler is not None else ""
    if option and find_spec("distributed") is None:
        raise ReproError(f'{option}: the package distributed is not installed: pip install "distributed>=2026.1"')


@contextmanager
def open_cluster(workers: int | None, scheduler: str | None, device: str, say: Say) -> Iterator[Cluster | None]:
    """Provide the cluster that was asked for, while the block runs; None if none was.

    workers: processes to start here; scheduler: the address of an existing one; device: `cpu`, or `cuda` with a device
    for each worker. Processes started here end with the block, at once and however it ends. Raises ReproError (exit 2)
    for more workers than devices, and for a scheduler that does not answer; `check_options` comes first.
    Agreement: tests/run/test_cluster.py, tests/run/test_cluster_faults.py.
    """
    if workers is not None:
        with _silence(), _start_workers(workers, device) as (client, threads):
            say(f"workers: {workers} processes here; threads per unit: {threads}")
            yield Cluster(client, "--workers", threads, say)
    elif scheduler is not None:
        with _silence(), _connected(scheduler) as client:
            cluster = Cluster(client, f"--scheduler {scheduler}", 1, say)
            cluster.threads = cluster.await_workers()
            say(f"workers: {cluster.n_workers} at {scheduler}; threads per unit: {cluster.threads}")
            yield cluster
    else:
        yield None


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    """Connect to an existing scheduler."""
    from distributed import Client
    from distributed.security import Security

    if not re.fullmatch(r"((tcp|tls|ucx|wss?)://)?[^\s/]+:\d+", address):
        raise ReproError(f"--scheduler {address}: an address such as tcp://host:8786 is needed")
    try:
        if address.startswith("tls:") and Security().get_connection_args("client")["ssl_context"] is None:
            raise OSError("dask is not configured for TLS: distributed.comm.tls")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions that differ: workers compare those that matter
            client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, ImportError) as error:  # no answer, not dask, or no such kind of connection here
        raise ReproError(f"--scheduler {address}: it cannot be reached ({error})") from None
    with _closing(client):
        yield client


@contextmanager
def _closing(client: Client) -> Iterator[Client]:
    """Close a client, whatever state its connection is in."""
    try:
        yield client
    finally:
        with suppress(Exception):
            client.close(timeout=1)


@contextmanager
def _start_workers(workers: int, device: str) -> Iterator[tuple[Client, int]]:
    """Start worker processes here; return their client and the threads of each, its share of one process's."""
    import torch
    from distributed import Client

    threads = max(1, torch.get_num_threads() // workers)
    devices = _devices(workers) if device == "cuda" else [""] * workers
    with ExitStack() as stack:
        with _block_sigint():
            cluster = _cluster(threads, devices)
            stack.callback(_end, cluster)
            client = stack.enter_context(_closing(Client(cluster, set_as_default=False)))
        cluster.scale(workers)  # they come while this process loads its own model
        yield client, threads


def _end(cluster: Any) -> None:
    """End a cluster's processes at once: they hold nothing but a model, and any crash leaves as much."""
    cluster.shutdown_on_close = False  # nor again when the interpreter ends
    for nanny in cluster.workers.values():
        nanny.close_gracefully()  # so that it starts no other
    for child in multiprocessing.active_children():
        if child.name.startswith("Dask Worker"):
            child.kill()
    with suppress(Exception):
        cluster.close(timeout=2)


def _cluster(threads: int, devices: list[str]) -> Any:
    """Return a cluster with a process for each device, "" being no GPU; `scale` starts them."""
    from distributed import LocalCluster

    made = LocalCluster(
        n_workers=0,
        threads_per_worker=threads,
        memory_limit=0,
        silence_logs=_SILENT,
        host=HERE,
        dashboard_address=None,
        # A scheduler without a dashboard still serves a few pages: at any port, so that two runs do not meet.
        scheduler_kwargs={"dashboard_address": f"{HERE}:0"},
    )
    # LocalCluster gives all its workers the same environment; each of ours sees a GPU of its own.
    for number, gpu in enumerate(devices):
        env = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
        made.worker_spec[number] = {**made.new_spec, "options": {**made.new_spec["options"], "env": env}}
    return made


def _devices(workers: int) -> list[str]:
    """Return the GPU of each worker. Raises ReproError (exit 2) if there are fewer."""
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = listed.split(",") if listed else [str(number) for number in range(torch.cuda.device_count())]
    if workers > len(visible):
        raise ReproError(f"--workers {workers}: each takes a GPU, and {len(visible)} are visible here")
    return visible[:workers]


@contextmanager
def _block_sigint() -> Iterator[None]:
    """Keep Ctrl-C from threads and processes that start inside: this process answers it, and ends them."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # started inside, it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep dask from writing on the user's terminal, in this process and in those that it starts."""
    import dask
    import distributed  # noqa: F401 - it sets the levels of its loggers when it is imported

    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("distributed", "tornado")]
    levels = {name: logging.getLogger(name).level for name in (*names, "asyncio")}
    settings = {
        # In place of single threads for every library, which would also hold in this process.
        "distributed.nanny.pre-spawn-environ": {"DASK_LOGGING__DISTRIBUTED": "critical"},
        "distributed.comm.timeouts.connect": f"{CONNECT_S} s",
    }
    try:
        for name in levels:
            logging.getLogger(name).setLevel(_SILENT)
        with dask.config.set(settings):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
