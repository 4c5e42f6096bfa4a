"""Where in a TOML text each table and each key stands, so that every mistake is told with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import tomli

from repro.spec.messages import Where

_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_LONGEST_STATEMENT = 500
"""Lines of one array or text that are looked through for the end of it."""
_LONGEST_SEARCH = 1 << 23
"""Characters that are looked through for all these ends."""


def statements(text: str) -> Iterator[tuple[Where, int]]:
    """Yield the place and line of every table header and every key that starts a statement.

    A statement is the least number of lines that are TOML by themselves, so that nothing inside a text or an array is
    mistaken for one.
    """
    table: Where = ()
    counts: dict[Where, int] = {}
    lines = text.replace("\r\n", "\n").split("\n")
    start = searched = 0
    while start < len(lines):
        for stop in range(start + 1, min(start + _LONGEST_STATEMENT, len(lines)) + 1):
            statement = "\n".join(lines[start:stop])
            searched += len(statement)
            if searched > _LONGEST_SEARCH:
                return
            if _is_toml(statement):
                break
        else:
            return
        line = lines[start].strip()
        if line.startswith("["):
            table = _path(line)
            if line.startswith("[["):
                counts[table] = counts.get(table, -1) + 1
                yield table, start + 1
                table = (*table, counts[table])
            yield table, start + 1
        elif key := _KEY.match(line):
            yield (*table, *_path(f"{key[1]} = 0")), start + 1
        start = stop


def _is_toml(text: str) -> bool:
    try:
        tomli.loads(text)
    except tomli.TOMLDecodeError:
        return False
    return True


def _path(line: str) -> Where:
    """Return the keys that a header or a key names, quotes and dots resolved by the parser itself."""
    value: Any = tomli.loads(line)
    keys: list[str] = []
    while isinstance(value, dict) and value:
        (key, value), *_ = value.items()
        keys.append(key)
    return tuple(keys)
