"""The one place where results are allocated, so that tests can poison what a kernel forgot to write."""

import torch
from torch import Tensor


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an uninitialised result; tests/kernel_helpers.py replaces this by one filled with NaN."""
    return torch.empty(shape, dtype=dtype, device=device)
