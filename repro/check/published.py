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
    ClaimTable,
    Common,
    Compared,
    Drawn,
    NumberTable,
    Obtained,
    Paper,
    PublishedFile,
    ReferenceTable,
    Source,
    Statistic,
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
class Number:
    """One published number: what it is, who drew it, and when ours counts as equal."""

    id: str
    figure: str
    quantity: str
    experiment: str
    variant: str
    variable: str
    select: Mapping[str, str]
    value: float
    tolerance: Tolerance
    source: Source
    obtained: Obtained
    same_prompts: bool
    best: str
    group: str | None = None


@dataclass(frozen=True)
class Claim:
    """One published claim in words and our numeric rule for it: above < statistic < below for each selected element."""

    id: str
    figure: str
    quantity: str
    experiment: str
    variant: str
    variable: str
    elements: tuple[Mapping[str, str], ...]
    statistic: Statistic
    against_variable: str
    against_elements: tuple[Mapping[str, str], ...]
    above: float | None
    below: float | None
    source: Source
    obtained: Obtained
    group: str | None = None

    @property
    def rule(self) -> str:
        """Return the rule as text."""
        name = {"absolute": "|value|", "relative_change": "|change| / |clean|"}.get(self.statistic, self.statistic)
        lower = "" if self.above is None else f"{self.above:g} < "
        upper = "" if self.below is None else f" < {self.below:g}"
        return f"{lower}{name}{upper}"


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
    claims = tuple(_claim(table) for table in file.claim)
    return Published(file.paper, file.examples, file.drawn, tuple(numbers), claims)


def _expanded(table: NumberTable) -> list[Number]:
    numbers = []
    for entry in table.each:
        tolerance = (
            Tolerance(kind="axis", within=AXIS_SHARE * (entry.axis or 0.0))
            if isinstance(table.tolerance, str)
            else table.tolerance
        )
        numbers.append(
            Number(
                id="/".join([table.id, *entry.select.values()]),
                figure=str(table.figure),
                quantity=table.quantity.format(**table.select, **entry.select),
                select={**table.select, **entry.select},
                value=entry.value,
                tolerance=tolerance,
                best=table.best,
                same_prompts=table.same_prompts,
                **_copied(table),
            )
        )
    return numbers


def _from_table(table: ReferenceTable, folder: Path) -> list[Number]:
    columns = {"lower": "q25", "median": "q50", "upper": "q75"}
    numbers = []
    with (folder / table.file).open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            for quantile, column in columns.items():
                select = {"quantile": quantile, "node": row["node"], "site": row["site"]}
                shown = (s.figure for s in table.shown if row["node"] in s.nodes and quantile in s.quantiles)
                numbers.append(
                    Number(
                        id="/".join([table.id, row["node"], row["site"], quantile]),
                        figure=str(next(shown, table.figure)),
                        quantity=table.quantity.format(**select),
                        select=select,
                        value=float(row[column]),
                        tolerance=table.tolerance,
                        best="match",
                        same_prompts=table.same_prompts,
                        group=table.id,
                        **_copied(table),
                    )
                )
    return numbers


def _claim(table: ClaimTable) -> Claim:
    against = table.against or Compared()
    elements = tuple({**table.select, **each} for each in table.each)
    # Compared with: the same element with labels replaced; "" takes a label away (`clean` has no quantile).
    others = tuple({k: v for k, v in {**element, **against.select}.items() if v} for element in elements)
    return Claim(
        id=table.id,
        figure=str(table.figure),
        quantity=table.quantity,
        elements=elements,
        statistic=table.statistic,
        against_variable=against.variable or table.variable,
        against_elements=others,
        above=table.above,
        below=table.below,
        **_copied(table),
    )


def _copied(table: Common) -> dict[str, Any]:
    return table.model_dump(include={"experiment", "variant", "variable", "source", "obtained"})
