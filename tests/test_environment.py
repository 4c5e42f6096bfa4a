"""Bits must not depend on where in memory the operands of a product happen to lie."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from repro.process import DEFAULTS, effective_settings
from tests.runs import ROOT

B, P, H, K = 2, 37, 4, 8


def attention(offset: int) -> torch.Tensor:
    """The same seeded queries, keys and values, each a view that starts `offset` numbers into its memory."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(3):
        values = torch.randn(B, P, H, K, generator=generator)
        memory = torch.zeros(values.numel() + offset)
        memory[offset:] = values.flatten()
        parts.append(memory[offset:].view(B, P, H, K).transpose(1, 2))
    q, k, v = parts
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.parametrize("offset", [1, 2, 3, 5, 8, 13])
def test_attention_of_shifted_views_gives_the_same_bits(offset: int) -> None:
    assert attention(offset).numpy().tobytes() == attention(0).numpy().tobytes()


def test_every_way_in_sets_the_defaults_before_torch_is_loaded() -> None:
    for module in ("repro.__main__", "repro.run.worker"):
        code = f"import {module}, os, sys; print('torch' in sys.modules, os.environ['MKL_CBWR'])"
        bare = {name: value for name, value in os.environ.items() if name not in DEFAULTS}
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=bare, capture_output=True, text=True, check=True
        )
        assert ran.stdout.split() == ["False", DEFAULTS["MKL_CBWR"]], module


def test_what_the_user_has_set_stays_and_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert effective_settings() == {name: os.environ[name] for name in DEFAULTS}
    code = "import repro.__main__, os; print(os.environ['MKL_CBWR'])"
    own = os.environ | {"MKL_CBWR": "COMPATIBLE"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=own, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "COMPATIBLE"
    monkeypatch.delenv("MKL_CBWR")
    assert effective_settings()["MKL_CBWR"] == ""
