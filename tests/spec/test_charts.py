"""Every chart draws the experiments that it declares, and a figure of any other is refused when the spec is read."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import paper_figures
from repro.errors import Exit, ReproError
from repro.measures import MEASURES
from repro.plan.plan import select
from repro.spec.messages import experiment_types, literals
from repro.spec.read import read_spec
from repro.spec.schema import schema
from tests.runs import SPECS, Run, toml, with_spec

BASE: dict[str, dict[str, Any]] = {
    "run": {"default_subjects": ["toy"], "groups": ["paper"], "paper_subject": "toy"},
    "subject.toy": {"model": "toy"},
}
SITES_ON_NODES = {"measure": "projection", "of": "sites", "onto": "nodes"}
SITES_ON_WRITER = {"measure": "projection", "of": "sites", "onto": "$writer"}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "sites_on_nodes": SITES_ON_NODES,
    "sites_on_writer": SITES_ON_WRITER,
    "by_position": {**SITES_ON_WRITER, "summarise": "by_position"},
    "nodes_on_writer": {"measure": "projection", "of": "nodes", "onto": "$writer"},
    "by_position_on_a_node": {**SITES_ON_WRITER, "onto": "MLP1", "summarise": "by_position"},
    "sites_on_a_node": {**SITES_ON_WRITER, "onto": "L0H1"},
    **{name: {"measure": name} for name in ("v_patch", "resampled_dla", "dla_scatter")},
    **{name: {"measure": name} for name in ("path_shares", "role_shares", "dla_card", "mine_examples")},
}
FITS = {
    "sites_on_nodes": {"site_heads", "site_writer", "resid_onto_nodes"},
    "sites_on_writer": set(),
    "by_position": {"by_position"},
    "nodes_on_writer": {"nodes_onto_writer"},
    "by_position_on_a_node": {"by_position"},
    "sites_on_a_node": set(),
    "v_patch": {"patched_sites", "patched_heads"},
    "resampled_dla": {"resampled_dla"},
    "dla_scatter": {"scatter"},
    "path_shares": set(),
    "role_shares": set(),
    "dla_card": {"dla_card", "net_scatter"},
    "mine_examples": set(),
}


def written(folder: Path, chart: str, experiment: dict[str, Any], **more: dict[str, Any]) -> Path:
    path = folder / "spec.toml"
    figure = {"chart": chart, "experiment": "one", "title": "One"}
    path.write_text(toml({**BASE, "experiment.one": experiment, "figure.view": figure, **more}))
    return path


def refused(path: Path) -> str:
    with pytest.raises(ReproError) as caught:
        read_spec(path, MEASURES)
    assert caught.value.code == Exit.USAGE
    (line,) = caught.value.message.splitlines()
    return line


@pytest.mark.parametrize(("experiment", "chart"), list(product(EXPERIMENTS, paper_figures.names())))
def test_a_chart_is_taken_for_what_it_draws_and_refused_for_anything_else(
    tmp_path: Path, experiment: str, chart: str
) -> None:
    path = written(tmp_path, chart, EXPERIMENTS[experiment])
    if chart in FITS[experiment]:
        assert read_spec(path, MEASURES).spec.figure["view"].chart == chart
    else:
        said = refused(path)
        assert f": [figure.view] chart: {chart} draws measure = " in said
        for other in paper_figures.names():
            fitting = said.partition("Charts that fit it: ")[2].split(", ")
            assert (other in fitting) == (other in FITS[experiment]), said


@pytest.mark.parametrize(
    ("chart", "experiment", "said"),
    [
        (
            "site_writer",
            SITES_ON_WRITER,
            'site_writer draws measure = "projection", of = "sites", onto = "nodes"; [experiment.one] has onto = '
            '"$writer". No chart fits it; of this measure there are site_heads, site_writer, resid_onto_nodes with of '
            '= "sites", onto = "nodes"; nodes_onto_writer with of = "nodes", onto = "$writer"; by_position with '
            'summarise = "by_position"',
        ),
        (
            "scatter",
            {"measure": "v_patch"},
            'scatter draws measure = "dla_scatter"; [experiment.one] has measure = "v_patch". Charts that fit it: '
            "patched_sites, patched_heads",
        ),
        (
            "scatter",
            {"measure": "path_shares"},
            'scatter draws measure = "dla_scatter"; [experiment.one] has measure = "path_shares". No chart draws '
            'measure = "path_shares"',
        ),
    ],
)
def test_the_refusal_names_line_chart_experiment_and_what_fits(
    tmp_path: Path, chart: str, experiment: dict[str, Any], said: str
) -> None:
    path = written(tmp_path, chart, experiment)
    line = path.read_text().splitlines().index(f'chart = "{chart}"') + 1
    assert refused(path) == f"{path}:{line}: [figure.view] chart: {said}"


def test_what_is_wrong_with_the_experiment_is_not_told_as_a_misfit(tmp_path: Path) -> None:
    said = refused(written(tmp_path, "site_writer", {**SITES_ON_NODES, "onto": "everything"}))
    assert "[experiment.one] onto: given" in said
    assert "chart" not in said


def test_a_variants_figure_is_held_to_what_the_variant_sets(tmp_path: Path) -> None:
    varied = {"variant.late": {"of": "one", "onto": "$writer"}}
    figure = {"chart": "site_writer", "experiment": "late", "title": "Late"}
    path = written(tmp_path, "site_writer", SITES_ON_NODES, **varied, **{"figure.late": figure})
    assert 'has onto = "$writer"' in refused(path)


def test_a_figure_may_have_its_experiments_name_and_needs_no_labels(tmp_path: Path) -> None:
    own = {"chart": "patched_heads", "experiment": "one", "title": "Own"}
    loaded = read_spec(written(tmp_path, "patched_sites", {"measure": "v_patch"}, **{"figure.one": own}), MEASURES)
    assert loaded.spec.figure["one"].labels.post is None
    assert select(loaded, ["one"]) == (["one"], ["view", "one"]), "the experiment with all of its figures"
    assert select(loaded, ["view"]) == (["one"], ["view"])


def test_a_figure_without_labels_and_with_its_experiments_name_is_drawn(
    finished: Callable[[str], Run], tmp_path: Path
) -> None:
    entry = 'v_patch = { title = "Both", chart = "patched_heads", experiment = "v_patch" }\n'
    spec = with_spec(tmp_path / "spec", lambda text: text.replace("[figure]\n", f"[figure]\n{entry}"))
    run = finished("native").copy(tmp_path / "out")
    answer = run.cli("figures", "--only", "v_patch", spec=spec)
    assert answer.code == 0, answer.text
    assert (run.figures / "v_patch.png").is_file()


def test_every_chart_is_declared_with_fields_that_a_measure_has() -> None:
    files = {path.stem for path in (SPECS.parents[1] / "paper_figures").glob("*.py")}
    assert set(paper_figures.names()) <= files
    for chart in paper_figures.names():
        needed = paper_figures.draws(chart)
        fields = experiment_types(schema(MEASURES))[needed["measure"]]["properties"]
        for key, value in needed.items():
            assert value in literals(fields[key].get("anyOf", [fields[key]])), (chart, key)
