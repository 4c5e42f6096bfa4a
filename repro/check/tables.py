"""Markdown tables, written the same way for every comparison: no dates, equal bytes for equal rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
