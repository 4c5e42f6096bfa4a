"""The comparison as `check.md` for people and `check.json` for machines: no dates, equal bytes for equal rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repro.check.claims import CLAIM_VERDICTS, ClaimRow
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

    def warning(self) -> list[str]:
        """Return a paragraph on the prompts that are left out, if there are any."""
        if not self.left_out:
            return []
        return [f"**{partial(self.left_out, self.n_prompts)}**: {left_out_line(self.left_out)}.", ""]


def summary_line(rows: Sequence[Row]) -> str:
    """Return how often each verdict was reached, in one line."""
    return _counted(rows, VERDICTS)


def claims_line(claims: Sequence[ClaimRow]) -> str:
    """Return how many of the claims in words hold, in one line."""
    return f"claims in words, {_counted(claims, CLAIM_VERDICTS)}"


def _counted(rows: Sequence[Row] | Sequence[ClaimRow], verdicts: Sequence[str]) -> str:
    counts = Counter[str](row.verdict for row in rows)
    return " · ".join(f"{verdict}: {counts[verdict]}" for verdict in verdicts) + f" (of {len(rows)})"


def write_report(rows: Sequence[Row], folder: Path, heading: Heading, claims: Sequence[ClaimRow] = ()) -> Path:
    """Write check.md and check.json into a folder; return the table's path. Agreement: tests/check/test_check.py.

    rows: the published numbers; claims: asked of a subject that is not the paper's, whose rows are folded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, own = folder / "check.md", heading.subject_is_papers
    page.write_text(markdown(rows, heading) if own else markdown_of_claims(claims, rows, heading), encoding="utf-8")
    write_json(folder / "check.json", document(rows, heading, claims))
    return page


def document(rows: Sequence[Row], heading: Heading, claims: Sequence[ClaimRow] = ()) -> dict[str, Any]:
    """Return the heading, the count of each verdict, and every row with every field.

    Of a subject that is not the paper's the claims stand in place of the rows, which are counted.
    """
    own = heading.subject_is_papers
    judged, verdicts = (rows, VERDICTS) if own else (claims, CLAIM_VERDICTS)
    counts = Counter(row.verdict for row in judged)
    return {
        **asdict(heading),
        "verdicts": {verdict: counts[verdict] for verdict in verdicts},
        "rows" if own else "claims": [asdict(row) for row in judged],
        **({} if own else {"published_not_compared": len(rows)}),
    }


def markdown_of_claims(claims: Sequence[ClaimRow], rows: Sequence[Row], heading: Heading) -> str:
    """Return the claims in words as a table, everything that was published for another model in one line."""
    whose = "published for another model" if not rows else rows[0].why
    cells = [(c.claim, c.rule, c.value, _interval(c), c.verdict, c.why) for c in claims]
    lines = [
        f"# The publications' claims, asked of {heading.subject}",
        "",
        f"Subject: **{heading.subject}**, {heading.n_prompts} prompts x {heading.n_positions} positions.",
        "",
        f"{claims_line(claims).capitalize()}.",
        "",
        *heading.warning(),
        "What the two texts say in words about gelu-4l, tested on the roles that this subject has. The rule is ours. "
        "`holds`: the whole 95 % interval over prompts (cluster bootstrap) meets the rule; `does not hold`: none of it "
        "does; `undecided`: some.",
        "",
        *table(["claim", "rule", "value", "interval", "verdict", "where"], cells, right=("value",)),
        "",
        f"The {len(rows):,} published numbers and rules are not compared: {whose}.",
    ]
    return "\n".join(lines) + "\n"


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
            lines += _grouped_table(grouped)
        if grouped and single:
            lines.append("")
        if single:
            lines += _table(single)
    return "\n".join(lines) + "\n"


def _preamble(rows: Sequence[Row], heading: Heading) -> list[str]:
    prompts = "the published prompts" if heading.same_prompts else "not the published prompts"
    lines = [
        f"Subject: **{heading.subject}**, {heading.n_prompts} prompts x {heading.n_positions} positions ({prompts}).",
        "",
        summary_line(rows),
        "",
        *heading.warning(),
    ]
    for precision in dict.fromkeys(row.precision for row in rows if row.precision != FLOAT32):
        named = dict.fromkeys(row.experiment for row in rows if row.precision == precision)
        lines += [f"**Computed{in_precision(precision)}**: {', '.join(named)}.", ""]
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


def _table(rows: Sequence[Row]) -> list[str]:
    return table(
        ["quantity", "variant", "published", "ours", "interval", "tolerance", "verdict", "why"],
        [
            (r.quantity, r.variant, r.published, r.ours, _interval(r), r.tolerance, r.verdict, r.why or "-")
            for r in rows
        ],
        right=("published", "ours"),
    )


def _grouped_table(rows: Sequence[Row]) -> list[str]:
    lines = []
    # An id is group/node/site/quantile.
    for node in dict.fromkeys(row.id.split("/")[1] for row in rows):
        own = [row for row in rows if row.id.split("/")[1] == node]
        counts = Counter(row.verdict for row in own)
        reasons = Counter(row.why for row in own if row.verdict not in ("match", "within interval"))
        why = "; ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
        lines.append((node, len(own), *(counts[verdict] for verdict in VERDICTS), _largest(own), why or "-"))
    heads = [f"{rows[0].group}: node", "numbers", *VERDICTS, "largest difference", "why"]
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


def _interval(row: Row | ClaimRow) -> str:
    return "-" if row.interval is None else f"{row.interval[0]:.4g} … {row.interval[1]:.4g}"
