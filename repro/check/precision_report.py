"""The effect of precision as `precision.md` for people and `precision.json` for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from repro.check.precision import Effect, Quantity
from repro.check.report import Heading
from repro.store.excluded import left_out_line, partial

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
    table = folder / "precision.md"
    table.write_text(markdown(effects, missing, heading), encoding="utf-8")
    document = {**asdict(heading), "missing": list(missing), "effects": [_plain(effect) for effect in effects]}
    text = json.dumps(_finite(document), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "precision.json").write_text(text + "\n", encoding="utf-8")
    return table


def _plain(effect: Effect) -> dict[str, Any]:
    document = asdict(effect)
    for kind in ("headlines", "published"):
        for entry, line in zip(document[kind], getattr(effect, kind), strict=True):
            entry["difference"] = line.difference
    return document


def markdown(effects: Sequence[Effect], missing: Sequence[str], heading: Heading) -> str:
    """Return each precision: published quantities, headlines of each experiment, how far every variable moves."""
    size = f"{heading.n_prompts} prompts x {heading.n_positions} positions"
    lines = [
        f"# Precision on {heading.subject}",
        "",
        f"Subject: **{heading.subject}**, {size}. Every number here is from this subject. Roles and examples are the "
        "same at every precision, so that only the arithmetic differs.",
    ]
    if heading.left_out:
        lines += ["", f"**{partial(heading.left_out, heading.n_prompts)}**: {left_out_line(heading.left_out)}."]
    if missing:
        lines += [
            "",
            f"Not shown, as the store does not hold both sides: {', '.join(missing)}. To compute them: "
            f"`python -m repro all --subject {heading.subject} --only roles,paper,variants,precision`.",
        ]
    for effect in effects:
        lines += ["", f"## {effect.after} beside {effect.before}", ""]
        lines.append(_MEANS[effect.after])
        if effect.uneven:
            names = ", ".join(effect.uneven)
            lines += ["", f"**Different prompts are left out** of {names}: not only the arithmetic differs there."]
        lines += ["", "### Published quantities", "", *_published(effect, heading)]
        lines += ["", "### What the texts argue with, under this subject's roles", "", *_headlines(effect)]
        lines += ["", "### Every stored variable", "", *_variables(effect)]
    return "\n".join(lines) + "\n"


def _published(effect: Effect, heading: Heading) -> list[str]:
    if not effect.published:
        return [f"None can be read on {heading.subject}: they belong to named heads and texts of another model."]
    own = heading.subject_is_papers
    single = [line for line in effect.published if line.group is None]
    lines = ["Where a claim is about several values, the one nearest to failing it is shown.", ""]
    if own:
        lines = [*_verdicts(effect), "", *lines]
    names = f"{effect.before} | {effect.after}"
    if own:
        lines += [
            f"| figure | quantity | published | {names} | difference | verdicts |",
            "|---|---|---:|---:|---:|---:|---|",
        ]
    else:
        lines += [f"| figure | quantity | {names} | difference |", "|---|---|---:|---:|---:|"]
    for line in single:
        published = f" {_cell(line.published)} |" if own else ""
        verdicts = f" {_change(line)} |" if own else ""
        numbers = f" {_number(line.before)} | {_number(line.after)} | {_small(line.difference)} |"
        lines.append(f"| {line.figure} | {_cell(line.quantity)} |{published}{numbers}{verdicts}")
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
    return [f"**{len(changed)} verdicts of {len(effect.published)} change**: {'; '.join(map(_cell, shown))}."]


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
        f"{name}: {len(moved)} numbers; absolute difference: median {_small(median(moved.values()))}, largest "
        f"{_small(moved[worst])} ({', '.join(worst.split('/')[1:])})"
    )
    if own:
        counts = [sum(getattr(line, side) == "match" for line in lines) for side in ("verdict_before", "verdict_after")]
        text += f"; matches: {counts[0]} → {counts[1]}"
    return text + "."


def _headlines(effect: Effect) -> list[str]:
    lines = [f"| experiment | quantity | {effect.before} | {effect.after} | difference |", "|---|---|---:|---:|---:|"]
    return lines + [
        f"| {line.experiment} | {_cell(line.quantity)} | {_number(line.before)} | {_number(line.after)} | "
        f"{_small(line.difference)} |"
        for line in effect.headlines
    ]


def _variables(effect: Effect) -> list[str]:
    lines = [
        "Absolute differences, over all values that are defined at both precisions.",
        "",
        f"| experiment | variable | values | defined at one only | median | largest | where | {effect.before} there | "
        f"{effect.after} there |",
        "|---|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    lines += [
        f"| {line.experiment} | {line.variable} | {line.values} | {line.undefined} | {_small(line.median)} | "
        f"{_small(line.largest)} | {_cell(line.where)} | {_number(line.before)} | {_number(line.after)} |"
        for line in effect.variables
    ]
    if any(line.variable == "answer_dla" and (line.largest or 0) > 0 for line in effect.variables):
        lines += ["", _SWAPS]
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _cell(value: object) -> str:
    text = "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _finite(value: Any) -> Any:
    """Return the same with None for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
