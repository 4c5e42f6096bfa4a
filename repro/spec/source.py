"""The text and the tables of a spec's file, before anything is known of what they mean."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import tomli

from repro.errors import ReproError

_PAPERS = Path(__file__).resolve().parents[2] / "experiments.toml"
"""The paper's own spec, where this package lies in its checkout; an installed copy has none beside it."""
_LARGEST = 1 << 18
"""Bytes of a spec."""
_WINDOWS = re.compile(r"""=\s*"([A-Za-z]:|\.{0,2})\\""")
DRIVE = re.compile(r"[A-Za-z]:")
ESCAPES = "In double quotes a backslash begins an escape: write a path of Windows in single quotes, or with /"
_MOST_DIGITS = sys.get_int_max_str_digits()


def tables_of(path: Path, text: str) -> dict[str, Any]:
    """Return the tables of a TOML text."""
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        words = f"{path}:{error.lineno}: not TOML: {error.msg} (column {error.colno})"
        said = "".join(text.splitlines()[error.lineno - 1 : error.lineno])
        raise ReproError(words + (f". {ESCAPES}" if _WINDOWS.search(said) else "")) from None
    except ValueError:  # Python refuses to convert so many digits
        long = re.search(rf"[\d_]{{{_MOST_DIGITS}}}", text)
        line = text.count("\n", 0, long.start()) + 1 if long else 1
        raise ReproError(f"{path}:{line}: not TOML: a number of more than {_MOST_DIGITS} digits") from None
    return {key: _tuples(value) for key, value in data.items()}


def text_of(path: Path) -> str:
    """Return the text of a spec. Raises ReproError (exit 2) for what is not a small UTF-8 file."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise ReproError(f"{path}: no such file; {_where_to_get_one()}") from None
    except OSError as error:
        raise ReproError(f"{path}: cannot be read as a spec ({error.strerror}); name a TOML file with --spec") from None
    if len(content) > _LARGEST:
        raise ReproError(f"{path}:1: not a spec: more than {_LARGEST >> 10} KiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ReproError(
            f"{path}:{line}: not UTF-8: byte 0x{content[error.start]:02x}; save the file as UTF-8"
        ) from None


def _where_to_get_one() -> str:
    """Say how to get a spec, and where the paper's own lies if this package runs from its checkout."""
    if _PAPERS.is_file():
        return f"name a spec with --spec; the paper's is {_PAPERS} (with --out . its results land here)"
    return "change to a checkout of this project, whose experiments.toml is the paper, or name a spec with --spec"


def _tuples(value: Any) -> Any:
    """Return arrays as tuples, which frozen types hold."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value
