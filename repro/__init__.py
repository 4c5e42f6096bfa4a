"""When does direct logit attribution lie? The paper as one TOML file, and the question asked of any model.

In a notebook: `corrected_dla(model, tokens, answer, other)`, `scan(model, text)`, and `load`, which prepares a model
once for several calls; `run(subject, experiment)` computes and stores, `open(subject, experiment)` and
`figure(subject, name)` read what is stored. Nothing heavy is imported before one of them is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repro.model.given import load_model as load
    from repro.notebook import figure
    from repro.notebook import open_result as open
    from repro.notebook import run_named as run
    from repro.scan.corrected import corrected_dla
    from repro.scan.in_memory import scan

__all__ = ["corrected_dla", "figure", "load", "open", "run", "scan"]
__version__ = "0.1.0"

_WHERE = {
    "corrected_dla": ("repro.scan.corrected", "corrected_dla"),
    "figure": ("repro.notebook", "figure"),
    "load": ("repro.model.given", "load_model"),
    "open": ("repro.notebook", "open_result"),
}


def __getattr__(name: str) -> Any:
    """Return what a notebook calls, imported when it is first asked for; `run` and `scan` are callable packages."""
    if name in ("run", "scan"):
        return import_module(f"repro.{name}")
    if name in _WHERE:
        module, attribute = _WHERE[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'repro' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
