"""The question, answered: which components take back what others wrote; `repro.scan(model)` asks it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """This package as a function, too: `repro.scan` is the name of both."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Return `repro.scan.in_memory.scan` of the arguments."""
        from repro.scan.in_memory import scan

        return scan(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
