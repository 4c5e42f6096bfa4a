"""Torch checkpoints, read for their tensors only."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from repro.errors import ReproError, plain, unavailable

if TYPE_CHECKING:
    import torch

_SHARED = 2
"""Tied tensors may make the result this many times larger than the checkpoint."""


def read_checkpoint(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the named tensors of what `torch.save` wrote of a state dict, mapped from the file rather than loaded.

    It is read with `weights_only`, never unpickled freely, and sizes are checked before anything is allocated.
    checkpoint: a zip archive, as torch writes it. Raises ReproError (exit 4) for anything but named dense tensors whose
    bytes are in the file. Agreement: tests/subjects/test_hub_checkpoint.py.
    """
    import torch

    size = checkpoint.stat().st_size
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > size:
            raise unavailable(f"{checkpoint.name}: unpacks to {unpacked} bytes out of {size}; refused")
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except ReproError:
        raise
    except pickle.UnpicklingError:
        raise unavailable(f"{checkpoint.name}: holds more than tensors; refused") from None
    except Exception as error:  # a damaged archive can fail anywhere in its reader
        raise unavailable(f"{checkpoint.name}: unreadable checkpoint ({type(error).__name__})") from None
    if not isinstance(state, dict) or not state:
        raise unavailable(f"{checkpoint.name}: holds no state dict")
    total = 0
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise unavailable(f"{checkpoint.name}: {plain(repr(name), 80)} is not a named dense tensor")
        claimed = value.numel() * value.element_size()
        total += claimed
        if claimed > value.untyped_storage().nbytes() or total > _SHARED * size:
            raise unavailable(f"{checkpoint.name}: {name} claims more bytes than are stored; refused")
    return state
