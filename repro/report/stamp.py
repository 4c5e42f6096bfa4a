"""What a page was made from, as one digest that stands in it: a page of the same data and code is not made again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import paper_figures
from repro.figures.draw import Source
from repro.report.material import Material

MARK = '<meta name="stamp" content="'
HEAD = 2000
"""Characters of a page among which its stamp is."""


def stamp_of(material: Material, sources: Mapping[str, Source]) -> str:
    """Return the digest of all that a page shows, and of the code that makes it.

    sources: where the results lie, by experiment. Agreement: tests/report/test_page.py.
    """
    parts = [material.loaded.path.read_text(encoding="utf-8"), material.subject, material.about, material.fallback]
    parts += [str(material.n_prompts), str(material.n_positions), json.dumps(material.answer, sort_keys=True)]
    for name, at in sorted(sources.items()):
        parts += [name, at.stamp, json.dumps(dict(at.roles), sort_keys=True)]
        parts += [at.path.name, (at.path / "COMMIT").read_text()]
    if material.comparison is not None:
        parts.append(json.dumps([asdict(row) for row in material.comparison.rows], sort_keys=True))
        parts.append(json.dumps([asdict(row) for row in material.comparison.claims], sort_keys=True))
    parts += [version(name) for name in ("altair", "vl-convert-python", "jinja2")]
    parts += [file.read_text(encoding="utf-8") for file in _code()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _code() -> list[Path]:
    here = Path(__file__).parent
    places = (here, here / "static", here.parent / "scan", here.parent / "check", Path(paper_figures.__file__).parent)
    return sorted(file for place in places for file in place.iterdir() if file.suffix in (".py", ".js", ".css", ".j2"))


def stamp_in(page: Path) -> str:
    """Return the stamp of a page that was written before; empty where there is none."""
    try:
        with page.open(encoding="utf-8") as text:
            head = text.read(HEAD)
    except (OSError, UnicodeDecodeError):
        return ""
    return head.partition(MARK)[2].partition('"')[0]
