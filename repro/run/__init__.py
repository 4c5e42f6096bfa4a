"""How a plan is carried out: unit by unit, here or on other machines; `repro.run(subject, name)` asks for it."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """This package as a function, too: `repro.run` is the name of both."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Return `repro.computed.run_named` of the arguments."""
        # By name: it lies above this layer, which must not import it.
        return import_module("repro.computed").run_named(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
