"""The pages that a reader has, and their code blocks as sybil finds them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from sybil import Example, Sybil
from sybil.parsers.myst import CodeBlockParser

from tests.runs import ROOT

PAGES: dict[str, Path] = {
    str(path.relative_to(ROOT)): path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "store/README.md", *ROOT.glob("docs/*.md"))
}

ANY: dict[str, Callable[[Example], str | None]] = dict.fromkeys(("sh", "toml", "text", "python"), lambda example: None)
"""For `blocks`, where what a block says is read and not run."""


def blocks(evaluators: Mapping[str, Callable[[Example], str | None]]) -> dict[str, Example]:
    """Every code block of every page by page, line and language: `docs/tutorial.md:5 sh`.

    Fails where a page has a block in a language without an evaluator: nothing shown goes untested unseen.
    """
    sybil = Sybil([CodeBlockParser(language, evaluator) for language, evaluator in evaluators.items()])
    found = {}
    for name, path in PAGES.items():
        lines = path.read_text().splitlines()
        fences = {number for number, line in enumerate(lines, 1) if re.match(r"\s*```\w", line)}
        for example in sybil.parse(path).examples():
            found[f"{name}:{example.line} {lines[example.line - 1].strip(' `')}"] = example
            fences.discard(example.line)
        assert not fences, f"{name}: blocks at lines {sorted(fences)} are in none of {list(evaluators)}"
    return found
