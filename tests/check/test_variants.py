"""Variants beside what they vary: they differ where they must and agree where they must."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from repro.check.variants import Line, variant_lines, variant_pairs, write_variants
from repro.measures import MEASURES
from repro.spec.read import read_spec
from tests.runs import cli, subject_name

SPEC = Path(__file__).parents[2] / "experiments.toml"


@pytest.fixture(scope="module")
def lines(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """All variants of the paper's spec, on a toy with named roles left to the rule."""
    root = tmp_path_factory.mktemp("variants")
    ran = cli(
        "run", "roles", "paper", "variants", "precision", "--spec", SPEC, "--subject", folders["native"], "--out", root
    )
    assert ran.code == 0, ran.out
    checked = cli("check", "--spec", SPEC, "--subject", folders["native"], "--out", root)
    assert "variants.md" in checked.out
    out = root / "paper_figures" / "out" / subject_name(folders["native"])
    assert "Every number here is from this subject" in (out / "variants.md").read_text()
    return json.loads((out / "variants.json").read_text())


def _of(lines: list[dict[str, object]], variant: str) -> list[dict[str, object]]:
    found = [line for line in lines if line["variant"] == variant]
    assert found
    return found


def _differ(line: dict[str, object]) -> bool:
    return line["default"] != pytest.approx(line["value"], rel=1e-6, abs=1e-9)


def test_every_variant_of_the_spec_is_in_the_table(lines: list[dict[str, object]]) -> None:
    declared = read_spec(SPEC, MEASURES).spec.experiment
    expected = {name for name, _ in variant_pairs(declared) if declared[name].group == "variants"}
    assert {line["variant"] for line in lines} == expected
    assert all(line["changes"] for line in lines)


def test_wider_quantiles_move_the_bars_and_not_the_median(lines: list[dict[str, object]]) -> None:
    for line in _of(lines, "nodes_onto_writer_code"):
        assert _differ(line) == ("median" not in str(line["quantity"]))


@pytest.mark.parametrize(
    "variant",
    ["nodes_onto_writer_no_first", "v_patch_recomputed", "resampled_dla_code", "dla_scatter_code"],
)
def test_a_variant_that_changes_the_computation_changes_numbers(lines: list[dict[str, object]], variant: str) -> None:
    assert any(_differ(line) for line in _of(lines, variant))


def test_precision_has_a_page_of_its_own(lines: list[dict[str, object]]) -> None:
    assert not any("bf16" in str(line["variant"]) for line in lines)


def test_leaving_out_the_pattern_moves_v_composition_and_not_the_output(lines: list[dict[str, object]]) -> None:
    for line in _of(lines, "dla_scatter_same_position"):
        quantity = str(line["quantity"])
        if quantity.startswith("n_points"):
            assert not _differ(line)
        else:
            assert _differ(line) == quantity.endswith("v_composition"), quantity


def test_another_target_moves_both(lines: list[dict[str, object]]) -> None:
    for line in _of(lines, "dla_scatter_next_token"):
        assert _differ(line), line["quantity"]


def test_a_variant_without_its_base_stands_alone() -> None:
    assert variant_lines(read_spec(SPEC, MEASURES).spec.experiment, {}) == []


def test_a_variant_of_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(SPEC.read_text().replace('of = "v_patch"', 'of = "v_pach"'))
    refused = cli("plan", "--spec", path)
    assert refused.code == 2
    assert "[variant.v_patch_recomputed] of: no experiment" in refused.err
    assert "v_patch" in refused.err.split("Did you mean")[1]


def test_what_is_not_a_number_and_what_would_break_a_table_are_written_safely(tmp_path: Path) -> None:
    lines = [Line("odd", "of = a|b", "r against c|d", None, float("nan"))]
    table = write_variants(lines, tmp_path, "toy")
    row = table.read_text(encoding="utf-8").splitlines()[-1]
    assert row == "| odd | of = a\\|b | r against c\\|d | - | nan |"
    text = (tmp_path / "variants.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail)[0]["value"] is None
