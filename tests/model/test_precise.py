"""The self-check where float32 is too coarse to tell: again in float64, without the casts of transformers."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from repro.model.folder import read_folder
from repro.model.load import load
from repro.model.precise import Precise
from repro.model.selfcheck import DiffersError
from tests import toys
from tests.model.test_selfcheck import changed


def test_what_is_float64_stays_so_and_nothing_else_is_touched() -> None:
    wide, narrow = torch.randn(3, 4).double() + 1e-12, torch.randn(3, 4)
    with Precise():
        for kept in (wide.float(), wide.to(torch.float32), wide.to(dtype=torch.float32)):
            assert kept.dtype is torch.float64
            assert torch.equal(kept, wide)
        assert F.softmax(wide, -1, dtype=torch.float32).dtype is torch.float64
        assert wide.to(torch.float16).dtype is torch.float16
        assert narrow.float().dtype is narrow.to(torch.float32).dtype is torch.float32
        assert narrow.double().dtype is torch.float64
    assert wide.float().dtype is torch.float32


def test_rounding_alone_is_no_reason_to_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too far apart in float32 is compared in float64, with the casts of transformers left out."""
    path = toys.make_kind(tmp_path / "model", "gemma")
    changed(path, lambda state: [state[name].mul_(60) for name in state if "q_proj" in name])
    monkeypatch.setattr("repro.model.selfcheck.TOLERANCE", {torch.float32: 1e-9, torch.float64: 1e-7})
    assert load(read_folder(path)).W_E.dtype is torch.float32
    monkeypatch.setattr("repro.model.load.ROUNDING", 0.0)
    with pytest.raises(DiffersError, match="allowed 1e-09"):
        load(read_folder(path))
    # With the casts the original itself is not precise enough to compare with.
    monkeypatch.setattr("repro.model.load.ROUNDING", 1.0)
    monkeypatch.setattr("repro.model.original.Precise", nullcontext)
    with pytest.raises(DiffersError, match="allowed 1e-07"):
        load(read_folder(path))
