"""Shared fixtures: tiny models of each kind in the folder format, made once per test session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports Triton: without a GPU its kernels run under the interpreter.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

KINDS = ("native", "gpt2", "llama")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny random model folder of each kind: native LayerNorm, GPT-2 and Llama with grouped heads and tied embeddings."""
    from tests.toys import make_gpt2, make_llama, make_native

    root = tmp_path_factory.mktemp("models")
    return {
        "native": make_native(root / "native"),
        "gpt2": make_gpt2(root / "gpt2"),
        "llama": make_llama(root / "llama"),
    }
