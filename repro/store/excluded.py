"""Prompts that are left out of a result because the model's activations on them are not finite.

A unit's record names them, their raw values are NaN, and a reduction does not see them at all. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from repro import files
from repro.errors import Exit, ReproError
from repro.store import records
from repro.store.layout import Layout

if TYPE_CHECKING:
    import xarray as xr

NOTE = "quarantined"
"""Name of the note in a unit's record, and of the attribute of a summary: ids of prompts."""


def excluded_prompts(path: Path) -> list[int]:
    """Return the ids of the prompts that the records of a result name as left out, in order.

    path: the result directory. Reads the records alone, and hardly those without such a note.
    """
    found = set()
    folder = path / records.UNITS
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        if f'"{NOTE}"'.encode() in file.read_bytes():
            found.update((files.load(file) or {"notes": {}})["notes"].get(NOTE, ()))
    return sorted(found)


def left_out_line(prompts: Sequence[int], limit: int = 8) -> str:
    """Return which prompts are left out and why, the first few where there are many."""
    shown = ", ".join(map(str, prompts[:limit]))
    more = f" and {len(prompts) - limit} more" if len(prompts) > limit else ""
    plural = "s" if len(prompts) > 1 else ""
    return f"left out: prompt{plural} {shown}{more}, on which the model's activations are not finite"


def partial(prompts: Sequence[int], n_prompts: int) -> str:
    """Return how much of a result there is: `PARTIAL 299/300 prompts`."""
    return f"PARTIAL {n_prompts - len(prompts)}/{n_prompts} prompts"


class Raw(Protocol):
    """What a reduction reads: a result of the store."""

    @property
    def layout(self) -> Layout:
        """Return the declared arrays."""

    def read(self, variable: str, **isel: int | slice) -> np.ndarray:
        """Return part of a raw variable."""

    def iter_blocks(self, variable: str) -> Any:
        """Yield blocks of a raw variable, each with all prompts."""


class ValidPrompts:
    """A result's raw arrays without the prompts that are left out, so that no reduction need know of them."""

    def __init__(self, raw: Raw, without: Sequence[int]) -> None:
        self.raw = raw
        self.without = list(without)
        self.prompts = np.delete(np.arange(raw.layout.n_prompts), self.without)
        """Ids of the prompts that are there."""
        if not self.prompts.size:
            raise ReproError(
                "the model's activations are not finite on any prompt, so that there is nothing to reduce: look at the "
                "model and at its precision",
                Exit.FAILED,
            )

    @property
    def layout(self) -> Layout:
        """Return the declared arrays."""
        return self.raw.layout

    def read(self, variable: str, **isel: int | slice) -> np.ndarray:
        """Return part of a raw variable by labelled dimensions, all prompts that are there."""
        dims = [dim for dim in self.layout.variable(variable).dims if not isinstance(isel.get(dim), int)]
        return self._cut(self.raw.read(variable, **isel), dims)

    def iter_blocks(self, variable: str) -> Iterator[tuple[dict[str, slice], np.ndarray]]:
        """Yield blocks of a raw variable, each with all prompts that are there."""
        for block, values in self.raw.iter_blocks(variable):
            yield block, self._cut(values, self.layout.variable(variable).dims)

    def _cut(self, values: np.ndarray, dims: Sequence[str]) -> np.ndarray:
        return np.delete(values, self.without, dims.index("prompt")) if self.without else values


def kept(raw: xr.Dataset, attrs: Any) -> xr.Dataset:
    """Return the raw arrays of a result, as `read_raw` gives them, without the prompts that its summary leaves out."""
    return raw.drop_isel(prompt=list(attrs.get(NOTE, ())))
