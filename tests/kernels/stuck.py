"""A child that never answers, in a module that loads nothing: a new process imports it."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection


def stuck(jobs: Connection) -> None:
    """Start, and never answer."""
    jobs.send({"record": "ready"})
    time.sleep(1000)
