"""Checkpoints give tensors or nothing."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from repro.errors import Exit, ReproError
from repro.model.checkpoint import read_checkpoint

pytestmark = pytest.mark.hub


class Evil:
    """What a checkpoint must not be able to do."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("pwned",)


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: torch.save({"a": torch.zeros(1), "b": Evil()}, path), "more than tensors"),
        (lambda path: torch.save([torch.zeros(1)], path), "no state dict"),
        (lambda path: torch.save({}, path), "no state dict"),
        (lambda path: torch.save({1: torch.zeros(1)}, path), "not a named dense tensor"),
        (lambda path: torch.save({"a": 3.0}, path), "not a named dense tensor"),
        (lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path), "not a named dense tensor"),
        (lambda path: torch.save({"a": torch.zeros(1).expand(10**12)}, path), "claims more bytes"),
        (
            lambda path: torch.save({"base": (base := torch.zeros(9000)), **{f"v{i}": base for i in range(9)}}, path),
            "claims more bytes",
        ),
        (lambda path: path.write_bytes(pickle.dumps(Evil())), "unreadable"),
        (_bomb, "unpacks to"),
    ],
    ids=["pickle", "list", "empty", "number", "scalar", "sparse", "expanded", "shared", "bare", "bomb"],
)
def test_a_checkpoint_gives_tensors_or_nothing(
    tmp_path: Path, write: Callable[[Path], object], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "x.pth")
    with pytest.raises(ReproError, match=words) as caught:
        read_checkpoint(tmp_path / "x.pth")
    assert caught.value.code == Exit.UNAVAILABLE
    assert "pwned" not in capfd.readouterr().out


def test_tied_tensors_and_views_keep_their_values(tmp_path: Path) -> None:
    tied, wide = torch.arange(12.0), torch.arange(12.0).reshape(3, 4)
    state = {
        "a": tied,
        "b": tied,
        "c": wide.T,
        "d": wide[1],
        "e": torch.tensor(-1e5),
        "f": torch.zeros(2, dtype=torch.bool),
    }
    torch.save(state, tmp_path / "x.pth")
    found = read_checkpoint(tmp_path / "x.pth")
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in state.items())
