"""A run over a cluster with a measure that imports no torch: what its workers call, and a driver that can be killed.

`python -m tests.clustered PATH --units N …` does what `python -m repro run` does with the experiments `scan` and `odd`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from repro.errors import Exit, ReproError
from repro.run.failures import Failures
from repro.run.loop import Compute, UnitArrays
from repro.run.watchdog import Watchdog
from repro.run.workers import open_cluster
from repro.store.result import open_result
from tests import faulty


@dataclass(frozen=True)
class Toy:
    """What a worker calls for what computes units; each is logged with its process when it is begun."""

    n_prompts: int
    log: Path
    pause_s: float = 0.0
    odd: str = ""
    """What the experiment `odd` does: `fails`, or `hangs` with its worker."""

    def __call__(self, failures: Failures, threads: int) -> Compute:
        declared = faulty.layout(self.n_prompts)

        def compute(unit: int, names: Sequence[str]) -> dict[str, UnitArrays]:
            assert "torch" not in sys.modules
            with self.log.open("a") as handle:
                handle.write(f"{unit} {os.getpid()}\n")
            time.sleep(self.pause_s)
            if "odd" in names and self.odd == "hangs":
                time.sleep(600)
            if "odd" in names and self.odd == "fails":
                with failures.guard("odd"):
                    raise ValueError("no such thing")
            filled = UnitArrays(faulty.measure(declared, declared.prompts(faulty.UNIT, unit)), {"halved": 0})
            return {name: filled for name in names if name not in failures}

        return compute


def run(root: Path, toy: Toy, workers: int | None, scheduler: str | None, watchdog: Watchdog) -> dict[str, str]:
    """Opens or resumes, has the workers fill, reduces, commits; returns what has failed."""
    names = ["scan", "odd"] if toy.odd else ["scan"]
    failures = Failures(print)
    with open_cluster(workers, scheduler, "cpu", print) as cluster:
        assert cluster is not None
        declared = faulty.layout(toy.n_prompts)
        paths = {name: root / "s" / name / "k" for name in names}
        results = {name: open_result(paths[name], declared, faulty.UNIT, faulty.PROVENANCE) for name in names}
        cluster.fill(results, toy, failures, lambda: None, watchdog)
        for name, result in results.items():
            if name not in failures and not result.committed:
                result.finalise(faulty.summary(result))
    return failures.errors


def main() -> int:
    """The driver's command line; exit codes are those of `python -m repro`."""
    options = argparse.ArgumentParser()
    options.add_argument("root", type=Path)
    options.add_argument("--prompts", type=int, default=24)
    options.add_argument("--pause", type=float, default=0.0)
    options.add_argument("--odd", default="")
    options.add_argument("--watchdog", type=float, default=0.0)
    options.add_argument("--workers", type=int)
    options.add_argument("--scheduler")
    given = options.parse_args()
    toy = Toy(given.prompts, given.root / "log", given.pause, given.odd)
    watchdog = Watchdog(given.watchdog, given.root / "logs")
    try:
        errors = run(given.root, toy, given.workers, given.scheduler, watchdog)
    except ReproError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    return Exit.FAILED if errors else Exit.OK


if __name__ == "__main__":
    sys.exit(main())
