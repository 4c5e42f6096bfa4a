"""The gate before any speed: every result is compared with the reference, in float64, of the same arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repro.kernels.bench.providers import Results
from repro.kernels.bench.tolerances import TOLERANCES, error_ratio
from repro.kernels.registry import KERNELS
from repro.kernels.work import listed


@dataclass(frozen=True)
class Check:
    """The worst result of one call: how far it lies from float64, and how far it may."""

    result: str
    error: float
    """Root mean square of the difference over that of the reference."""
    allowed: float

    @property
    def passed(self) -> bool:
        """Return whether the error is within bounds; an error that is no number is not."""
        return self.error <= self.allowed


class Truth:
    """The float64 results for one case's arguments, computed once and compared with many."""

    def __init__(self, kernel: str, inputs: Mapping[str, Any]) -> None:
        self.kernel = KERNELS[kernel]
        self.inputs = {
            name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in inputs.items()
        }
        with torch.no_grad():
            self.results: Results = listed(self.kernel.function("reference")(**self.inputs))

    def check(self, results: Results, precision: str) -> Check:
        """Return the result that lies farthest beyond its bound, in units of that bound.

        results: those of the kernel under test; precision: an entry of the table of tolerances.
        Agreement: tests/kernels/test_bench.py, test_one_flipped_sign_prints_no_speed.
        """
        checks = [
            Check(name, self._error(name, got, true), TOLERANCES[precision])
            for name, got, true in zip(self.kernel.results, results, self.results, strict=True)
            if true is not None or got is not None
        ]
        return max(checks, key=lambda check: check.error / check.allowed if check.error == check.error else math.inf)

    def _error(self, name: str, got: Tensor | None, true: Tensor | None) -> float:
        if got is None or true is None or got.shape != true.shape:
            return math.inf
        if name != self.kernel.ids:
            return error_ratio(got, true)
        vocab = self.inputs["W_U"].shape[1]
        if bool((got[:, 0] == got[:, 1]).any()) or int(got.min()) < 0 or int(got.max()) >= vocab:
            return math.inf
        # Equal logits may swap within rounding: so not the ids are compared, but the true logits of the ids.
        _, _, chosen = self.kernel.function("reference")(**{**self.inputs, "chosen": got})
        values = self.results[0]
        assert chosen is not None
        assert values is not None
        return error_ratio(chosen, values)
