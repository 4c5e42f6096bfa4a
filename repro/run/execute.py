"""Executes a plan: streams prompts through the model once and hands every batch to all experiments that want it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from repro.labels import FLOAT32, in_precision
from repro.measures.base import Stream
from repro.measures.describe import mark_capped
from repro.measures.reduce import summarise
from repro.plan.plan import Item, Plan
from repro.process import effective_settings
from repro.progress import progress
from repro.run.cluster import Cluster
from repro.run.failures import Failures
from repro.run.loop import fill, missing, units_of
from repro.run.session import Session, Work
from repro.run.worker import Recipe, versions
from repro.store.excluded import excluded_prompts
from repro.store.result import Result, open_result
from repro.store.verify import repair


@dataclass(frozen=True)
class Outcome:
    """How an experiment ended: `error` is empty if it is committed."""

    name: str
    error: str = ""


def execute(plan: Plan, items: Sequence[Item], session: Session, cluster: Cluster | None = None) -> list[Outcome]:
    """Compute and commit some of a plan's items: one pass per length of prompts and precision, shared by all.

    cluster: whose workers fill the units; None: this process does. A failing experiment does not stop the others.
    Raises ReproError if the model cannot be had.
    """
    outcomes: list[Outcome] = []
    with torch.inference_mode():
        for stream, group in plan.passes(items).items():
            session.engine(stream.precision)  # loaded first: a model that cannot be had must cost nothing
            outcomes += _Pass(plan, group, stream, session, cluster).run()
    return outcomes


class _Pass:
    """One stream over the prompts, for several experiments."""

    def __init__(
        self, plan: Plan, items: Sequence[Item], stream: Stream, session: Session, cluster: Cluster | None
    ) -> None:
        self.plan = plan
        self.stream = stream
        self.session = session
        self.cluster = cluster
        self.failures = Failures(session.say)
        self.work = Work(plan, items, stream, session, self.failures)
        self.results: dict[str, Result] = {}

    def run(self) -> list[Outcome]:
        """Open the results, stream what is missing, reduce and commit."""
        started = time.perf_counter()
        for item in self.work.items.values():
            self.failures.guard(item.name, lambda item=item: self._open(item))  # type: ignore[misc]
        try:
            self._fill()
        finally:
            for result in self.results.values():
                result.close()
        started = self._spent("passes", started)
        for name in list(self.results):
            self.failures.guard(name, lambda name=name: self._finish(name))  # type: ignore[misc]
        self._spent("reductions", started)
        return [Outcome(name, self.failures.errors.get(name, "")) for name in self.work.items]

    def _spent(self, stage: str, started: float) -> float:
        """Add the time since `started` to a stage, each precision's its own; return the time now."""
        now, stage = time.perf_counter(), stage + in_precision(self.stream.precision)
        self.session.seconds[stage] = self.session.seconds.get(stage, 0) + now - started
        return now

    def _open(self, item: Item) -> None:
        assert item.layout is not None
        if item.state.kind == "corrupt":
            findings = repair(item.path)
            self.session.say(f"{item.name}: damage found ({len(findings)}); what was lost is computed again")
        threads = torch.get_num_threads() if self.cluster is None else self.cluster.threads
        provenance = _provenance(self.plan, item, self.session, threads)
        self.results[item.name] = open_result(item.path, item.layout, self.plan.settings.unit, provenance)
        self.work.prepare(item.name)

    def _fill(self) -> None:
        """Say what is missing, and have it computed."""
        lacking = missing(self.results, self.failures, set())
        units = units_of(lacking)
        if not units:
            return
        size = f"{len(units)} units of {self.plan.settings.unit} prompts x {self.stream}"
        self.session.say(f"pass over {size}: {', '.join(lacking)}")
        with self.session.watchdog as watchdog, progress(len(units), "units", self.session.say) as advance:

            def finished() -> None:
                watchdog.feed()
                advance()

            if self.cluster is None:
                fill(self.results, self.work.unit, self.failures, finished, watchdog.wait)
            else:
                recipe = Recipe.of(self.plan, list(self.work.items.values()), self.stream, self.session.memory)
                spent = self.cluster.fill(self.results, recipe, self.failures, finished, watchdog)
                self.session.seconds["workers"] = self.session.seconds.get("workers", 0) + spent

    def _finish(self, name: str) -> None:
        item, result = self.work.items[name], self.results[name]
        if result.committed:
            return
        tokenizer = self.plan.subject.tokenizer
        prepared, without = self.work.prepared[name], excluded_prompts(item.path)
        dataset = summarise(item.experiment, item.context, result, prepared, tokenizer.name, without)
        dataset.attrs.update(
            subject=self.plan.subject.name,
            model=self.plan.subject.subject.model,
            experiment=name,
            n_layers=item.context.shape.n_layers,
        )
        if item.precision != FLOAT32:
            dataset.attrs["precision"] = item.precision
        mark_capped(dataset, self.session.engine(item.precision).model.logit_cap)
        dataset.attrs.setdefault("examples", "named" if self.plan.subject.subject.examples != "auto" else "mined")
        result.finalise(dataset)


def _provenance(plan: Plan, item: Item, session: Session, threads: int) -> dict[str, Any]:
    """Return where a result comes from; only `key` and `environment` decide about freshness."""
    settings, engine = plan.settings, session.engine(item.precision)
    return {
        "subject": plan.subject.name,
        "model": plan.subject.subject.model,
        "experiment": item.name,
        "key": dict(item.key),
        "fallback": plan.subject.fallback,
        "environment": {
            "torch": item.key["torch"],
            "device": settings.device,
            "precision": item.precision,
            "kernels": engine.kernels.name,
            "products": settings.products,
        },
        "versions": versions(),
        "host": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            **effective_settings(),
        },
        "threads": threads,
        "micro_batch": session.micro_batch(item.stream),
    }
