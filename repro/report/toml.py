"""The lines of the spec that declare a figure and its experiment, as they stand in the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from repro.spec.lines import statements
from repro.spec.types import Common

Where = tuple[str | int, ...]


class Declarations:
    """A spec's text, by table and by key."""

    def __init__(self, text: str, experiments: Mapping[str, Common]) -> None:
        self.lines = text.replace("\r\n", "\n").split("\n")
        self.experiments = experiments
        places = sorted(dict(statements(text)).items(), key=lambda item: (item[1], len(item[0])))
        starts = [*dict.fromkeys(line for _, line in places), len(self.lines) + 1]
        ends = dict(pairwise(starts))
        self.spans: dict[Where, tuple[int, int]] = {tuple(where): (line, ends[line]) for where, line in places}

    def of(self, experiment: str, figures: Sequence[str]) -> str:
        """Return what declares an experiment (or the variant that it is, and what that one varies) and some figures."""
        tables = [self._experiment(experiment)]
        base = self.experiments[experiment].variant_of
        if base is not None:
            tables.append(self._experiment(base))
        views = [text for name in figures if (text := self._under(("figure", name)))]
        # Under a common header each figure is one line; a table of its own brings its header along.
        inline = [text for text in views if not text.startswith("[")]
        tables += [text for text in views if text.startswith("[")]
        tables += ["\n".join(["[figure]", *inline])] if inline else []
        return "\n\n".join(filter(None, tables))

    def _experiment(self, name: str) -> str:
        if ("experiment", name) in self.spans:
            return self._under(("experiment", name))
        # A variant of several experiments is `<experiment>_<name>`.
        variants = [where for where in self.spans if where[0] == "variant" and len(where) == 2]
        fits = [where for where in variants if name == where[1] or name.endswith(f"_{where[1]}")]
        return self._under(max(fits, key=lambda where: len(str(where[1])))) if fits else ""

    def _under(self, where: Where) -> str:
        """Return all statements at and below a place, comments that follow left out."""
        spans = sorted(span for place, span in self.spans.items() if place[: len(where)] == where)
        kept: list[str] = []
        for start, end in dict.fromkeys(spans):
            block = self.lines[start - 1 : end - 1]
            while block and (not block[-1].strip() or block[-1].lstrip().startswith("#")):
                block.pop()
            kept += block
        return "\n".join(kept)
