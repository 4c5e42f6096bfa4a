"""Settings of the processor's own libraries, which they read once, when torch loads them."""

from __future__ import annotations

import os

DEFAULTS = {
    # GNU OpenMP: threads that spin for long take a busy machine's cores from those that work, and threads that sleep at
    # once make many small products slow.
    "GOMP_SPINCOUNT": "20000",
    # MKL chooses code by the alignment of what it is given, on AMD processors at least, so that the last bits of a
    # product would depend on where in memory its operands happen to lie. STRICT ends that, at no measurable cost.
    "MKL_CBWR": "AUTO,STRICT",
}


def set_defaults() -> None:
    """Set every variable that the user has not set; call it before torch is imported.

    Agreement: tests/test_environment.py (attention of shifted views gives the same bits).
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def in_force() -> dict[str, str]:
    """Return the variables and their values, for the record of where a result comes from."""
    return {name: os.environ.get(name, "") for name in DEFAULTS}
