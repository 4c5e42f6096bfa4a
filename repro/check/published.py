"""The published numbers as data: reads `published/published.toml` and the reference table it names."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tomli
from pydantic import ValidationError

from repro.check.published_file import (
    Claim,
    Common,
    Drawn,
    Number,
    NumberTable,
    Paper,
    PublishedFile,
    ReferenceTable,
    Tolerance,
)
from repro.errors import Exit, ReproError

FOLDER = Path(__file__).with_name("published")
AXIS_SHARE = 0.02


# The recipe of the authors' 300 prompts; only results on exactly these are compared within the printed tolerances.
PAPER_PROMPTS = {
    "sources": [
        {"dataset": "NeelNanda/c4-tokenized-2b", "rows": 240, "kind": "text"},
        {"dataset": "NeelNanda/code-tokenized", "rows": 60, "kind": "code"},
    ],
    "length": 1024,
    "seed": 5235,
    "buffer": 10,
}


@dataclass(frozen=True)
class Published:
    """Every published number and claim, and what must hold before ours may be compared with them."""

    paper: Paper
    examples: Mapping[str, str]
    drawn: Mapping[str, Mapping[str, Drawn]]
    numbers: tuple[Number, ...]
    claims: tuple[Claim, ...]

    def drawn_by(self, entry: Number | Claim) -> Drawn:
        """Return the variant that drew an entry."""
        return self.drawn[entry.experiment][entry.variant]


@cache
def read_published(folder: Path = FOLDER) -> Published:
    """Return the published numbers of both sources and of the research code's appendix.

    folder: holds `published.toml` and the tables it names. Returns them typed and expanded, in the file's order.
    Raises ReproError naming the file and every problem. Agreement: tests/check/test_published.py.
    """
    path = folder / "published.toml"
    try:
        file = PublishedFile.model_validate(tomli.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomli.TOMLDecodeError) as error:
        raise ReproError(f"{path.name}: cannot be read: {error}", Exit.USAGE) from None
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise ReproError("\n".join(f"{path.name}: {problem}" for problem in problems)) from None
    entries: list[Common] = [*file.number, *file.claim, *file.reference]
    for entry in entries:
        if entry.variant not in file.drawn.get(entry.experiment, {}):
            raise ReproError(f"{path.name}: {entry.id}: no [drawn.{entry.experiment}.{entry.variant}]")
    numbers = [number for table in file.number for number in _expanded(table)]
    numbers += [number for table in file.reference for number in _from_table(table, folder)]
    return Published(file.paper, file.examples, file.drawn, tuple(numbers), file.claim)


def _expanded(table: NumberTable) -> list[Number]:
    numbers = []
    for entry in table.each:
        tolerance = table.tolerance
        if tolerance == "axis":
            tolerance = Tolerance(kind="axis", within=AXIS_SHARE * (entry.axis or 0.0))
        numbers.append(
            _number(
                table,
                id="/".join([table.id, *entry.select.values()]),
                select={**table.select, **entry.select},
                value=entry.value,
                tolerance=tolerance,
                best=table.best,
            )
        )
    return numbers


def _from_table(table: ReferenceTable, folder: Path) -> list[Number]:
    columns = {"lower": "q25", "median": "q50", "upper": "q75"}
    numbers = []
    with (folder / table.file).open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            for quantile, column in columns.items():
                shown = (s.figure for s in table.shown if row["node"] in s.nodes and quantile in s.quantiles)
                numbers.append(
                    _number(
                        table,
                        id="/".join([table.id, row["node"], row["site"], quantile]),
                        figure=next(shown, table.figure),
                        select={"quantile": quantile, "node": row["node"], "site": row["site"]},
                        value=float(row[column]),
                        group=table.id,
                    )
                )
    return numbers


def _number(table: NumberTable | ReferenceTable, select: dict[str, str], **given: Any) -> Number:
    """Return one number of a table: what is given, else what the table says of all of them."""
    said = {name: getattr(table, name) for name in (*Common.model_fields, "tolerance", "same_prompts")}
    return Number(**{**said, **given, "select": select, "quantity": table.quantity.format(**select)})
