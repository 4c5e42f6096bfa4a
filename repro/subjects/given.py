"""What people give as paths: how it is shown, and what is no directory, each with what to give instead."""

from __future__ import annotations

import re
from pathlib import Path

from repro.errors import ReproError, plain

_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def shown_path(given: str) -> str:
    """Return a path as messages show it: on one line, its first thousand characters."""
    return plain(given, 1000)


def refuse_no_directory(given: str, path: Path) -> None:
    """Raise ReproError (exit 2) for a file, a path in quotes or a path of Windows, given as `--subject`.

    path: what was given, its home expanded. Agreement: tests/subjects/test_subjects.py.
    """
    shown = shown_path(given)
    bare = given.strip().strip("\"'\u201c\u201d")
    if bare != given.strip():
        raise ReproError(f"--subject {shown}: quotes are part of the name; give the path without them: {plain(bare)}")
    if path.is_file():
        raise ReproError(
            f"--subject {shown}: a file; give the directory that holds config.json, the weights and prompts.safetensors"
        )
    if _WINDOWS.match(given):
        raise ReproError(
            f"--subject {shown}: a path of Windows that is not here; under WSL drives are directories such as /mnt/c, "
            "and a path begins with /"
        )
