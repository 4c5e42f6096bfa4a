"""The comparison as `check.md` for people and `check.json` for machines: no dates, equal bytes for equal rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repro.check.compare import VERDICTS, Row
from repro.check.tables import table
from repro.files import write_json
from repro.labels import FLOAT32, in_precision
from repro.store.excluded import left_out_line, partial

_ORDER = ("1 top", "1 bottom", "2", "3a", "3b", "4a", "4b", "5")


@dataclass(frozen=True)
class Heading:
    """What a report says about the run: which subject, how many prompts, and whose they are."""

    subject: str
    subject_is_papers: bool
    n_prompts: int
    n_positions: int
    same_prompts: bool
    left_out: tuple[int, ...] = ()
    """Prompts on which the model's activations are not finite."""


def summary_line(rows: Sequence[Row]) -> str:
    """Return how often each verdict was reached, in one line."""
    counts = Counter(row.verdict for row in rows)
    return " · ".join(f"{verdict}: {counts[verdict]}" for verdict in VERDICTS) + f" (of {len(rows)})"


def write_report(rows: Sequence[Row], folder: Path, heading: Heading) -> tuple[Path, Path]:
    """Write check.md and check.json into a folder and return their paths. Agreement: tests/check/test_check.py."""
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / "check.md", folder / "check.json"
    page.write_text(markdown(rows, heading), encoding="utf-8")
    write_json(data, document(rows, heading))
    return page, data


def document(rows: Sequence[Row], heading: Heading) -> dict[str, Any]:
    """Return every row with every field, under the heading and the count of each verdict."""
    counts = Counter(row.verdict for row in rows)
    return {
        **asdict(heading),
        "verdicts": {verdict: counts[verdict] for verdict in VERDICTS},
        "rows": [asdict(row) for row in rows],
    }


def markdown(rows: Sequence[Row], heading: Heading) -> str:
    """Return a table per figure; a large table of numbers has one line per node, its rows are all in check.json."""
    lines = ["# Published numbers and ours", "", *_preamble(rows, heading)]
    figures = sorted({row.figure for row in rows}, key=_figure_order)
    for figure in figures:
        lines += ["", f"## {figure}", ""]
        shown = [row for row in rows if row.figure == figure]
        single = [row for row in shown if row.group is None]
        grouped = [row for row in shown if row.group is not None]
        if grouped:
            lines += _grouped_table(grouped, heading)
        if grouped and single:
            lines.append("")
        if single:
            lines += _table(single, heading)
    return "\n".join(lines) + "\n"


def _preamble(rows: Sequence[Row], heading: Heading) -> list[str]:
    prompts = "the published prompts" if heading.same_prompts else "not the published prompts"
    lines = [
        f"Subject: **{heading.subject}**, {heading.n_prompts} prompts x {heading.n_positions} positions ({prompts}).",
        "",
        summary_line(rows),
        "",
    ]
    if heading.left_out:
        lines += [f"**{partial(heading.left_out, heading.n_prompts)}**: {left_out_line(heading.left_out)}.", ""]
    for precision in dict.fromkeys(row.precision for row in rows if row.precision != FLOAT32):
        named = dict.fromkeys(row.experiment for row in rows if row.precision == precision)
        lines += [f"**Computed{in_precision(precision)}**: {', '.join(named)}.", ""]
    if not heading.subject_is_papers:
        lines += [
            f"**{heading.subject} is not the model of the publications: no published number can be checked on it.** "
            f"A column `value on {heading.subject}` stands beside the published one, not against it.",
            "",
        ]
    lines += [
        "LW: the LessWrong post; P: the paper; appendix: the authors' public appendix page. "
        "`match`: within the tolerance. `within interval`: the published value lies in the 95 % interval of ours over "
        "prompts (cluster bootstrap: whole prompts are resampled; percentiles). `differs`: neither. "
        "`not determinable here`: nothing here may be compared with it.",
    ]
    judged = sum(row.interval is not None and row.verdict != "match" for row in rows)
    if judged:
        lines += [
            "",
            f"{judged} numbers are judged by such an interval. Even if nothing differs, about 5 % of them fall outside "
            "by chance, and up to 17 % where the published value comes from other prompts of the same kind, since it "
            "then varies as ours does; neighbouring numbers do so together.",
        ]
    return lines


def _table(rows: Sequence[Row], heading: Heading) -> list[str]:
    ours = "ours" if heading.subject_is_papers else f"value on {heading.subject}"
    return table(
        ["quantity", "variant", "published", ours, "interval", "tolerance", "verdict", "why"],
        [
            (r.quantity, r.variant, r.published, r.ours, _interval(r), r.tolerance, r.verdict, r.why or "-")
            for r in rows
        ],
        right=("published", ours),
    )


def _grouped_table(rows: Sequence[Row], heading: Heading) -> list[str]:
    compared = "largest difference" if heading.subject_is_papers else f"({heading.subject}: not compared)"
    lines = []
    # An id is group/node/site/quantile.
    for node in dict.fromkeys(row.id.split("/")[1] for row in rows):
        own = [row for row in rows if row.id.split("/")[1] == node]
        counts = Counter(row.verdict for row in own)
        reasons = Counter(row.why for row in own if row.verdict not in ("match", "within interval"))
        why = "; ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
        largest = _largest(own) if heading.subject_is_papers else "-"
        lines.append((node, len(own), *(counts[verdict] for verdict in VERDICTS), largest, why or "-"))
    heads = [f"{rows[0].group}: node", "numbers", *VERDICTS, compared, "why"]
    return table(heads, lines, right=("numbers", *VERDICTS))


def _largest(rows: Sequence[Row]) -> str:
    distance = {
        row.id: abs(row.ours - row.published)
        for row in rows
        if row.ours is not None and isinstance(row.published, float) and math.isfinite(row.ours)
    }
    if not distance:
        return "-"
    name = max(distance, key=lambda key: distance[key])
    return f"{distance[name]:.2g} ({', '.join(name.split('/')[2:])})"


def _figure_order(figure: str) -> tuple[int, str]:
    post = figure.split(",")[0].removeprefix("LW ")
    return (_ORDER.index(post) if post in _ORDER else len(_ORDER), figure)


def _interval(row: Row) -> str:
    return "-" if row.interval is None else f"{row.interval[0]:.4g} … {row.interval[1]:.4g}"
