"""Executes a plan: streams prompts through the model once and hands every batch to all experiments that want it."""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, reduce
from importlib.metadata import version
from operator import or_
from typing import Any

import numpy as np
import torch

from repro import __version__
from repro.declare import wanted
from repro.errors import Exit, ReproError
from repro.folder import Shape
from repro.measures import Bound, bind
from repro.model import load
from repro.plan import Item, Plan, Settings
from repro.progress import Advance, progress
from repro.store import Result, open_result
from repro.stream import Batch, Engine
from repro.subjects import Chosen
from repro.summaries import summarise
from repro.verify import repair

Say = Callable[[str], None]
POLL_S = 0.5
NUMPY_TYPES = {"float32": torch.float32, "int32": torch.int32}


@dataclass(frozen=True)
class Outcome:
    """How an experiment ended: `error` is empty if it is committed."""

    name: str
    error: str = ""


@dataclass
class Session:
    """One run: the model is loaded once, however many passes there are."""

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


def execute(plan: Plan, items: Sequence[Item], session: Session) -> list[Outcome]:
    """Computes and commits some of a plan's items: one pass per length of prompts, all experiments sharing it.

    A failing experiment does not stop the others. Raises ReproError if the model cannot be had.
    """
    outcomes: list[Outcome] = []
    with torch.inference_mode():
        engine = session.engine
        for length in sorted({item.length for item in items}):
            group = [item for item in items if item.length == length]
            outcomes += _Pass(plan, group, length, session, engine).run()
    return outcomes


class _Pass:
    """One stream over the prompts, cut to `length` tokens, for several experiments."""

    def __init__(self, plan: Plan, items: Sequence[Item], length: int, session: Session, engine: Engine) -> None:
        self.plan = plan
        self.items = {item.name: item for item in items}
        self.length = length
        self.session = session
        self.engine = engine
        self.errors: dict[str, str] = {}
        self.results: dict[str, Result] = {}
        self.bound: dict[str, Bound] = {}

    def run(self) -> list[Outcome]:
        """Opens the results, streams what is missing, reduces and commits."""
        started = time.perf_counter()
        for item in self.items.values():
            self._guard(item.name, lambda item=item: self._open(item))  # type: ignore[misc]
        try:
            self._stream()
        finally:
            for result in self.results.values():
                result.close()
        self.session.seconds["passes"] = self.session.seconds.get("passes", 0) + time.perf_counter() - started
        started = time.perf_counter()
        for name in list(self.results):
            self._guard(name, lambda name=name: self._finish(name))  # type: ignore[misc]
        self.session.seconds["reductions"] = self.session.seconds.get("reductions", 0) + time.perf_counter() - started
        return [Outcome(name, self.errors.get(name, "")) for name in self.items]

    def _guard(self, name: str, action: Callable[[], None]) -> None:
        """Runs one experiment's step; what goes wrong ends that experiment only."""
        if name in self.errors:
            return
        try:
            action()
        except ReproError as error:
            if error.code in (Exit.CORRUPT, Exit.USAGE):
                raise
            self.errors[name] = error.message
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            self.errors[name] = f"{type(error).__name__}: {error}"
            self.session.say("".join(traceback.format_exception(error)))
        if name in self.errors:
            self.session.say(f"{name} failed: {self.errors[name]}")

    def _open(self, item: Item) -> None:
        assert item.layout is not None
        if item.state == "corrupt":
            findings = repair(item.path)
            self.session.say(f"{item.name}: damage found ({len(findings)}); what was lost is computed again")
        provenance = _provenance(self.plan, item, self.session, self.length)
        self.results[item.name] = open_result(item.path, item.layout, self.plan.settings.unit, provenance)
        self.bound[item.name] = bind(item.experiment, item.context, self.engine)

    def _stream(self) -> None:
        """Unit after unit until none is missing; what another living runner holds is waited for, not done twice."""
        tried: set[tuple[str, int]] = set()
        units, missing = self._missing(tried)
        if not units:
            return
        size = f"{len(units)} units of {self.plan.settings.unit} prompts x {self.length} tokens"
        self.session.say(f"pass over {size}: {', '.join(missing)}")
        with progress(len(units), "units", self.session.say) as advance:
            while units:
                before = len(tried)
                self._over(units, missing, tried, advance)
                if len(tried) == before:
                    time.sleep(POLL_S)
                units, missing = self._missing(tried)

    def _missing(self, tried: set[tuple[str, int]]) -> tuple[list[int], dict[str, set[int]]]:
        """The units still to be tried, and which of them each experiment lacks."""
        missing = {
            name: {unit for unit in result.missing() if (name, unit) not in tried}
            for name, result in self.results.items()
            if name not in self.errors
        }
        return sorted(set().union(*missing.values())), missing

    def _over(
        self, units: Sequence[int], missing: Mapping[str, set[int]], tried: set[tuple[str, int]], advance: Advance
    ) -> None:
        """Computes the units that nobody else holds, while a thread commits the ones before."""
        with ThreadPoolExecutor(1, "commit") as writer:
            pending: list[Future[None]] = []
            for unit in units:
                lacking = [name for name in missing if unit in missing[name] and name not in self.errors]
                active = [name for name in lacking if self.results[name].claim(unit)]
                tried.update((name, unit) for name in active)
                if not active:
                    continue
                arrays = self._unit(unit, active)
                # At most two units wait to be written, so that memory stays flat on a slow disk.
                while len(pending) >= 2:
                    pending.pop(0).result()
                pending.append(writer.submit(self._write, unit, arrays))
                advance()
            for future in pending:
                future.result()

    def _unit(self, unit: int, active: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
        """All arrays of one unit, computed micro-batch by micro-batch."""
        size = self.plan.settings.unit
        stop = max(self.items[name].context.n_prompts for name in active)
        rows = range(unit * size, min((unit + 1) * size, stop))
        parts: dict[str, list[dict[str, torch.Tensor]]] = {name: [] for name in active}
        for first in range(rows.start, rows.stop, self.session.micro_batch(self.length)):
            last = min(first + self.session.micro_batch(self.length), rows.stop)
            for batch, names in self._batches(first, last, active):
                for name in names:
                    self._guard(name, lambda n=name, b=batch: parts[n].append(self.bound[n].compute(b)))  # type: ignore[misc]
        return {name: self._joined(name, parts[name]) for name in active if name not in self.errors}

    def _batches(self, first: int, last: int, active: Sequence[str]) -> Iterator[tuple[Batch, list[str]]]:
        """The prompts first to last; cut where an experiment ends inside, so that each sees only its own."""
        ends = sorted({min(self.items[name].context.n_prompts, last) for name in active})
        start = first
        for end in ends:
            if end <= start:
                continue
            names = [name for name in active if self.items[name].context.n_prompts >= end]
            tokens = self.plan.subject.tokens[start:end, : self.length]
            placed = torch.from_numpy(tokens.astype(np.int64)).to(self.plan.settings.device)
            asked = reduce(or_, (wanted(self.items[name].experiment) for name in names))
            roles = next((c.roles for n in names if (c := self.items[n].context).roles is not None), None)
            yield Batch(self.engine, placed, start, roles, asked), names
            start = end

    def _joined(self, name: str, parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, np.ndarray]:
        arrays = {}
        for variable in self.results[name].layout.variables:
            axis = variable.dims.index("prompt")
            joined = torch.cat([part[variable.name] for part in parts], dim=axis)
            arrays[variable.name] = joined.to("cpu", NUMPY_TYPES[variable.dtype]).numpy()
        return arrays

    def _write(self, unit: int, arrays: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        for name, values in arrays.items():
            self._guard(name, lambda n=name, v=values: self._write_one(n, unit, v))  # type: ignore[misc]

    def _write_one(self, name: str, unit: int, values: Mapping[str, np.ndarray]) -> None:
        self.results[name].write_unit(unit, values)

    def _finish(self, name: str) -> None:
        item, result = self.items[name], self.results[name]
        if result.committed:
            return
        tokenizer = self.plan.subject.tokenizer
        dataset = summarise(item.experiment, item.context, result, self.bound[name].once, tokenizer.decode)
        dataset.attrs.update(
            subject=self.plan.subject.name,
            model=self.plan.subject.subject.model,
            experiment=name,
            n_layers=item.context.shape.n_layers,
        )
        dataset.attrs.setdefault("examples", "named" if self.plan.subject.subject.examples != "auto" else "mined")
        result.finalise(dataset)


def _provenance(plan: Plan, item: Item, session: Session, length: int) -> dict[str, Any]:
    """Where a result comes from; only `key` and `environment` decide about freshness."""
    settings = plan.settings
    packages = ("torch", "transformer_lens", "transformers", "xarray", "zarr", "numpy")
    return {
        "subject": plan.subject.name,
        "model": plan.subject.subject.model,
        "experiment": item.name,
        "key": dict(item.key),
        "fallback": plan.subject.fallback,
        "environment": {
            "torch": item.key["torch"],
            "device": settings.device,
            "precision": settings.precision,
            "kernels": session.engine.kernels.name,
        },
        "versions": {"repro": __version__, **{name: version(name) for name in packages}},
        "host": {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "threads": torch.get_num_threads(),
        "micro_batch": session.micro_batch(length),
    }
