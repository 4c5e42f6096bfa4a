"""Shared fixtures: tiny models of each kind in the folder format, made once per test session."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from repro.process import set_defaults

if TYPE_CHECKING:
    from tests.runs import Run

# Before anything imports Triton: without a GPU its kernels run under the interpreter.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Before anything imports torch: the same waiting and the same products as under `python -m repro`.
set_defaults()

# A shell starts what it runs in the background deaf to Ctrl-C, and children inherit that; they are to be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

KINDS = ("native", "gpt2", "llama")


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the collector walks millions of objects no more, a fifth of all time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's own caches are neither read nor written, and pip asks no index."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HOME", home := str(tmp_path_factory.mktemp("huggingface")))
        patch.setattr(constants, "HF_HUB_CACHE", f"{home}/hub")
        patch.setenv("PIP_NO_INDEX", "1")
        yield


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny random model folder of each kind: LayerNorm, GPT-2, and Llama with grouped heads and tied embeddings."""
    from tests.toys import make_gpt2, make_llama, make_native

    root = tmp_path_factory.mktemp("models")
    return {
        "native": make_native(root / "native"),
        "gpt2": make_gpt2(root / "gpt2"),
        "llama": make_llama(root / "llama"),
    }


@pytest.fixture(scope="session")
def finished(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """kind -> the finished `all` of the default spec on that toy model, run once; copy it before changing it."""
    from tests.runs import run_all

    return cache(lambda kind: run_all(folders[kind], tmp_path_factory.mktemp(f"finished-{kind}")))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A single thread for torch, as for each worker of the runs compared with."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
