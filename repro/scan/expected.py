"""Expected erasures: those known from elsewhere, held against the claims where such a model is scanned.

`expected.toml` beside this file lists them. How many of them are claimed is the scan's recall on known cases, which are
few, and only of models that somebody has looked at. How often it finds what is planted: repro/scan/controls.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import tomli
from pydantic import BaseModel, ConfigDict, model_validator

from repro.labels import is_node, layer_of
from repro.scan.verdict import Scan

FILE = Path(__file__).with_name("expected.toml")


class Reported(BaseModel):
    """What is known of one model; each eraser of a writer is a case."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """Where the model comes from: a hub name, or pypi:NAME==VERSION."""
    stratum: Literal["first", "rest"]
    writer: str = ""
    writer_layer: int | None = None
    erasers: tuple[str, ...] = ()
    after_layer: int | None = None
    source: str
    """What says so: a title and its address, what was measured, or that the source of a report was not recorded."""

    @model_validator(mode="after")
    def _is_a_case_or_none(self) -> Reported:
        if bool(self.writer) != bool(self.erasers) or (self.writer_layer is None) != (self.after_layer is None):
            raise ValueError("a writer with its erasers, a writer_layer with an after_layer, or none of them")
        return self


@dataclass(frozen=True)
class Case:
    """One expected erasure, and whether the scan claims it."""

    stratum: str
    writer: str
    """Its label, `layer 1` for any node of a layer, or empty where nothing is expected."""
    eraser: str
    """Its label, or `after layer 13`."""
    source: str
    claimed: bool
    """Whether a pair of this kind meets the conditions 1 to 3 and was not refuted; where nothing is expected, any."""


@cache
def read_expected(path: Path = FILE) -> tuple[Reported, ...]:
    """Return all that is listed. Agreement: tests/scan/test_expected.py."""
    with path.open("rb") as file:
        return tuple(Reported(**entry) for entry in tomli.load(file)["reported"])


def compare(source: str, directory: str, rest: Scan, first: Scan) -> tuple[Case, ...]:
    """Return the expected erasures of a model and whether a scan claims them; nothing for a model that is not listed.

    source: where the model comes from, a hub name or pypi:NAME==VERSION, which is to be the listed one in full;
    directory: the name of its directory, which is to be the last part of that. What its configuration calls it is not
    asked: in a fine-tuned model that is often its base model. What the model is too small for, has too few prompts for,
    or whose components the scan left out, is no case.
    """
    listed = [
        entry
        for entry in read_expected()
        if entry.model.lower() == source.lower() or entry.model.lower().rsplit("/", 1)[-1] == directory.lower()
    ]
    scans = {"rest": rest, "first": first}
    return tuple(case for entry in listed for case in _cases(entry, scans[entry.stratum]))


def _cases(entry: Reported, scan: Scan) -> Iterator[Case]:
    pairs = scan.pairs
    partial = pairs.n_pairs < pairs.family  # named roles: only their components were looked at

    def case(writer: str, eraser: str, claimed: np.ndarray) -> Case:
        return Case(entry.stratum, writer, eraser, entry.source, bool(claimed.any()))

    if not scan.enough_prompts or (partial and not entry.writer):
        return
    if entry.writer_layer is not None and entry.after_layer is not None:
        rows = [w for w, label in enumerate(pairs.writers) if is_node(label) and layer_of(label) == entry.writer_layer]
        columns = [c for c, label in enumerate(pairs.components) if layer_of(label) > entry.after_layer]
        if rows and columns:
            claimed = pairs.claimed[np.ix_(rows, columns)]
            yield case(f"layer {entry.writer_layer}", f"after layer {entry.after_layer}", claimed)
    elif entry.writer:
        for eraser in entry.erasers:
            if entry.writer in pairs.writers and eraser in pairs.components:
                at = pairs.writers.index(entry.writer), pairs.components.index(eraser)
                yield case(entry.writer, eraser, pairs.claimed[at])
    else:
        yield case("", "", pairs.claimed)


def recall_line(cases: Sequence[Case]) -> list[str]:
    """Return the line about known cases: `expected erasures: 5 of 6 claimed (not L0H2 by L2H3)`; none without cases."""
    wanted = [case for case in cases if case.writer]
    missed = [f"{case.writer} by {case.eraser}" for case in wanted if not case.claimed]
    left = f" (not {', '.join(missed)})" if missed else ""
    lines = [f"expected erasures: {len(wanted) - len(missed)} of {len(wanted)} claimed{left}"] if wanted else []
    for case in cases:
        if not case.writer:
            where = "at the first token" if case.stratum == "first" else "beyond the first token"
            lines.append(
                f"expected erasures: none {where}, {'but some are' if case.claimed else 'and none is'} claimed"
            )
    return lines
