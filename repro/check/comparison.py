"""Everything that `check` compares: our numbers with the published ones, and variants with what they vary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import xarray as xr

from repro.check import compare as published
from repro.check.claims import ClaimRow, ask_claims
from repro.check.precision import Effect, effects, unpaired
from repro.check.precision_report import write_effects
from repro.check.report import Heading, claims_line, summary_line, write_report
from repro.check.variants import Line, variant_lines, write_variants
from repro.spec.types import Common


@dataclass(frozen=True)
class Collected:
    """What there is to compare."""

    experiments: Mapping[str, Common]
    """The declared ones."""
    results: Mapping[str, xr.Dataset]
    """Summaries by experiment."""
    raw: Callable[[str], xr.Dataset]
    """Raw values of an experiment, without the prompts that its summary leaves out."""
    heading: Heading


@dataclass(frozen=True)
class Comparison:
    """What came of it."""

    heading: Heading
    rows: list[published.Row]
    """A verdict for every published number and claim."""
    variants: list[Line]
    effects: list[Effect]
    missing: list[str]
    """Declared variants of precision that cannot be shown."""
    claims: list[ClaimRow] = field(default_factory=list)
    """The claims in words, asked of a subject that is not the paper's."""


def compare(found: Collected) -> Comparison:
    """Judge every published number and set every variant beside what it varies. Agreement: tests/check."""
    own = found.heading.subject_is_papers

    def judge(places: Mapping[str, str]) -> list[published.Row]:
        """Judge with the results of some experiments in the place of others'; large tables then without intervals."""
        stored = {name: places.get(name, name) for name in found.results}
        return published.check(
            {name: found.results[other] for name, other in stored.items()},
            subject_is_papers=own,
            same_prompts=found.heading.same_prompts,
            raw=lambda name: found.raw(stored[name]),
            tables=not places,
        )

    rows = judge({})
    moved = effects(found.experiments, found.results, rows, judge, own)
    lines = variant_lines(found.experiments, found.results)
    claims = [] if own else ask_claims(found.results, found.raw)
    return Comparison(found.heading, rows, lines, moved, unpaired(found.experiments, moved), claims)


def write(comparison: Comparison, directory: Path) -> list[str]:
    """Write check, variants and precision, each as Markdown and JSON; return what is to be said of them.

    Raises OSError where the directory cannot be written.
    """
    table = write_report(comparison.rows, directory, comparison.heading, comparison.claims)
    own = comparison.heading.subject_is_papers
    said = [f"check: {summary_line(comparison.rows) if own else claims_line(comparison.claims)}; {table}"]
    # What another selection of experiments has left beside this check is not about these results.
    for name in ("variants", "precision"):
        for kind in ("md", "json"):
            (directory / f"{name}.{kind}").unlink(missing_ok=True)
    if comparison.variants:
        said.append(f"variants: {write_variants(comparison.variants, directory, comparison.heading.subject)}")
    if comparison.effects:
        written = write_effects(comparison.effects, comparison.missing, directory, comparison.heading)
        said.append(f"precision: {written}")
    return said
