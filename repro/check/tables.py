"""Markdown tables and JSON, written the same way for every comparison: no dates, equal bytes for equal rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LEFT, RIGHT = "---", "---:"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> list[str]:
    """Return the lines of a Markdown table.

    heads: column names; rows: their cells, numbers as `number` prints them; right: columns that are set flush right.
    """
    rule = [RIGHT if head in right else LEFT for head in heads]
    return [_line(map(cell, heads)), f"|{'|'.join(rule)}|", *(_line(map(cell, row)) for row in rows)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(value: object) -> str:
    """Return what may stand in a cell: a number to four digits, '-' for nothing, a text with its bars escaped."""
    if value is None or isinstance(value, float):
        return number(value)
    return str(value).replace("|", "\\|").replace("\n", " ")


def number(value: float | None, digits: int = 4) -> str:
    """Return a number to some digits, '-' where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"


def write_json(path: Path, document: Any) -> None:
    """Write a document as JSON, which has no NaN and no infinity: null stands in their place."""
    text = json.dumps(_finite(document), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
