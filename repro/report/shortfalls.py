"""What does not hold, in plain sentences: differences, lost prompts, refuted claims, what was never computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import xarray as xr

from repro.check.comparison import Comparison
from repro.errors import listing
from repro.report.page import number
from repro.report.scan_part import ScanPart
from repro.store.excluded import NOTE, partial


@dataclass(frozen=True)
class Shortfall:
    """One thing a reader should know before relying on the page."""

    what: str
    detail: str


def shortfalls(
    comparison: Comparison | None, scan: ScanPart | None, results: Mapping[str, xr.Dataset], missing: Mapping[str, str]
) -> list[Shortfall]:
    """Return what does not hold, the gravest first.

    comparison: with the published numbers; scan: None where none was computed; results: summaries by experiment;
    missing: figures without a result, and why. Agreement: tests/report/test_parts.py.
    """
    return [
        *_differences(comparison),
        *_prompts(results),
        *_of_scan(scan),
        *_roles(results),
        *_fewer(results),
        *_absent(missing),
    ]


def _differences(comparison: Comparison | None) -> list[Shortfall]:
    if comparison is None:
        return []
    differ = [row for row in comparison.rows if row.verdict == "differs"]
    found = [
        Shortfall(f"{row.quantity} differs", f"published {row.published}, ours {row.ours}: {row.why}")
        for row in differ
        if row.group is None
    ]
    many = [row for row in differ if row.group is not None]
    if many:
        found.append(Shortfall(f"{len(many)} numbers of the published table differ", "check.md counts them by node"))
    failed = [claim for claim in comparison.claims if claim.verdict == "does not hold"]
    return found + [
        Shortfall(f"Not so here: {claim.claim}", f"{number(claim.value, 3)} where {claim.rule} is asked; {claim.why}")
        for claim in failed
    ]


def _prompts(results: Mapping[str, xr.Dataset]) -> list[Shortfall]:
    short: dict[str, list[str]] = {}
    for name, found in results.items():
        if found.attrs.get(NOTE) is not None and len(found.attrs[NOTE]):
            short.setdefault(partial(found.attrs[NOTE], int(found.attrs["n_prompts"])), []).append(name)
    why = "the model's activations are not finite on the others"
    return [Shortfall(note, f"{why}: {', '.join(names)}") for note, names in short.items()]


def _fewer(results: Mapping[str, xr.Dataset]) -> list[Shortfall]:
    """Return which results rest on fewer prompts than others do."""
    counts = {name: int(found.attrs["n_prompts"]) for name, found in results.items() if "n_prompts" in found.attrs}
    most = max(counts.values(), default=0)
    fewer: dict[int, list[str]] = {}
    for name, count in counts.items():
        if count < most:
            fewer.setdefault(count, []).append(name)
    why = "fewer were declared, or the raw values of all would take more than 1 GiB"
    return [Shortfall(f"The first {n} of {most} prompts", f"{', '.join(names)}: {why}") for n, names in fewer.items()]


def _of_scan(scan: ScanPart | None) -> list[Shortfall]:
    if scan is None:
        return [Shortfall("No scan", "which components take back what others wrote was not computed")]
    found = []
    if not scan.rest.enough_prompts:
        found.append(Shortfall("Too few prompts", scan.verdict))
    elif not scan.rest.erased:
        found.append(Shortfall("No erasure found", "what figures show are the strongest candidates, not a finding"))
    if not scan.confirmed:
        found.append(Shortfall("Not confirmed", "no claim was tried by real forwards with the writer taken out"))
    if count := [writer.words for writer in scan.rest.writers].count("taken back, not cleared"):
        said = "its presence falls by less than half of what later components take back; not called erased"
        found.append(Shortfall(f"{count} writer{'s' if count > 1 else ''} taken back, not cleared", said))
    return found


def _roles(results: Mapping[str, xr.Dataset]) -> list[Shortfall]:
    doubtful = [name for name, found in results.items() if not found.attrs.get("found", True) and name != "scan"]
    if not doubtful:
        return []
    attrs = results[doubtful[0]].attrs
    said = f"{attrs.get('writer', 'the writer')} and its erasers are the strongest candidates, no more"
    return [Shortfall("The figures' roles are not confirmed", said)]


def _absent(missing: Mapping[str, str]) -> list[Shortfall]:
    reasons: dict[str, list[str]] = {}
    for name, why in missing.items():
        reasons.setdefault(why, []).append(name)
    return [Shortfall(f"Not drawn: {listing(names)}", why) for why, names in reasons.items()]
