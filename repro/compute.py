"""What fills units: a model that is loaded once, and the experiments of a pass that share its activations."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import or_

import numpy as np
import torch

from repro.declare import wanted
from repro.errors import ReproError
from repro.failures import Failures, Say
from repro.folder import Shape
from repro.layout import Layout
from repro.loop import Filled
from repro.measures import Bound, bind
from repro.model import load
from repro.plan import Item, Plan, Settings
from repro.stream import Batch, Engine
from repro.subjects import Chosen

NUMPY_TYPES = {"float32": torch.float32, "int32": torch.int32}


@dataclass
class Session:
    """One process's share of a run: the model is loaded once, however many passes there are."""

    subject: Chosen
    settings: Settings
    memory: int
    say: Say
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def engine(self) -> Engine:
        """The model and kernels."""
        from repro.kernels.errors import KernelError
        from repro.kernels.select import provider

        started = time.perf_counter()
        try:
            kernels = provider(self.settings.kernels, self.settings.device)
        except KernelError as error:
            raise ReproError(f"--kernels {self.settings.kernels}: {str(error).removeprefix('kernels: ')}") from None
        engine = Engine(load(self.subject.folder, self.settings.precision, self.settings.device), kernels)
        self.seconds["start-up"] = time.perf_counter() - started
        return engine

    def micro_batch(self, length: int) -> int:
        """Prompts that go through the model together: as many of a unit as fit the memory asked for.

        Raises ReproError (exit 2) where not even one fits.
        """
        width = 8 if self.settings.precision == "float64" else 4
        fit = int(self.memory // (2 * working_bytes(self.subject.folder.shape, length, width)))
        if fit < 1:
            need = -(-2 * working_bytes(self.subject.folder.shape, length, width) // 2**20)
            raise ReproError(f"--memory: one prompt of {length} tokens needs about {need} MiB on this model; give more")
        return min(self.settings.unit, fit)


def working_bytes(shape: Shape, length: int, width: int) -> int:
    """Bytes that one prompt holds while it is in the model: sites, heads, MLP outputs and one hidden layer."""
    per_token = shape.d_model * (4 * shape.n_layers + 12) + 5 * shape.n_layers * shape.n_heads * shape.d_head
    return width * length * (per_token + 3 * shape.d_mlp)


class Work:
    """The units of one pass over the prompts, cut to `length` tokens, for several experiments."""

    def __init__(self, plan: Plan, items: Iterable[Item], length: int, session: Session, failures: Failures) -> None:
        self.plan = plan
        self.items = {item.name: item for item in items}
        self.length = length
        self.session = session
        self.failures = failures
        self.bound: dict[str, Bound] = {}

    def bind(self, name: str) -> None:
        """Computes what an experiment needs to know of the model before any prompt is seen."""
        item = self.items[name]
        self.bound[name] = bind(item.experiment, item.context, self.session.engine)

    def unit(self, unit: int, names: Sequence[str]) -> dict[str, Filled]:
        """All arrays of one unit for the named experiments, computed micro-batch by micro-batch.

        An experiment that fails is left out, and its error kept.
        """
        size = self.plan.settings.unit
        stop = max(self.items[name].context.n_prompts for name in names)
        rows = range(unit * size, min((unit + 1) * size, stop))
        parts: dict[str, list[dict[str, torch.Tensor]]] = {name: [] for name in names}
        step = self.session.micro_batch(self.length)
        for first in range(rows.start, rows.stop, step):
            for batch, wanting in self._batches(first, min(first + step, rows.stop), names):
                for name in wanting:
                    self.failures.guard(
                        name,
                        lambda n=name, b=batch: parts[n].append(self.bound[n].compute(b)),  # type: ignore[misc]
                    )
        return {name: Filled(self._joined(name, parts[name])) for name in names if name not in self.failures}

    def _batches(self, first: int, last: int, names: Sequence[str]) -> Iterator[tuple[Batch, list[str]]]:
        """The prompts first to last; cut where an experiment ends inside, so that each sees only its own."""
        ends = sorted({min(self.items[name].context.n_prompts, last) for name in names})
        start = first
        for end in ends:
            if end <= start:
                continue
            wanting = [name for name in names if self.items[name].context.n_prompts >= end]
            tokens = self.plan.subject.tokens[start:end, : self.length]
            placed = torch.from_numpy(tokens.astype(np.int64)).to(self.plan.settings.device)
            asked = reduce(or_, (wanted(self.items[name].experiment) for name in wanting))
            roles = next((c.roles for n in wanting if (c := self.items[n].context).roles is not None), None)
            yield Batch(self.session.engine, placed, start, roles, asked), wanting
            start = end

    def _joined(self, name: str, parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, np.ndarray]:
        layout = self.items[name].layout
        assert isinstance(layout, Layout)
        arrays = {}
        for variable in layout.variables:
            axis = variable.dims.index("prompt")
            joined = torch.cat([part[variable.name] for part in parts], dim=axis)
            arrays[variable.name] = joined.to("cpu", NUMPY_TYPES[variable.dtype]).numpy()
        return arrays
