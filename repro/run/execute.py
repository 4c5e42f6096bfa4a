"""Executes a plan: streams prompts through the model once and hands every batch to all experiments that want it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from typing import Any

import torch

from repro.kernels import fused
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


def execute(plan: Plan, items: Sequence[Item], session: Session, cluster: Cluster | None = None) -> dict[str, str]:
    """Compute and commit some of a plan's items: one pass per length of prompts and precision, shared by all.

    cluster: whose workers fill the units; None: this process does. Returns the errors of experiments that failed, which
    do not stop the others. Raises ReproError if the model cannot be had.
    """
    errors: dict[str, str] = {}
    with torch.inference_mode():
        for stream, group in plan.passes(items).items():
            session.engine(stream.precision)  # loaded first: a model that cannot be had must cost nothing
            errors |= _Pass(group, stream, session, cluster).run()
    return errors


class _Pass(Work):
    """One stream over the prompts, for several experiments, from their opened results to COMMIT."""

    def __init__(self, items: Sequence[Item], stream: Stream, session: Session, cluster: Cluster | None) -> None:
        super().__init__(items, stream, session, Failures(session.say))
        self.cluster = cluster
        self.results: dict[str, Result] = {}

    def run(self) -> dict[str, str]:
        """Open the results, stream what is missing, reduce and commit; return the errors of what failed."""
        started = time.perf_counter()
        for item in self.items.values():
            with self.failures.guard(item.name):
                self._open(item)
        try:
            self._fill()
        finally:
            for result in self.results.values():
                result.close()
        started = self._spent("passes", started)
        for name, result in self.results.items():
            if name not in self.failures and not result.committed:
                with self.failures.guard(name):
                    self._finish(self.items[name], result)
        self._spent("reductions", started)
        return self.failures.errors

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
        provenance = _provenance(item, self.session, threads)
        self.results[item.name] = open_result(item.path, item.layout, self.session.settings.unit, provenance)
        self.prepare(item.name)

    def _fill(self) -> None:
        """Say what is missing, and have it computed."""
        lacking = missing(self.results, self.failures, set())
        units = units_of(lacking)
        if not units:
            return
        size = f"{len(units)} units of {self.session.settings.unit} prompts x {self.stream}"
        self.session.say(f"pass over {size}: {', '.join(lacking)}")
        with self.session.watchdog as watchdog, progress(len(units), "units", self.session.say) as advance:

            def finished() -> None:
                watchdog.feed()
                advance()

            if self.cluster is None:
                fill(self.results, self.unit, self.failures, finished, watchdog.wait)
            else:
                recipe = Recipe.of(self.session, self.items.values(), self.stream)
                self.cluster.fill(self.results, recipe, self.failures, finished, watchdog)
                self.session.seconds["workers"] = self.cluster.seconds

    def _finish(self, item: Item, result: Result) -> None:
        subject, without = self.session.subject, excluded_prompts(item.path)
        prepared, decode = self.prepared[item.name], subject.tokenizer.name
        dataset = summarise(item.experiment, item.context, result, prepared, decode, without)
        dataset.attrs.update(
            subject=subject.name,
            model=subject.subject.model,
            experiment=item.name,
            n_layers=item.context.shape.n_layers,
        )
        if item.precision != FLOAT32:
            dataset.attrs["precision"] = item.precision
        mark_capped(dataset, self.session.engine(item.precision).model.logit_cap)
        dataset.attrs.setdefault("examples", "named" if subject.subject.examples != "auto" else "mined")
        result.finalise(dataset)


def _provenance(item: Item, session: Session, threads: int) -> dict[str, Any]:
    """Return where a result comes from; only `key` and `environment` decide about freshness."""
    subject, settings, engine = session.subject, session.settings, session.engine(item.precision)
    return {
        "subject": subject.name,
        "model": subject.subject.model,
        "experiment": item.name,
        "key": dict(item.key),
        "fallback": subject.fallback,
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
            "compiled_loop": fused.library() is not None,
            **effective_settings(),
        },
        "threads": threads,
        "micro_batch": session.micro_batch(item.stream),
    }
