"""Settings of this process: environment variables, memory allocation, and which libraries stay silent."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

DEFAULTS = {
    # GNU OpenMP: threads that spin for long take a busy machine's cores from those that work, and threads that sleep at
    # once make many small products slow.
    "GOMP_SPINCOUNT": "20000",
    # MKL chooses code by the alignment of what it is given, on AMD processors at least, so that the last bits of a
    # product would depend on where in memory its operands happen to lie. STRICT ends that, at no measurable cost.
    "MKL_CBWR": "AUTO,STRICT",
}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MALLOC_LIMITS = (2**30, 2**25)
"""Larger than any activation; and what older versions of glibc take at most."""


def set_defaults() -> None:
    """Set every variable that the user has not set; call it before torch is imported.

    Agreement: tests/test_environment.py (attention of shifted views gives the same bits).
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def effective_settings() -> dict[str, str]:
    """Return the variables and their values, for the record of where a result comes from."""
    return {name: os.environ.get(name, "") for name in DEFAULTS}


def keep_freed_memory() -> None:
    """Tell glibc to serve activations from a heap that it does not give back between batches.

    By default every tensor above 32 MiB is mapped again, and the kernel zeroes its pages at first touch: a sixth of the
    time of a pass over four prompts. Peak memory stays what it was. Does nothing where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and any(mallopt(M_MMAP_THRESHOLD, size) for size in MALLOC_LIMITS):
        mallopt(M_TRIM_THRESHOLD, MALLOC_LIMITS[0])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what a library prints and logs below errors; warnings are the caller's business."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def suppress_stderr() -> Iterator[None]:
    """Swallow what native code writes on the process's error stream, such as a panic that is reported elsewhere."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing can be written there
        yield
        return
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
