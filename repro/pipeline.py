"""The stages of a command, in order. `python -m repro all` is exactly these; other commands stop early."""

from __future__ import annotations

from collections.abc import Callable

from repro.stages.answer import answer, conclude
from repro.stages.check import check
from repro.stages.draw import draw
from repro.stages.paper import Paper
from repro.stages.plan import plan
from repro.stages.report import report
from repro.stages.resolve import resolve
from repro.stages.run import run

STAGES: tuple[Callable[..., Paper], ...] = (resolve, plan, run, draw, check, answer, report, conclude)
