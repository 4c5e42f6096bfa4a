"""The published numbers as data: complete, consistent with each other, refused when malformed."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from repro.check.published import FOLDER, Claim, Number, Published, read_published
from repro.check.published_file import Tolerance
from repro.errors import ReproError
from repro.labels import nodes, sites

PUBLISHED = read_published()
BY_ID = {number.id: number for number in PUBLISHED.numbers}


def test_every_number_has_its_own_id_and_a_variant_that_drew_it() -> None:
    entries: list[Number | Claim] = [*PUBLISHED.numbers, *PUBLISHED.claims]
    assert max(Counter(entry.id for entry in entries).values()) == 1
    assert all(PUBLISHED.drawn_by(entry).experiment for entry in entries)
    assert all("{" not in entry.quantity for entry in entries)


def test_the_reference_table_is_every_node_at_every_site() -> None:
    table = [number for number in PUBLISHED.numbers if number.group == "reference"]
    places = Counter((number.select["node"], number.select["site"]) for number in table)
    assert set(places) == {(node, site) for node in nodes(4, 8) for site in sites(4)}
    assert set(places.values()) == {3}
    assert all(number.tolerance == Tolerance(kind="reference", within=2e-4, relative=1e-4) for number in table)


def test_the_reference_table_is_consistent_with_itself() -> None:
    # Between the two sites around an MLP nothing but its output is written, so the ratio on it rises by exactly 1.
    for layer in range(4):
        for quantile in ("lower", "median", "upper"):
            before, after = (
                BY_ID[f"reference/MLP{layer}/resid_{kind}{layer}/{quantile}"].value for kind in ("mid", "post")
            )
            assert after - before == pytest.approx(1, abs=2e-6)
    for number in (n for n in PUBLISHED.numbers if n.group and n.select["quantile"] == "median"):
        stem = number.id.removesuffix("median")
        assert BY_ID[stem + "lower"].value < number.value < BY_ID[stem + "upper"].value


def test_figures_of_the_table_are_told_apart() -> None:
    shown = Counter(str(number.figure) for number in PUBLISHED.numbers if number.group)
    assert shown == {"LW 1 bottom": 9 * 3, "LW 1 top": 9 * 7, "appendix": 972 - 27 - 63}


@pytest.mark.parametrize(
    ("name", "value", "tolerance", "variant"),
    [
        ("erasers_onto_writer", -0.903, "±0.0005 (last digit)", "text"),
        ("late_nodes_onto_writer/L2H5", -0.263, "±0.006", "text"),
        ("patched_sites/resid_post2", 0.645, "±0.01", "code"),
        ("patched_heads/L2H4", -0.003, "±0.005", "code"),
        ("writer_dla_clean/adventist", 0.247, "±0.00496 (2 % of the axis)", "text"),
        ("other_dla_resampled/class/L3H5", 0.72, "±0.046 (2 % of the axis)", "code"),
        ("logit_difference/class", 3.02, "±0.005 (last digit)", "text"),
        ("correlation_v_composition", -0.716, "±0.0005 (last digit)", "text"),
        ("slope_v_composition", -0.723, "±0.013", "code"),
        ("reference/L0H2/resid_mid0/median", 0.960413963, "±(0.0002 + 0.0001 |x|)", "text"),
    ],
)
def test_values_tolerances_and_variants(name: str, value: float, tolerance: str, variant: str) -> None:
    number = BY_ID[name]
    assert (number.value, str(number.tolerance), number.variant) == (value, tolerance, variant)


def test_correlations_can_agree_within_the_interval_at_best() -> None:
    best = {number.id for number in PUBLISHED.numbers if number.best == "within interval"}
    assert best == {"correlation_output", "correlation_v_composition"}


def test_claims_state_a_numeric_rule() -> None:
    assert {claim.id: claim.rule for claim in PUBLISHED.claims} == {
        "absent_before": "|value| < 0.1",
        "present_after_writing": "0.9 < value < 1.1",
        "erased_from_layer_2": "|value| < 0.2",
        "six_heads_negative": "value < 0",
        "patched_sites_high": "0.4 < value",
        "patched_above_clean": "0.3 < difference",
        "top_two_named": "0.5 < value",
        "writer_unmoved": "|change| / |clean| < 0.1",
        "writer_unmoved_code": "|change| / |clean| < 0.1",
        "others_moved": "0.5 < |change| / |clean|",
        "others_moved_code": "0.5 < |change| / |clean|",
    }


def changed(folder: Path, old: str, new: str) -> Path:
    shutil.copytree(FOLDER, folder)
    text = (folder / "published.toml").read_text(encoding="utf-8")
    assert old in text
    (folder / "published.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('obtained = "trace"', 'obtained = "guessed"', "reference.0.obtained"),
        ("each = [{ value = -0.903 }]", "each = []", "number.0.each"),
        ("above = 0.9\nbelow = 1.1\n", "", "a claim needs a bound"),
        ('against = { select = { run = "clean" } }\n', "", "against goes with difference"),
        (", axis = 0.60 }", " }", "an axis tolerance needs each entry's axis length"),
        ('variant = "code"', 'variant = "mine"', "number.3.variant"),
        ("[drawn.dla_scatter.code]", "[drawn.dla_scatter.other]", "no [drawn.dla_scatter.code]"),
        ("[paper]", "[paper", "cannot be read"),
        ("same_prompts = true", "same_prompt = true", "Extra inputs"),
    ],
)
def test_a_malformed_record_is_refused_by_place(tmp_path: Path, old: str, new: str, reason: str) -> None:
    with pytest.raises(ReproError, match=r"published\.toml") as refused:
        read_published(changed(tmp_path / "published", old, new))
    assert reason in str(refused.value)


def test_a_missing_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReproError, match=r"published\.toml: cannot be read"):
        read_published(tmp_path)


def test_reading_twice_is_reading_once() -> None:
    assert isinstance(read_published(), Published)
    assert read_published() is PUBLISHED
