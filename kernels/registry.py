"""Every kernel, one declared entry each: what is selected, checked, timed and compiled is read from this list.

Modules are named, not imported: who computes on one path loads neither another path nor what measures it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from repro.kernels import work
from repro.kernels.work import Draw, Shape, Work

ONE_WRITER = ("paper", "paper4", "smollm2", "gpt2xl", "pythia")
PROJECTED = ("paper", "paper4", "runner", "smollm2", "gpt2xl", "pythia")


@dataclass(frozen=True)
class Kernel:
    """One function with the same signature and meaning on every path, defined by its reference."""

    name: str
    """The function's name in each module below."""
    results: tuple[str, ...]
    """Names of what it returns, in order."""
    triton: str
    """Module of the Triton kernel, which also has `launches`: its launches at a shape, to be compiled."""
    inputs: Callable[[Shape, Draw], dict[str, Any]]
    """The arguments with which it is measured."""
    flop: Callable[[Shape], float]
    """The least arithmetic for them."""
    reference: str = "reference"
    """Module of the definition, in any float dtype."""
    tiled: str = "tiled"
    """Module of the path for CPUs."""
    compiled: bool = False
    """Whether that path takes the compiled loop of `fused` where it was built."""
    ids: str | None = None
    """The result that holds token ids, judged by the true logits of those tokens: equal logits may swap."""
    shapes: tuple[str, ...] = ONE_WRITER
    """Names of the declared shapes at which it differs from its other cases."""
    launches: Callable[[Shape, int], Mapping[str, Work]] = lambda shape, size: {}
    """Launch -> its work for elements of `size` bytes, where it is less than the whole call's."""
    paper_calls: int = 0
    """Calls in one pass of the paper over a batch, as timed from end to end."""

    def module(self, path: str) -> Any:
        """Return the module of a path: "reference", "tiled" or "triton"."""
        return importlib.import_module(f"repro.kernels.{getattr(self, path)}")

    def function(self, path: str) -> Callable[..., Any]:
        """Return its function on a path."""
        function: Callable[..., Any] = getattr(self.module(path), self.name)
        return function


_ENTRIES = (
    Kernel(
        "projection",
        results=("num", "norm2"),
        triton="projection",
        inputs=work.projection,
        flop=work.projection_flop,
        compiled=True,
        shapes=PROJECTED,
        paper_calls=4,
    ),
    Kernel(
        "projection_onto_vectors",
        results=("num", "norm2"),
        triton="projection",
        inputs=work.projection_onto_vectors,
        flop=work.projection_onto_vectors_flop,
        compiled=True,
        shapes=PROJECTED,
    ),
    Kernel(
        "gram",
        results=("G",),
        tiled="tiled_gram",
        triton="gram",
        inputs=work.gram,
        flop=work.gram_flop,
        shapes=("paper", "paper4"),
        launches=work.gram_launches,
    ),
    Kernel(
        "gram_sums",
        results=("sums",),
        tiled="tiled_gram",
        triton="gram",
        inputs=work.gram_sums,
        flop=work.gram_flop,
        shapes=("paper", "paper4", "smollm2", "gpt2xl"),
        launches=work.gram_sums_launches,
    ),
    Kernel(
        "v_composition",
        results=("dots", "total"),
        triton="v_composition",
        inputs=work.v_composition,
        flop=work.v_composition_flop,
        shapes=(*ONE_WRITER, "writers"),
        launches=work.v_composition_launches,
        paper_calls=1,
    ),
    Kernel(
        "top2_logits",
        results=("values", "ids", "chosen_values"),
        triton="top2_logits",
        inputs=work.top2_logits,
        flop=work.top2_logits_flop,
        ids="ids",
        paper_calls=1,
    ),
)

KERNELS: Mapping[str, Kernel] = {entry.name: entry for entry in _ENTRIES}
"""Name -> entry, in the order of every table."""


def triton_modules() -> tuple[str, ...]:
    """Return the modules that launch Triton kernels, each once."""
    return tuple(dict.fromkeys(entry.triton for entry in KERNELS.values()))
