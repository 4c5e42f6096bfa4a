"""The picture at the top of the README: a published figure, drawn from its numbers, beside the same of another model.

python -m repro.example --subject smollm2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paper_figures
from repro.errors import ReproError, listing
from repro.figures.draw import Source, prepared
from repro.files import disk
from repro.measures import MEASURES
from repro.notebook import figure
from repro.options import DEFAULT_SPEC
from repro.report.published import published_for
from repro.spec.read import read_spec

FIGURE = "post_1_bottom"
SCALE = 2


def example(subject: str, name: str, path: Path, spec: Path = DEFAULT_SPEC, out: Path | None = None) -> None:
    """Write the published chart of a figure beside the subject's own, as PNG.

    subject, name, spec, out: as for `repro.figure`. Raises ReproError as that does, and exit 2 for a figure without
    published numbers. Agreement: tests/report/test_example.py.
    """
    import vl_convert

    own, loaded = figure(subject, name, spec=spec, out=out), read_spec(spec, MEASURES)
    declared, papers = loaded.spec.figure[name], loaded.spec.run.paper_subject
    published = published_for(loaded, declared)
    if published is None:
        others = [name for name, each in loaded.spec.figure.items() if published_for(loaded, each) is not None]
        raise ReproError(f"{name}: no published numbers to draw it from; figures that have some: {listing(others)}")
    theirs = paper_figures.chart(declared.chart, prepared(declared, published, Source(Path()), papers))
    theirs.title.subtitle = f"{papers}, drawn from the published numbers"
    specs = [chart.to_dict() for chart in (theirs, own)]
    # One look for both: a chart inside another may have none of its own.
    whole: dict[str, Any] = {"$schema": specs[0]["$schema"], "config": specs[0]["config"], "spacing": 60}
    whole["datasets"] = {name: rows for spec in specs for name, rows in spec.get("datasets", {}).items()}
    whole["hconcat"] = [{key: part for key, part in spec.items() if key not in whole} for spec in specs]
    drawing = vl_convert.vegalite_to_png(whole, scale=SCALE)
    with disk(path):
        path.write_bytes(drawing)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw it from the command line; what is wrong is a sentence."""
    parser = argparse.ArgumentParser("python -m repro.example", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subject", default="smollm2")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--to", type=Path, default=Path("paper_figures/example.png"))
    given = parser.parse_args(arguments)
    try:
        example(given.subject, FIGURE, given.to, out=given.out)
    except ReproError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
