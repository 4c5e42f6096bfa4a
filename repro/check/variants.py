"""Where texts and research code differ: every variant beside the experiment it varies, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import xarray as xr

from repro.check.tables import table
from repro.files import write_json
from repro.measures import measure_named
from repro.spec.types import Common

_IGNORED = {"about", "group", "variant_of", "measure"}


@dataclass(frozen=True)
class Line:
    """One quantity under the default and under a variant."""

    variant: str
    changes: str
    quantity: str
    default: float | None
    value: float


def variant_pairs(experiments: Mapping[str, Common]) -> list[tuple[str, str]]:
    """Return each variant and the experiment it varies, in the spec's order."""
    return [(name, entry.variant_of) for name, entry in experiments.items() if entry.variant_of is not None]


def variant_lines(experiments: Mapping[str, Common], results: Mapping[str, xr.Dataset]) -> list[Line]:
    """Return every stored variant's headline quantities beside its base experiment's.

    experiments: the declared ones; results: summaries by experiment name. Returns lines in the spec's order; the
    default is None where the base has no result or lacks the quantity. Agreement: tests/check/test_variants.py.
    """
    lines = []
    for name, base in variant_pairs(experiments):
        if name not in results or changed_fields(experiments[base], experiments[name]) == ["precision"]:
            continue  # what precision does has a page of its own
        before = headlines(results[base]) if base in results else {}
        changes = _changes(experiments[base], experiments[name])
        for quantity, value in headlines(results[name]).items():
            lines.append(Line(name, changes, quantity, before.get(quantity), value))
    return lines


def changed_fields(base: Common, variant: Common) -> list[str]:
    """Return the fields in which a variant differs from what it varies, `measure` excepted."""
    here, there = variant.model_dump(mode="json"), base.model_dump(mode="json")
    return [key for key in here if key not in _IGNORED and here[key] != there.get(key)]


def _changes(base: Common, variant: Common) -> str:
    here = variant.model_dump(mode="json")
    return ", ".join(f"{key} = {here[key]}" for key in changed_fields(base, variant))


def headlines(dataset: xr.Dataset) -> dict[str, float]:
    """Return the few quantities of a summary that the two texts argue with, as its measure names them."""
    measure = measure_named(dataset.attrs["measure"])
    return {} if measure is None else measure.headlines(dataset)


def write_variants(lines: list[Line], folder: Path, subject: str) -> Path:
    """Write variants.md and variants.json into a folder; return the table's path."""
    folder.mkdir(parents=True, exist_ok=True)
    head = [
        f"# Variants on {subject}",
        "",
        "Where the two texts and the authors' code differ, side by side. Every number here is from this subject.",
        "",
    ]
    rows = [(line.variant, line.changes, line.quantity, line.default, line.value) for line in lines]
    heads = ("variant", "changes", "quantity", "default", "with the variant")
    page = folder / "variants.md"
    page.write_text("\n".join([*head, *table(heads, rows, right=heads[3:])]) + "\n", encoding="utf-8")
    write_json(folder / "variants.json", [asdict(line) for line in lines])
    return page
