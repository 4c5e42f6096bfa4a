"""What a measure is: a class that says what it needs, holds and costs, and how it is computed and reduced.

A measure is one file with one such class, and one entry in `repro/measures/__init__.py`. Nothing here imports torch, so
that planning stays quick; `prepare` and `compute` import it where they use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr
from pydantic import Field, field_validator

from repro.errors import ReproError
from repro.labels import heads, in_precision, nodes, sites
from repro.measures.directions import Directions
from repro.measures.roles import ExampleTokens, Roles
from repro.measures.statistics import QUANTILE_LABELS, quantiles_along
from repro.model.folder import Shape
from repro.spec.types import Common
from repro.store.excluded import ValidPrompts
from repro.store.layout import Layout, Variable

if TYPE_CHECKING:
    from torch import Tensor

    from repro.measures.batch import Batch, Engine

Decode = Callable[[int], str]
"""Token id -> text."""
Prepared = Mapping[str, Any]
"""What an experiment computes before the pass."""
VARIANT_FIELDS = {"quantiles", "scale", "resample", "target", "v_composition", "positions"}
"""The fields in which the texts and the authors' code differ; every summary says which variant it is."""


@dataclass(frozen=True)
class Context:
    """What an experiment is declared on: model sizes, roles, and how much of the prompts it reads."""

    shape: Shape
    n_prompts: int
    n_positions: int
    roles: Roles = field(default_factory=Roles)

    @property
    def writer(self) -> str:
        """Return the writer, once it is known."""
        assert self.roles.writer, "planned before its roles were known"
        return self.roles.writer

    @property
    def examples(self) -> tuple[ExampleTokens, ...]:
        """Return the adversarial prompts; none while they are not known."""
        return self.roles.examples or ()

    @property
    def sites(self) -> list[str]:
        """Return the labels of the model's sites."""
        return sites(self.shape.n_layers)

    @property
    def nodes(self) -> list[str]:
        """Return the labels of the model's nodes."""
        return nodes(self.shape.n_layers, self.shape.n_heads)

    @property
    def heads(self) -> list[str]:
        """Return the labels of the model's heads."""
        return heads(self.shape.n_layers, self.shape.n_heads)

    def within(self, experiment: Common) -> Context:
        """Return the context cut to the experiment's own number of prompts."""
        wanted = experiment.prompts
        return replace(self, n_prompts=self.n_prompts if wanted is None else min(wanted, self.n_prompts))


@dataclass(frozen=True)
class Stream:
    """What one pass reads: the prompts' first `length` tokens, through the model at a precision."""

    length: int
    precision: str

    def __str__(self) -> str:
        return f"{self.length} tokens{in_precision(self.precision)}"


class Measure(Common):
    """An experiment of the spec, and how it is carried out.

    A subclass declares `measure: Literal["its_name"]` and its own fields, and overrides what follows.
    """

    version: ClassVar[int] = 1
    """Raised with every change that alters the measure's numbers: results of other versions are stale."""
    answers: ClassVar[bool] = False
    """Whether the question is answered from it."""
    finds: ClassVar[tuple[str, ...]] = ()
    """The roles that it finds, of `writer`, `erasers`, `examples`."""
    named_only: ClassVar[bool] = False
    """Whether it is left out where writer and erasers are to be found: what finds them holds the same."""

    @property
    def needs(self) -> frozenset[str]:
        """Return the roles it waits for, of `writer`, `erasers`, `examples`.

        Sites on all nodes depend on no role, but every summary says who writes and who erases: figures need not ask.
        """
        return frozenset({"writer", "erasers"})

    @property
    def asks(self) -> Directions:
        """Return what it asks of a batch."""
        return Directions()

    def length(self, context: Context) -> int:
        """Return how many tokens per prompt its pass reads."""
        return context.n_positions

    def layout(self, context: Context) -> Layout:
        """Return the arrays it stores per (prompt, position), with their labels and units.

        Raises ReproError for what does not fit the subject.
        """
        raise NotImplementedError

    def extra_flop(self, context: Context) -> float:
        """Return its FLOP beyond the pass that it shares and the projections that it asks for."""
        return 0.0

    def prepare(self, context: Context, engine: Engine, tokens: np.ndarray) -> dict[str, Any]:
        """Compute what it needs to know of the model before the pass. tokens: all prompts, [prompt, position]."""
        return {}

    def compute(self, context: Context, prepared: Prepared, batch: Batch) -> dict[str, Tensor]:
        """Compute the arrays of its layout for one batch."""
        raise NotImplementedError

    def reduce(self, context: Context, raw: ValidPrompts, prepared: Prepared, decode: Decode) -> xr.Dataset:
        """Reduce its complete arrays to what figures and `check` read."""
        raise NotImplementedError

    @staticmethod
    def headlines(dataset: xr.Dataset) -> dict[str, float]:
        """Return the few quantities of its summary that the two texts argue with, by name."""
        return {}


class Banded(Measure):
    """A measure with quantile bands."""

    quantiles: tuple[float, float] = (0.25, 0.75)
    """Lower and upper quantile of bands and error bars. The text of both sources says 0.25 and 0.75; the authors'
    plotting code draws 0.125 and 0.875."""

    @field_validator("quantiles")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < 0.5 < value[1] <= 1:
            raise ValueError("two numbers with 0 <= lower < 0.5 < upper <= 1")
        return value


class Windowed(Measure):
    """A measure that pools over positions."""

    positions: tuple[int, int] | None = Field(default=None)
    """First and last position (inclusive) that enter, the last counted from the end if negative; nothing: all, position
    0 included."""

    @field_validator("positions")
    @classmethod
    def _forward(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not (0 <= value[0] <= value[1] or value[0] >= 0 > value[1]):
            raise ValueError("first and last position, 0 <= first <= last, or a negative last counted from the end")
        return value

    @property
    def window(self) -> slice:
        """Return the positions that enter, as an index."""
        if self.positions is None:
            return slice(None)
        first, last = self.positions
        return slice(first, None if last == -1 else last + 1)

    def check_window(self, context: Context) -> None:
        """Raise ReproError (exit 2) for positions that the prompts do not have."""
        if self.positions is None:
            return
        first, last = self.positions
        end = last if last >= 0 else context.n_positions + last
        if not first <= end < context.n_positions:
            raise ReproError(
                f"positions [{first}, {last}] do not fit prompts of {context.n_positions} tokens (positions 0 to "
                f"{context.n_positions - 1})"
            )


class Pooled(Banded, Windowed):
    """A measure that reduces prompts and positions together to bands."""

    def bands(self, raw: ValidPrompts, name: str, nan_name: str = "nan_count") -> dict[str, tuple[Any, Any]]:
        """Return median and quantiles of a variable over prompts x positions, one value per remaining label."""
        dims = [dim for dim in raw.layout.variable(name).dims if dim not in ("prompt", "position")]
        sizes = [len(raw.layout.coords[dim]) for dim in dims]
        out, counts = np.empty((3, *sizes)), np.empty(sizes, dtype=np.int64)
        for block, values in raw.iter_blocks(name):
            index = tuple(block[dim] for dim in dims)
            out[(slice(None), *index)], counts[index] = quantiles_along(
                values[..., self.window], self.quantiles, axes=2
            )
        return {name: (("quantile", *dims), out), nan_name: (tuple(dims), counts)}


def labelled(raw: ValidPrompts, variables: Mapping[str, tuple[Any, Any]]) -> xr.Dataset:
    """Return variables as a Dataset with the labels of the raw arrays' dimensions."""
    coords: dict[str, Any] = {dim: list(names) for dim, names in raw.layout.coords.items()}
    if any("quantile" in dims for dims, _ in variables.values()):
        coords["quantile"] = list(QUANTILE_LABELS)
    return xr.Dataset(dict(variables), coords)


def sizes(context: Context) -> dict[str, int]:
    """Return the sizes of the dimensions that have no labels."""
    return {"prompt": context.n_prompts, "position": context.n_positions}


def ratio_variable(*dims: str, name: str = "pr") -> Variable:
    """Return the declaration of projection ratios per prompt and position."""
    return Variable(name, (*dims, "prompt", "position"), "float32", "1", "projection ratio")
