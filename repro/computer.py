"""What the stages that compute share: the model, the workers, and an account of what was computed and what failed."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from repro.errors import ReproError
from repro.plan.cost import Cost, cost_comparison, on_disk, predict, remember
from repro.plan.plan import Item, Plan
from repro.request import Workspace, parse_bytes
from repro.run.watchdog import Watchdog, parse_watchdog
from repro.run.workers import check_options, open_cluster
from repro.store.excluded import excluded_prompts
from repro.store.records import COMMIT
from repro.subjects.access import cache_folder
from repro.subjects.resolve import ResolvedSubject

if TYPE_CHECKING:
    from repro.model.decoder import Model
    from repro.run.cluster import Cluster
    from repro.run.session import Session


class Computer:
    """What the stages that compute share: one model, one cluster, and what they have cost, discarded and seen fail."""

    def __init__(self, workspace: Workspace, subject: ResolvedSubject) -> None:
        request = workspace.request
        check_options(request.workers, request.scheduler)
        self.workspace = workspace
        self.subject = subject
        self.memory = parse_bytes(request.memory)
        self.watchdog = Watchdog(parse_watchdog(request.watchdog), workspace.store / "logs")
        self.failed: set[str] = set()
        self._discarded: set[str] = set()
        self._costs: dict[str, Cost] = {}
        self._written = 0
        self._resources = ExitStack()
        self._session: Session | None = None
        self._cluster: Cluster | None = None

    def compute(self, plan: Plan) -> Plan:
        """Compute what a plan leaves to do and is able to; return the plan with what the store holds then."""
        fresh = self.workspace.request.fresh
        if not fresh and not self._todo(plan):
            return plan
        session = self._opened()
        if fresh:
            plan = self._discard(plan, session)
        items = self._todo(plan)
        if not items:
            return plan
        from repro.run.execute import execute

        for precision, cost in predict(plan, cache_folder(), items).items():
            self._costs[precision] = self._costs.get(precision, Cost()) + cost
        before = on_disk(items)
        self.failed |= execute(plan, items, session, self._cluster).keys()
        self._written += on_disk(items) - before
        return plan.looked_up()

    def settle(self, plan: Plan) -> None:
        """Have the claims of scans that are there confirmed by real forwards, and kept, unless they are already."""
        from repro.scan.choose import settled
        from repro.scan.record import named_pairs
        from repro.store.result import read_kept

        subject = self.subject.subject
        for item in plan.items:
            if not (item.experiment.answers and item.fresh):
                continue

            def model(item: Item = item) -> Model:
                self.workspace.say("confirming what the scan claims by real forwards")
                return self._opened().engine(item.precision).model

            tokens = self.subject.tokens[: item.context.n_prompts, : item.stream.length]
            tokens = np.delete(tokens, excluded_prompts(item.path), 0)
            named = named_pairs(subject.writer, subject.erasers)
            settled(item.path, partial(read_kept, item.path), tokens, model, named)

    def _todo(self, plan: Plan) -> list[Item]:
        return [item for item in plan.todo if item.name not in self.failed]

    def _opened(self) -> Session:
        """Return the session of this process, and the cluster that was asked for, each opened when first needed."""
        if self._session is None:
            from repro.run.session import Session

            workspace, request = self.workspace, self.workspace.request
            workspace.check_writable()
            self._cluster = self._resources.enter_context(
                open_cluster(request.workers, request.scheduler, workspace.settings.device, workspace.say)
            )
            self._session = Session(self.subject, workspace.settings, self.memory, workspace.say, self.watchdog)
        return self._session

    def _discard(self, plan: Plan, session: Session) -> Plan:
        """Remove each result once, for `--fresh`, so that it is computed again.

        First the model is loaded: one that cannot be had must not cost the results that are there.
        """
        for stream in list(plan.passes(plan.items))[:1]:
            session.engine(stream.precision)
        for item in plan.items:
            if item.name not in self._discarded and not item.waits:
                self._discarded.add(item.name)
                remove_result(item.path)
        return plan.looked_up()

    def close(self) -> None:
        """End the cluster, say what was spent, and keep this machine's rate for later predictions."""
        self._resources.close()
        session = self._session
        if session is None:
            return
        self._session, say = None, self.workspace.say
        say(f"time: {', '.join(f'{name} {seconds:.1f} s' for name, seconds in session.seconds.items())}")
        if self._cluster is not None or self.watchdog.waited or not self._costs:
            return  # plans are costed with the speed of one process, at all of the work
        took = {precision: session.took(precision) for precision in self._costs}
        say(cost_comparison(sum(self._costs.values(), Cost()), sum(took.values()), self._written))
        for precision, seconds in took.items():
            remember(
                cache_folder(), self._costs[precision].flop, seconds, self.workspace.settings, self.subject, precision
            )


def remove_result(path: Path) -> None:
    """Delete a result, COMMIT first: a half-deleted one must not look damaged."""
    if not path.exists():
        return
    try:
        (path / COMMIT).unlink(missing_ok=True)
        shutil.rmtree(path)
    except OSError as error:
        raise ReproError(f"{path}: cannot be removed ({error.strerror})") from None
