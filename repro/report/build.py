"""From what the store holds of a subject to its page: read, draw, fill the template, write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from repro import __version__
from repro.check.report import summary_line
from repro.errors import ReproError
from repro.figures.draw import Source
from repro.files import write_durably
from repro.progress import progress
from repro.report.figures import Drawing, Shown, explained, same_view, shown
from repro.report.material import Material
from repro.report.page import render
from repro.report.provenance import Provenance, provenance
from repro.report.scan_part import ScanPart, scan_part
from repro.report.shortfalls import Shortfall, shortfalls
from repro.report.stamp import stamp_in, stamp_of
from repro.report.toml import Declarations
from repro.store.result import read_summary

FILE = "report.html"


def write_report(material: Material, directory: Path, say: Callable[[str], None]) -> Path:
    """Write `report.html` into a directory and return its path; a page of the same data and code is left alone.

    say: told of progress, where there is no terminal. Raises OSError where it cannot be
    written, ReproError (exit 5) for a damaged result. Agreement: tests/report/test_page.py.
    """
    spec = material.loaded.spec
    groups = same_view(material.loaded, list(spec.figure))
    found = {name: material.source(name) for name in dict.fromkeys(f.experiment for f in spec.figure.values())}
    found |= {material.scan: material.source(material.scan)} if material.scan else {}
    sources = {name: at for name, at in found.items() if isinstance(at, Source)}
    stamp = stamp_of(material, sources)
    if not material.fresh and stamp_in(directory / FILE) == stamp:
        return directory / FILE
    there = [names for names in groups if spec.figure[names[0]].experiment in sources]
    results = {name: read_summary(at.path) for name, at in sources.items()}
    declared = Declarations(material.loaded.path.read_text(encoding="utf-8"), spec.experiment)
    figures = []
    with progress(len(there), "charts of the page", say) as advance:
        for names in there:
            try:
                experiment = spec.figure[names[0]].experiment
                figures.append(shown(material.loaded, names, results[experiment], sources[experiment], declared))
            except ValueError as error:
                raise ReproError(f"[figure.{names[0]}] options: {error}") from None
            advance()
    scan = None
    if material.raw is not None:
        scan = scan_part(material.raw(), material.n_positions, material.answer)
    absent = {name: at for name, at in found.items() if isinstance(at, str)}
    missing = {name: absent[f.experiment] for name, f in spec.figure.items() if f.experiment in absent}
    origins = provenance(results, sources)
    short = shortfalls(material.comparison, scan, results, missing)
    text = render({"stamp": stamp, **_context(material, figures, scan, origins, short)}, _data(figures, scan))
    directory.mkdir(parents=True, exist_ok=True)
    write_durably(directory / FILE, text.encode())
    return directory / FILE


def _drawings(figures: Sequence[Shown]) -> list[Drawing]:
    return [drawing for one in figures for drawing in (one.published, one.ours) if drawing is not None]


def _context(
    material: Material,
    figures: Sequence[Shown],
    scan: ScanPart | None,
    origins: Provenance,
    short: Sequence[Shortfall],
) -> dict[str, Any]:
    """Return what the template names."""
    comparison = material.comparison
    return {
        "version": __version__,
        "subject": material.subject,
        "about": material.about,
        "papers": material.loaded.spec.run.paper_subject,
        "is_papers": material.is_papers,
        "fallback": material.fallback,
        "size": f"{material.n_prompts:,} prompts of {material.n_positions:,} tokens",
        "figures": figures,
        "worth": explained(figures),
        # Vega's SVG escapes every text in it; what a token may hold is tested (tests/report/test_page.py).
        "stills": {d.id: Markup(d.still) for d in _drawings(figures)},  # noqa: S704
        "scan": scan,
        "picture": Markup(scan.picture) if scan else "",  # noqa: S704 - made of numbers and escaped labels
        "origins": origins,
        "shortfalls": short,
        "claims": comparison.claims if comparison else (),
        "compared": summary_line(comparison.rows) if comparison and material.is_papers else "",
        # Published numbers that stand alone, judged; those of large tables are counted in check.md.
        "rows": [row for row in comparison.rows if row.group is None] if comparison and material.is_papers else [],
    }


def _data(figures: Sequence[Shown], scan: ScanPart | None) -> dict[str, Any]:
    """Return what the scripts read."""
    drawings = _drawings(figures)
    texts = list(dict.fromkeys(d.csv for d in drawings))  # each once: several figures view the same summary
    charts = {
        d.id: {
            "spec": d.spec,
            "sample": d.sample,
            "quantiles": d.quantiles,
            "described": d.described,
            "csv": texts.index(d.csv),
        }
        for d in drawings
    }
    return {"charts": {"csv": texts, "by_id": charts}, "map": scan.map if scan else None}
