"""The effect of precision as `precision.md` for people and `precision.json` for machines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from repro.check.precision import Effect, Quantity
from repro.check.report import Heading
from repro.check.tables import cell, number, table
from repro.files import write_json

_MEANS = {
    "bf16": "`bf16`: weights, and the inputs and outputs of attention and of every matrix product but the unembedding, "
    "are rounded to bf16 (8 significant bits); sums inside a product, the residual stream, norms and all that is "
    "measured stay float32.",
    "float64": "`float64`: weights, activations and all that is measured are float64; the store holds float32.",
    "float32": "`float32`: weights, activations and all that is measured are float32.",
}


_SWAPS = (
    "A value of `answer_dla` or `writer_dla` that changes its sign and keeps its size is a position at which the two "
    "first predictions are nearly tied: precision decides which comes first, and DLA is of their difference."
)


def write_effects(effects: Sequence[Effect], missing: Sequence[str], folder: Path, heading: Heading) -> Path:
    """Write precision.md and precision.json into a folder; return the table's path.

    missing: declared variants of precision that cannot be shown. Agreement: tests/check/test_precision.py.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "precision.md"
    page.write_text(markdown(effects, missing, heading), encoding="utf-8")
    document = {**asdict(heading), "missing": list(missing), "effects": [_plain(effect) for effect in effects]}
    write_json(folder / "precision.json", document)
    return page


def _plain(effect: Effect) -> dict[str, Any]:
    document = asdict(effect)
    for kind in ("headlines", "published"):
        for entry, line in zip(document[kind], getattr(effect, kind), strict=True):
            entry["difference"] = line.difference
    return document


def markdown(effects: Sequence[Effect], missing: Sequence[str], heading: Heading) -> str:
    """Return a section for each precision: published quantities, headlines, and how far every variable moves."""
    size = f"{heading.n_prompts} prompts x {heading.n_positions} positions"
    lines = [
        f"# Precision on {heading.subject}",
        "",
        f"Subject: **{heading.subject}**, {size}. Every number here is from this subject. Roles and examples are the "
        "same at every precision, so that only the arithmetic differs.",
        "",
        *heading.warning(),
    ]
    if missing:
        lines += [
            f"Not shown, as the store does not hold both sides: {', '.join(missing)}. To compute them: "
            f"`python -m repro all --subject {heading.subject} --only roles,paper,variants,precision`.",
            "",
        ]
    for effect in effects:
        lines += [f"## {effect.after} beside {effect.before}", "", _MEANS[effect.after], ""]
        if effect.uneven:
            names = ", ".join(effect.uneven)
            lines += [f"**Different prompts are left out** of {names}: not only the arithmetic differs there.", ""]
        lines += ["### Published quantities", "", *_published(effect, heading), ""]
        lines += ["### What the texts argue with, under this subject's roles", "", *_headlines(effect), ""]
        lines += ["### Every stored variable", "", *_variables(effect), ""]
    return "\n".join(lines)


def _published(effect: Effect, heading: Heading) -> list[str]:
    if not effect.published:
        return [f"None can be read on {heading.subject}: they belong to named heads and texts of another model."]
    own = heading.subject_is_papers
    sides = [effect.before, effect.after]
    heads = ["figure", "quantity", "published", *sides, "difference", "verdicts"]
    rows: list[tuple[object, ...]] = [
        (line.figure, line.quantity, line.published, *_both(line), _change(line))
        for line in effect.published
        if line.group is None
    ]
    if not own:  # nothing published is of this subject, and nothing is judged
        shown = [at for at, head in enumerate(heads) if head not in ("published", "verdicts")]
        heads, rows = [heads[at] for at in shown], [tuple(row[at] for at in shown) for row in rows]
    lines = [*_verdicts(effect), ""] if own else []
    lines += ["Where a claim is about several values, the one nearest to failing it is shown.", ""]
    lines += table(heads, rows, right=("published", *sides, "difference"))
    for group in dict.fromkeys(line.group for line in effect.published if line.group is not None):
        lines += ["", _group(group, [line for line in effect.published if line.group == group], own)]
    return lines


def _verdicts(effect: Effect) -> list[str]:
    changed = [line for line in effect.published if line.verdict_before != line.verdict_after]
    if not changed:
        return [f"No verdict changes (of {len(effect.published)})."]
    single = [f"{line.quantity}: {_change(line)}" for line in changed if line.group is None]
    grouped = len(changed) - len(single)
    shown = [*single, *([f"{grouped} numbers of the large table"] if grouped else [])]
    return [f"**{len(changed)} verdicts of {len(effect.published)} change**: {'; '.join(map(cell, shown))}."]


def _change(line: Quantity) -> str:
    same = line.verdict_before == line.verdict_after
    return line.verdict_before if same else f"{line.verdict_before} → {line.verdict_after}"


def _group(name: str, lines: Sequence[Quantity], own: bool) -> str:
    """Return a large table of numbers in one sentence; its lines are all in precision.json."""
    moved = {line.id: abs(line.difference) for line in lines if line.difference is not None}
    moved = {key: value for key, value in moved.items() if math.isfinite(value)}
    if not moved:
        return f"{name}: {len(lines)} numbers, none at both precisions."
    worst = max(moved, key=lambda key: moved[key])
    text = (
        f"{name}: {len(moved)} numbers; absolute difference: median {number(median(moved.values()), 2)}, largest "
        f"{number(moved[worst], 2)} ({', '.join(worst.split('/')[1:])})"
    )
    if own:
        counts = [sum(getattr(line, side) == "match" for line in lines) for side in ("verdict_before", "verdict_after")]
        text += f"; matches: {counts[0]} → {counts[1]}"
    return text + "."


def _headlines(effect: Effect) -> list[str]:
    sides = (effect.before, effect.after)
    rows = [(line.experiment, line.quantity, *_both(line)) for line in effect.headlines]
    return table(("experiment", "quantity", *sides, "difference"), rows, right=(*sides, "difference"))


def _both(line: Quantity) -> tuple[str, str, str]:
    """Return a quantity at both precisions, to five digits that show where they part, and the difference."""
    return number(line.before, 5), number(line.after, 5), number(line.difference, 2)


def _variables(effect: Effect) -> list[str]:
    right = ["values", "defined at one only", "median", "largest"]
    there = [f"{effect.before} there", f"{effect.after} there"]
    rows = [
        (
            line.experiment,
            line.variable,
            line.values,
            line.undefined,
            number(line.median, 2),
            number(line.largest, 2),
            line.where,
            number(line.before, 5),
            number(line.after, 5),
        )
        for line in effect.variables
    ]
    lines = [
        "Absolute differences, over all values that are defined at both precisions.",
        "",
        *table(["experiment", "variable", *right, "where", *there], rows, right=[*right, *there]),
    ]
    if any(line.variable == "answer_dla" and (line.largest or 0) > 0 for line in effect.variables):
        lines += ["", _SWAPS]
    return lines
