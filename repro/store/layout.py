"""What a result looks like before it is computed: variables, labelled dimensions, units of work, and its directory."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repro.errors import Exit, ReproError
from repro.spec.types import RESERVED_SUBJECTS

DATA = "data.zarr"
UNLABELLED = ("prompt", "position")
DIMENSIONS = {
    "prompt": "row of the frozen prompts",
    "position": "position in a prompt, from 0",
    "node": "head or MLP, in model order",
    "component": "head, MLP, or the sum of the erasers",
    "head": "head, or an MLP that holds a role, in model order",
    "site": "state of the residual stream, in order",
    "layer": "layer",
    "run": "clean, or with the writer's output taken out of the erasers' input",
    "quantile": "lower quantile, median, upper quantile",
    "example": "adversarial prompt",
    "against": "what of the erasers' output is taken",
    "source": "source of variance",
}
"""What the labels of each dimension are, for a reader."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class Variable:
    """One array of a result, declared before it is computed."""

    name: str
    """An identifier; it becomes a directory of the store."""
    dims: tuple[str, ...]
    """Names of its dimensions, one of them `prompt`."""
    dtype: str = "float32"
    """numpy's name of the type."""
    units: str = ""
    """Unit of the values; empty for dimensionless."""
    long_name: str = ""
    """One line for a reader."""


@dataclass(frozen=True)
class Layout:
    """All arrays of a result, the labels of their dimensions, and the sizes of `prompt` and `position`.

    Raises ReproError naming the variable or dimension at fault. Agreement: tests/store/test_store.py.
    """

    variables: tuple[Variable, ...]
    """The raw variables."""
    coords: Mapping[str, Sequence[str]]
    """Labels, all of them strings, of every dimension but `prompt` and `position`."""
    sizes: Mapping[str, int]
    """Sizes of `prompt` and `position`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "variables", tuple(self.variables))
        object.__setattr__(self, "coords", {dim: tuple(labels) for dim, labels in self.coords.items()})
        object.__setattr__(self, "sizes", {dim: int(size) for dim, size in self.sizes.items()})
        for dim, labels in self.coords.items():
            _check_dim(dim, labels)
        if not set(self.sizes) <= set(UNLABELLED):
            raise _bad(
                f"sizes are given for {sorted(self.sizes)}; only prompt and position have sizes, others have labels"
            )
        if any(size < 1 for size in self.sizes.values()):
            raise _bad(f"sizes must be at least 1, not {dict(self.sizes)}")
        if not self.variables:
            raise _bad("a result needs at least one variable")
        seen: set[str] = set()
        for variable in self.variables:
            self._check(variable)
            if variable.name in seen or variable.name in self.coords:
                raise _bad(f"the name {variable.name!r} is used twice")
            seen.add(variable.name)

    def _check(self, variable: Variable) -> None:
        """Refuse a variable that the store could not hold or that has an undeclared dimension."""
        if not _IDENTIFIER.fullmatch(variable.name) or variable.name in ("summary", *UNLABELLED):
            raise _bad(f"{variable.name!r} cannot name a variable")
        if "prompt" not in variable.dims or len(set(variable.dims)) != len(variable.dims):
            raise _bad(f"{variable.name}: dims must be distinct and hold 'prompt', not {list(variable.dims)}")
        for dim in variable.dims:
            if dim not in self.coords and dim not in self.sizes:
                raise _bad(f"{variable.name}: dimension {dim!r} has neither labels nor a size")
        if not _is_real(variable.dtype):
            raise _bad(f"{variable.name}: dtype {variable.dtype!r} is not a real number type")

    @property
    def n_prompts(self) -> int:
        """Return the number of prompts."""
        return self.sizes["prompt"]

    @property
    def n_bytes(self) -> int:
        """Return the bytes of all raw values, before compression."""
        return sum(np.dtype(v.dtype).itemsize * math.prod(self.shape(v)) for v in self.variables)

    def variable(self, name: str) -> Variable:
        """Return the variable of that name."""
        for variable in self.variables:
            if variable.name == name:
                return variable
        raise ReproError(f"no variable {name!r}; there are {[v.name for v in self.variables]}")

    def shape(self, variable: Variable) -> tuple[int, ...]:
        """Return the full shape of a variable."""
        return tuple(self.sizes[dim] if dim in self.sizes else len(self.coords[dim]) for dim in variable.dims)

    def n_units(self, unit: int) -> int:
        """Return the number of units of `unit` prompts each; the last one may be short."""
        return math.ceil(self.n_prompts / unit)

    def prompts(self, unit: int, i: int) -> slice:
        """Return the prompts of unit i."""
        if not 0 <= i < self.n_units(unit):
            raise ReproError(f"no unit {i}; there are {self.n_units(unit)}", Exit.FAILED)
        return slice(i * unit, min((i + 1) * unit, self.n_prompts))

    def index(self, variable: Variable, prompts: slice) -> tuple[slice, ...]:
        """Return the index of those prompts in the full array of a variable."""
        return tuple(prompts if dim == "prompt" else slice(None) for dim in variable.dims)

    def blocks(self, variable: Variable, max_bytes: int) -> Iterator[dict[str, slice]]:
        """Cut a variable along its labelled dimensions into blocks of at most `max_bytes`, or of single labels."""
        sizes = dict(zip(variable.dims, self.shape(variable), strict=True))
        labelled = [dim for dim in variable.dims if dim in self.coords]
        room = max_bytes // (
            np.dtype(variable.dtype).itemsize * math.prod(sizes[d] for d in sizes if d not in labelled)
        )
        cuts: dict[str, list[slice]] = {}
        for dim in reversed(labelled):
            step = max(1, min(sizes[dim], room))
            cuts[dim] = [slice(start, min(start + step, sizes[dim])) for start in range(0, sizes[dim], step)]
            room //= sizes[dim]
        for box in itertools.product(*(cuts[dim] for dim in labelled)):
            yield dict(zip(labelled, box, strict=True))

    def chunk(self, variable: Variable, i: int) -> str:
        """Name of the file that holds unit i of a variable."""
        return ".".join(("c", *(str(i) if dim == "prompt" else "0" for dim in variable.dims)))

    def chunk_file(self, variable: Variable, i: int) -> str:
        """Return the path of that file in the result directory."""
        return f"{DATA}/{variable.name}/{self.chunk(variable, i)}"

    def to_json(self) -> dict[str, Any]:
        """Return the layout as plain JSON values."""
        variables = [{**vars(variable), "dims": list(variable.dims)} for variable in self.variables]
        coords = {dim: list(labels) for dim, labels in self.coords.items()}
        return {"variables": variables, "coords": coords, "sizes": dict(self.sizes)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Layout:
        """Return the inverse of `to_json`."""
        variables = tuple(Variable(**{**v, "dims": tuple(v["dims"])}) for v in value["variables"])
        return cls(variables, value["coords"], value["sizes"])


def _is_real(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "fiub"
    except TypeError:
        return False


def _check_dim(dim: str, labels: Sequence[str]) -> None:
    """Refuse a labelled dimension whose name or labels the store could not hold."""
    if not _IDENTIFIER.fullmatch(dim) or dim in ("summary", *UNLABELLED):
        raise _bad(f"{dim!r} cannot name a labelled dimension")
    if not labels:
        raise _bad(f"dimension {dim!r} has no labels")
    for label in labels:
        if not isinstance(label, str) or not label:
            raise _bad(f"dimension {dim!r}: labels are non-empty strings, not {label!r}")
    if len(set(labels)) != len(labels):
        raise _bad(f"dimension {dim!r} has a label twice")


def _bad(message: str) -> ReproError:
    return ReproError(f"result layout: {message}")


def key12(parts: Mapping[str, Any]) -> str:
    """Return a result's key: the first 12 hex digits of the sha256 of what determines its numbers, as canonical JSON.

    parts: JSON values (resolved spec slice, number of prompts, hashes of tokens and weights, precision, environment …).
    Returns the directory name. Agreement: tests/store/test_store.py (any changed part gives another key).
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def result_path(root: Path, subject: str, experiment: str, key: str) -> Path:
    """Return the directory `root/subject/experiment/key` of a result; refuse every name that could leave the root.

    root: the `store/` folder. Returns the path, which need not exist.
    Raises ReproError for "..", separators, absolute names, reserved subjects, and links that lead elsewhere.
    """
    if subject in RESERVED_SUBJECTS:
        raise ReproError(f"{subject!r} cannot name a subject: store/{subject} is used for something else")
    path = Path(root)
    for name in (subject, experiment, key):
        if not _NAME.fullmatch(name):
            raise ReproError(
                f"{name!r} is not a valid name of a directory in the store; allowed are letters, digits and . _ + -"
            )
        path = path / name
    check_place(path)
    return path


def check_place(path: Path) -> None:
    """Refuse a result directory whose last three parts are unsafe names or pass through a link."""
    if len(path.parts) < 3 or not all(_NAME.fullmatch(part) for part in path.parts[-3:]):
        raise ReproError(f"{path} is not of the form store/<subject>/<experiment>/<key>")
    inside = path.parents[2].resolve().joinpath(*path.parts[-3:])
    if path.resolve() != inside:
        raise ReproError(f"{path} leads to {path.resolve()}, outside its store: remove the link")
