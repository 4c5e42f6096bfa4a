"""A package that is a function, too: `repro.run` and `repro.scan` are names of both."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def make_callable(package: str, module: str, function: str) -> None:
    """Make a package a function of the same arguments as one of a module, imported when it is called.

    By name, since the module may lie in a layer above the package. Agreement: tests/test_notebook.py.
    """

    class Callable(ModuleType):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return getattr(import_module(module), function)(*arguments, **options)

    sys.modules[package].__class__ = Callable
