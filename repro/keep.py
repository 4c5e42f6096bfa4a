"""`python -m repro.keep SUBJECT`: copies the reduced results of a subject to store/committed/, to be kept in git."""

from __future__ import annotations

import sys
from pathlib import Path

from repro.request import Request, World
from repro.store.committed import commit_reduced
from repro.store.records import status


def keep(world: World) -> list[Path]:
    """Copies every fresh result of the default groups; returns the copies' folders.

    Agreement: tests/store/test_keep.py.
    """
    plan = world.plan(world.choose(ask=False))
    kept = []
    for item in plan.items:
        if status(item.path).kind == "committed":
            destination = world.committed / plan.subject.name / item.name
            commit_reduced(item.path, destination)
            kept.append(destination)
    return kept


if __name__ == "__main__":
    for folder in keep(World(Request(spec=Path("experiments.toml"), subject=sys.argv[1]), print)):
        print(folder)
