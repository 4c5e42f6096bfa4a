"""What fills units: a model that is loaded once, and the experiments of a pass that share its activations."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import torch

from repro.errors import Exit, ReproError
from repro.labels import in_precision
from repro.measures.base import Stream
from repro.measures.batch import Batch, Engine
from repro.measures.roles import Roles
from repro.model.folder import Shape
from repro.model.load import load
from repro.plan.plan import Item, Settings
from repro.process import keep_freed_memory
from repro.run.failures import Failures, NoMemoryError, Say, memory_told
from repro.run.loop import UnitArrays
from repro.run.watchdog import Watchdog
from repro.store.excluded import NOTE
from repro.store.layout import Layout
from repro.subjects.resolve import ResolvedSubject


@dataclass
class Session:
    """One process's share of a run: the model is loaded once for each precision, however many passes there are."""

    subject: ResolvedSubject
    settings: Settings
    memory: int
    say: Say
    watchdog: Watchdog = field(default_factory=Watchdog)
    seconds: dict[str, float] = field(default_factory=dict)
    at_most: int | None = None
    """Largest micro-batch since memory ran out."""
    unfit: set[int] = field(default_factory=set)
    """Prompts already told to be left out."""
    engines: dict[str, Engine] = field(default_factory=dict)
    """The model that is in memory, by its precision."""

    def engine(self, precision: str) -> Engine:
        """Return model and kernels at a precision; one model is in memory, and another precision's replaces it."""
        if precision not in self.engines:
            self.engines.clear()
            self.engines[precision] = self._loaded(precision)
        return self.engines[precision]

    def _loaded(self, precision: str) -> Engine:
        from repro.kernels.errors import KernelError
        from repro.kernels.select import provider

        started = time.perf_counter()
        try:
            kernels = provider(self.settings.kernels, self.settings.device, self.settings.products)
        except KernelError as error:
            raise ReproError(f"--kernels {self.settings.kernels}: {str(error).removeprefix('kernels: ')}") from None
        engine = Engine(load(self.subject.folder, precision, self.settings.device, self.subject.tokens), kernels)
        # The library's own model is full of cycles, and what it leaves behind is not worth keeping.
        gc.collect()
        keep_freed_memory()
        self.seconds["start-up"] = self.seconds.get("start-up", 0) + time.perf_counter() - started
        return engine

    def took(self, precision: str) -> float:
        """Return the seconds spent so far on passes at a precision and on reductions of what they found."""
        return sum(self.seconds.get(stage + in_precision(precision), 0.0) for stage in ("passes", "reductions"))

    def micro_batch(self, stream: Stream) -> int:
        """Return how many prompts go through the model together: as many of a unit as fit the memory asked for.

        Raises ReproError (exit 2) where not even one fits.
        """
        # bf16 is the type of products alone: what is held of a prompt is float32.
        width = 8 if stream.precision == "float64" else 4
        needed = 2 * working_bytes(self.subject.folder.shape, stream.length, width)
        fit = self.memory // needed
        if fit < 1:
            raise ReproError(
                f"--memory: one prompt of {stream.length} tokens needs about {-(-needed // 2**20)} MiB on this model; "
                "give more"
            )
        return min(self.settings.unit, fit, self.at_most or fit)

    def halve(self, micro_batch: int) -> None:
        """Halve the prompts at once for the rest of the run, after memory ran out, and free what is cached."""
        self.at_most = micro_batch // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.say(f"out of memory with {micro_batch} prompts at once; going on with {self.at_most} (--memory sets it)")

    def leave_out(self, prompts: Iterable[int]) -> None:
        """Say of each prompt once that it is left out."""
        for prompt in sorted(set(prompts) - self.unfit):
            self.say(f"prompt {prompt}: the model's activations are not finite; left out")
            self.unfit.add(prompt)


def working_bytes(shape: Shape, length: int, width: int) -> int:
    """Return the bytes that one prompt holds in the model: sites, heads, MLP outputs and one hidden layer."""
    per_token = shape.d_model * (4 * shape.n_layers + 12) + 5 * shape.n_layers * shape.n_heads * shape.d_head
    return width * length * (per_token + 3 * shape.d_mlp)


class Work:
    """The units of one pass over the prompts, for several experiments."""

    def __init__(self, items: Iterable[Item], stream: Stream, session: Session, failures: Failures) -> None:
        self.items = {item.name: item for item in items}
        self.stream = stream
        self.session = session
        self.failures = failures
        self.prepared: dict[str, dict[str, Any]] = {}

    def prepare(self, name: str) -> None:
        """Compute what an experiment needs to know of the model before any prompt is seen."""
        item = self.items[name]
        self.prepared[name] = item.experiment.prepare(
            item.context, self.session.engine(self.stream.precision), self.session.subject.tokens
        )

    def unit(self, unit: int, names: Sequence[str]) -> dict[str, UnitArrays]:
        """Return all arrays of one unit for the named experiments, computed micro-batch by micro-batch.

        An experiment that fails is left out, and its error kept. Where memory runs out the unit is computed again with
        half the micro-batch, and noted so; a prompt with activations that are not finite is NaN, and noted so.
        Agreement: tests/run/test_trouble.py, tests/store/test_excluded.py.
        """
        while True:
            step = self.session.micro_batch(self.stream)
            try:
                with memory_told():
                    return self._unit(unit, names, step)
            except NoMemoryError:
                pass  # left first: the error holds on to what was computed
            if step == 1:
                raise self._too_big()
            self.session.halve(step)

    def _unit(self, unit: int, names: Sequence[str], step: int) -> dict[str, UnitArrays]:
        size = self.session.settings.unit
        stop = max(self.items[name].context.n_prompts for name in names)
        rows = range(unit * size, min((unit + 1) * size, stop))
        shares = {name: _Share(rows.start) for name in names}
        for first in range(rows.start, rows.stop, step):
            for batch, wanting in self._batches(first, min(first + step, rows.stop), names):
                for name in wanting:
                    if name not in self.failures:
                        with self.failures.guard(name), self._fitting(step):
                            self._compute(name, batch, shares[name])
        self.session.leave_out(prompt for share in shares.values() for prompt in share.unfit)
        halved = {} if self.session.at_most is None else {"micro_batch": step}
        filled = {}
        for name, share in shares.items():
            if name not in self.failures:
                with self.failures.guard(name), self._fitting(step):
                    notes = halved | ({NOTE: share.unfit} if share.unfit else {})
                    filled[name] = UnitArrays(self._joined(name, share), notes)
        return filled

    @contextmanager
    def _fitting(self, step: int) -> Iterator[None]:
        """Tell of memory that runs out in the block; with single prompts that is the experiment's failure."""
        try:
            with memory_told():
                yield
        except NoMemoryError:
            if step > 1:
                raise
            raise self._too_big() from None

    def _too_big(self) -> ReproError:
        return ReproError(
            f"out of memory with a single prompt of {self.stream.length} tokens, which no --memory makes smaller: use "
            "prompts of fewer tokens, free some memory, or try --device cpu",
            Exit.FAILED,
        )

    def _compute(self, name: str, batch: Batch, share: _Share) -> None:
        item = self.items[name]
        share.unfit += [batch.first_prompt + row for row in batch.unfit]
        share.parts.append(item.experiment.compute(item.context, self.prepared[name], batch))

    def _batches(self, first: int, last: int, names: Sequence[str]) -> Iterator[tuple[Batch, list[str]]]:
        """Yield the prompts first to last; cut where an experiment ends inside, so that each sees only its own.

        Cut, and filled with directions, for all experiments of the pass, whichever of them lack the unit: what is
        computed with others, and so its last bits, must not depend on what an interruption has left.
        """
        start = first
        for end in sorted({min(item.context.n_prompts, last) for item in self.items.values()}):
            wanting = [name for name in names if self.items[name].context.n_prompts >= end]
            if end > start and wanting:
                sharing = [item for item in self.items.values() if item.context.n_prompts >= end]
                tokens = self.session.subject.tokens[start:end, : self.stream.length]
                placed = torch.from_numpy(tokens.astype(np.int64)).to(self.session.settings.device)
                asked = reduce(or_, (item.experiment.asks for item in sharing))
                known = [item.context.roles for item in sharing if item.context.roles.writer]
                # Of the experiments that share a pass those that find roles know the least.
                roles = max(known, key=lambda roles: len(roles.erasers), default=Roles())
                yield Batch(self.session.engine(self.stream.precision), placed, start, roles, asked), wanting
            start = max(start, end)

    def _joined(self, name: str, share: _Share) -> dict[str, np.ndarray]:
        """Return one array per variable; prompts left out become NaN, or -1 where the type has no NaN."""
        layout = self.items[name].layout
        assert isinstance(layout, Layout)
        rows = [prompt - share.first_prompt for prompt in share.unfit]
        arrays = {}
        for variable in layout.variables:
            axis = variable.dims.index("prompt")
            joined = torch.cat([part[variable.name] for part in share.parts], dim=axis)
            array = joined.to("cpu", getattr(torch, variable.dtype)).numpy()
            array[(slice(None),) * axis + (rows,)] = np.nan if array.dtype.kind == "f" else -1
            arrays[variable.name] = array
        return arrays


@dataclass
class _Share:
    """What was computed of one experiment's unit, batch by batch, and which prompts are left out."""

    first_prompt: int
    parts: list[Mapping[str, torch.Tensor]] = field(default_factory=list)
    unfit: list[int] = field(default_factory=list)
