"""The picture at the top of the README: a published figure, drawn from its numbers, beside the same of another model.

python -m repro.stages.example --subject smollm2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paper_figures
from repro.errors import AbsentError, ReproError, did_you_mean, listing
from repro.figures.draw import Source, prepared
from repro.files import disk
from repro.options import DEFAULT_SPEC
from repro.report.published import published_for
from repro.request import Request, Workspace
from repro.store.result import read_summary

FIGURE = "post_1_bottom"
SCALE = 2


def example(workspace: Workspace, figure: str, path: Path) -> None:
    """Write the published chart of a figure beside the subject's own, as PNG.

    Raises ReproError: exit 2 for a figure without published numbers, exit 4 where nothing is stored, exit 5 where the
    subject's result is damaged. Agreement: tests/report/test_example.py.
    """
    import vl_convert

    loaded = workspace.loaded
    if figure not in loaded.spec.figure:
        raise ReproError(f"no figure {figure!r}.{did_you_mean(figure, loaded.spec.figure)}")
    subject = workspace.choose(ask=False)
    plan = workspace.plan(subject)
    declared = loaded.spec.figure[figure]
    item, published = plan.item(declared.experiment), published_for(loaded, declared)
    if published is None:
        others = [name for name, each in loaded.spec.figure.items() if published_for(loaded, each) is not None]
        raise ReproError(f"{figure}: no published numbers to draw it from; figures that have some: {listing(others)}")
    item.refuse_damage()
    if not item.fresh:
        raise AbsentError(
            f"{figure}: no result of {declared.experiment} for {subject.name} in {workspace.store} ({item.state}); "
            f"compute it with `python -m repro run {declared.experiment} --subject {workspace.request.subject}`"
        )
    papers = loaded.spec.run.paper_subject
    own = Source(item.path, roles=plan.roles.attrs())
    drawn = [
        paper_figures.chart(declared.chart, prepared(declared, dataset, at, papers))
        for dataset, at in ((published, Source(Path())), (read_summary(item.path), own))
    ]
    drawn[0].title.subtitle = f"{papers}, drawn from the published numbers"
    specs = [chart.to_dict() for chart in drawn]
    # One look for both: a chart inside another may have none of its own.
    whole: dict[str, Any] = {"$schema": specs[0]["$schema"], "config": specs[0]["config"], "spacing": 60}
    whole["datasets"] = {name: rows for spec in specs for name, rows in spec.get("datasets", {}).items()}
    whole["hconcat"] = [{key: part for key, part in spec.items() if key not in whole} for spec in specs]
    drawing = vl_convert.vegalite_to_png(whole, scale=SCALE)
    with disk(path):
        path.write_bytes(drawing)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw it from the command line; what is wrong is a sentence."""
    parser = argparse.ArgumentParser("python -m repro.stages.example", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subject", default="smollm2")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--to", type=Path, default=Path("paper_figures/example.png"))
    given = parser.parse_args(arguments)
    try:
        example(Workspace(Request(DEFAULT_SPEC, given.subject, out=given.out), print), FIGURE, given.to)
    except ReproError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
