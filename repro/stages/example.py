"""The picture at the top of the README: a published figure, drawn from its numbers, beside the same of another model.

python -m repro.stages.example --subject smollm2
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import paper_figures
from repro.figures.draw import Source, prepared
from repro.report.published import published_for
from repro.request import Request, Workspace
from repro.store.result import read_summary

FIGURE = "post_1_bottom"
SCALE = 2


def example(workspace: Workspace, figure: str, path: Path) -> None:
    """Write the published chart of a figure beside the subject's own, as PNG.

    Raises ReproError (exit 5) where the subject's result is damaged; ValueError where one of the two is not there.
    """
    import vl_convert

    loaded = workspace.loaded
    plan = workspace.plan(workspace.choose(ask=False))
    declared = loaded.spec.figure[figure]
    item, published = plan.item(declared.experiment), published_for(loaded, declared)
    if published is None or not item.fresh:
        raise ValueError(f"{figure}: no published numbers, or no result of {declared.experiment} in the store")
    module, papers = paper_figures.load(declared.chart), loaded.spec.run.paper_subject
    own = Source(item.path, roles=plan.roles.attrs())
    drawn = [
        module.chart(prepared(declared, dataset, at, papers))
        for dataset, at in ((published, Source(Path())), (read_summary(item.path), own))
    ]
    drawn[0].title.subtitle = f"{papers}, drawn from the published numbers"
    specs = [chart.to_dict() for chart in drawn]
    # One look for both: a chart inside another may have none of its own.
    whole: dict[str, Any] = {"$schema": specs[0]["$schema"], "config": specs[0]["config"], "spacing": 60}
    whole["datasets"] = {name: rows for spec in specs for name, rows in spec.get("datasets", {}).items()}
    whole["hconcat"] = [{key: part for key, part in spec.items() if key not in whole} for spec in specs]
    path.write_bytes(vl_convert.vegalite_to_png(whole, scale=SCALE))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subject", default="mini")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--to", type=Path, default=Path("paper_figures/example.png"))
    given = parser.parse_args()
    example(Workspace(Request(Path("experiments.toml"), given.subject, out=given.out), print), FIGURE, given.to)
