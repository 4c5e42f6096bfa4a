"""Verdicts on synthetic results that agree and that disagree, number by number."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from repro.check.compare import Row, check, exit_code
from repro.check.published import Claim, Number, Published, read_published
from repro.check.report import Heading, document, markdown, summary_line, write_report
from repro.errors import Exit
from tests.published_results import agreeing, far_off, put, raw_of, where

PUBLISHED = read_published()
NUMBERS = {number.id: number for number in PUBLISHED.numbers}
CLAIMS = {claim.id: claim for claim in PUBLISHED.claims}
AGREEING = agreeing()
ENTRIES: list[Number | Claim] = [*PUBLISHED.numbers, *PUBLISHED.claims]
ELEMENTS = [(name, i) for name, claim in CLAIMS.items() for i in range(len(claim.elements))]


def only(*entries: Number | Claim) -> Published:
    """The published record reduced to a few entries, so that a thousand cases stay quick."""
    return dataclasses.replace(
        PUBLISHED,
        numbers=tuple(entry for entry in entries if isinstance(entry, Number)),
        claims=tuple(entry for entry in entries if isinstance(entry, Claim)),
    )


def judged(
    results: dict[str, xr.Dataset], *entries: Number | Claim, papers: bool = True, same: bool = True, raw: bool = True
) -> list[Row]:
    def raw_values(name: str) -> xr.Dataset:
        return raw_of(results[name])

    return check(
        results,
        subject_is_papers=papers,
        same_prompts=same,
        raw=raw_values if raw else None,
        published=only(*entries) if entries else None,
        resamples=200,
    )


def copies() -> dict[str, xr.Dataset]:
    return {name: result.copy(deep=True) for name, result in AGREEING.items()}


def with_attrs(**attrs: Any) -> dict[str, xr.Dataset]:
    return {name: result.assign_attrs(attrs) for name, result in AGREEING.items()}


@pytest.mark.parametrize("name", NUMBERS)
def test_an_agreeing_number_matches(name: str) -> None:
    (row,) = judged(AGREEING, NUMBERS[name])
    assert row.verdict == NUMBERS[name].best
    assert row.ours == pytest.approx(NUMBERS[name].value, abs=1e-9)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_disagreeing_number_differs(name: str) -> None:
    touched = PUBLISHED.drawn_by(NUMBERS[name]).experiment
    results = {touched: AGREEING[touched].copy(deep=True)}
    put(results, PUBLISHED, NUMBERS[name], far_off(NUMBERS[name]))
    (row,) = judged(results, NUMBERS[name])
    assert row.verdict == "differs"
    assert exit_code([row]) == Exit.DIFFERS


@pytest.mark.parametrize("name", CLAIMS)
def test_an_agreeing_claim_matches(name: str) -> None:
    (row,) = judged(AGREEING, CLAIMS[name])
    assert row.verdict == "match"
    assert "the rule holds" in row.why


@pytest.mark.parametrize(("name", "i"), ELEMENTS)
def test_a_claim_fails_on_any_one_element_and_names_it(name: str, i: int) -> None:
    claim = CLAIMS[name]
    results = copies()
    result = results[PUBLISHED.drawn_by(claim).experiment]
    place = where(PUBLISHED, result, _as_number(claim, i))
    # Past every bound of the rule: other heads that do not move keep their clean value.
    clean = (
        float(result["clean"].loc[{k: place[k] for k in ("example", "head")}])
        if "head" in place and "example" in place
        else 0.0
    )
    bad = {"below": 5.0, "above": clean if claim.statistic == "relative_change" else -5.0}
    result[claim.variable].loc[place] = (
        bad["below" if claim.below is not None else "above"] if claim.variable != "top2_named" else False
    )
    (row,) = judged(results, claim)
    assert row.verdict == "differs"
    assert list(claim.elements[i].values())[-1] in row.why


def _as_number(claim: Claim, i: int) -> Number:
    number = next(number for number in PUBLISHED.numbers if number.experiment == claim.experiment)
    return number.model_copy(update={"select": claim.elements[i]})


def test_the_whole_record_agrees_at_once() -> None:
    rows = judged(AGREEING)
    assert Counter(row.verdict for row in rows) == {"match": len(rows) - 2, "within interval": 2}
    assert exit_code(rows) == Exit.OK
    assert summary_line(rows).startswith(f"match: {len(rows) - 2} · within interval: 2 · differs: 0 ·")


@pytest.mark.parametrize("name", ["erasers_onto_writer", "patched_heads/L2H5", "reference/L0H2/resid_mid2/upper"])
def test_one_difference_changes_one_row(name: str) -> None:
    results = copies()
    put(results, PUBLISHED, NUMBERS[name], far_off(NUMBERS[name]))
    before, after = judged(AGREEING, *NUMBERS.values()), judged(results, *NUMBERS.values())
    assert [new.id for old, new in zip(before, after, strict=True) if old != new] == [name]


def test_every_number_is_undecided_on_another_subject() -> None:
    rows = judged(with_attrs(subject="mini"), papers=False)
    assert {row.verdict for row in rows} == {"not determinable here"}
    assert {row.why for row in rows} == {"published for gelu-4l, not for mini"}
    assert {row.subject for row in rows} == {"mini"}
    assert all(row.ours is not None and row.interval is None for row in rows)
    assert exit_code(rows) == Exit.OK


def test_disagreement_on_another_subject_is_no_difference() -> None:
    results = {name: result.copy(deep=True) * -3 for name, result in with_attrs(subject="mini").items()}
    rows = check(results, subject_is_papers=False, same_prompts=True)
    assert {row.verdict for row in rows} == {"not determinable here"}


def test_without_results_nothing_is_determinable() -> None:
    rows = judged({})
    assert {row.verdict for row in rows} == {"not determinable here"}
    assert all("no result of" in row.why and row.ours is None for row in rows)


@pytest.mark.parametrize("missing", AGREEING)
def test_a_missing_experiment_leaves_exactly_its_numbers_undecided(missing: str) -> None:
    rows = judged({name: result for name, result in AGREEING.items() if name != missing})
    assert {row.experiment for row in rows if row.verdict == "not determinable here"} == {missing}
    assert all((row.verdict == "not determinable here") == (row.experiment == missing) for row in rows)


@pytest.mark.parametrize("experiment", AGREEING)
def test_the_other_variant_under_the_same_name_is_refused(experiment: str) -> None:
    own = {entry.variant for entry in ENTRIES if PUBLISHED.drawn_by(entry).experiment == experiment}
    results = dict(AGREEING)
    results[experiment] = AGREEING[experiment].assign_attrs(variant="recomputed")
    rows = [row for row in judged(results) if row.experiment == experiment]
    assert {row.verdict for row in rows} == {"not determinable here"}
    assert all("'recomputed'" in row.why for row in rows)
    results[experiment] = AGREEING[experiment].assign_attrs(variant=sorted(own)[0])
    assert "not determinable here" not in {row.verdict for row in judged(results) if row.experiment == experiment}


def test_code_numbers_never_meet_the_texts_result() -> None:
    results = {name: result for name, result in AGREEING.items() if not name.endswith("_code")}
    rows = [row for row in judged(results) if row.variant == "code"]
    assert {row.experiment for row in rows if row.verdict != "not determinable here"} == {"v_patch"}


@pytest.mark.parametrize(
    ("experiment", "attrs", "reason"),
    [
        ("v_patch", {"scale": "recomputed"}, "scale = 'frozen'"),
        ("resampled_dla", {"resample": "last_position"}, "resample = 'all_positions'"),
        ("dla_scatter", {"target": "next_token"}, "target = 'top2'"),
        ("dla_scatter_code", {"v_composition": "attention"}, "v_composition = 'same_position'"),
        ("dla_scatter_code", {"positions": (0, 1023)}, "positions = [32, 1022]"),
        ("v_patch", {"positions": [1, 1023]}, "positions = None"),
        ("sites_onto_nodes", {"n_positions": 512}, "n_positions = 1024"),
        ("nodes_onto_writer", {"writer": "L0H4"}, "writer there: L0H2; here: L0H4"),
        ("nodes_onto_writer", {"erasers": ["L2H2"]}, "here: L2H2"),
        ("v_patch", {"layer": np.int64(1)}, "layer there: 2; here: 1"),
        ("resampled_dla", {"examples": "mined"}, "mined here"),
        ("sites_onto_nodes", {"roles": "auto"}, "found automatically"),
        ("v_patch", {"roles": "auto"}, "found automatically"),
        ("dla_scatter", {"found": False}, "found automatically"),
    ],
)
def test_what_was_drawn_otherwise_is_not_compared(experiment: str, attrs: dict[str, Any], reason: str) -> None:
    results = {**AGREEING, experiment: AGREEING[experiment].assign_attrs(attrs)}
    rows = [row for row in judged(results) if row.experiment == experiment]
    assert {row.verdict for row in rows} == {"not determinable here"}
    assert all(reason in row.why for row in rows)


def test_settings_as_drawn_are_accepted_in_any_container() -> None:
    results = dict(AGREEING)
    attrs = {"positions": np.array([32, 1022]), "target": "next_token", "erasers": tuple(PUBLISHED.paper.erasers)}
    results["dla_scatter_code"] = AGREEING["dla_scatter_code"].assign_attrs(attrs)
    rows = [row for row in judged(results) if row.experiment == "dla_scatter_code"]
    assert {row.verdict for row in rows} == {"match"}


def test_other_quantiles_concern_the_quartiles_only() -> None:
    rows = judged({**AGREEING, "sites_onto_nodes": AGREEING["sites_onto_nodes"].assign_attrs(quantiles=[0.125, 0.875])})
    by_kind = {row.id.split("/")[-1]: row.verdict for row in rows if row.group}
    assert by_kind == {"lower": "not determinable here", "median": "match", "upper": "not determinable here"}


@pytest.mark.parametrize("attrs", [{}, {"n_prompts": 32}])
def test_other_prompts_can_agree_within_the_interval_at_best(attrs: dict[str, int]) -> None:
    bound = [number for number in PUBLISHED.numbers if number.same_prompts]
    rows = judged(with_attrs(**attrs), *bound, same=bool(attrs))
    assert {row.verdict for row in rows} == {"within interval"}
    assert all(row.interval and row.interval[0] <= float(row.published) <= row.interval[1] for row in rows)


def test_a_read_off_number_needs_no_equal_prompts() -> None:
    free = [number for number in PUBLISHED.numbers if not number.same_prompts and number.best == "match"]
    assert {row.verdict for row in judged(AGREEING, *free, same=False)} == {"match"}


@pytest.mark.parametrize("name", [number.id for number in PUBLISHED.numbers if number.group is None])
def test_the_tolerance_decides_between_match_and_interval(name: str) -> None:
    number = NUMBERS[name]
    results = copies()
    edge = number.tolerance.within
    place = where(PUBLISHED, results[PUBLISHED.drawn_by(number).experiment], number)
    array = results[PUBLISHED.drawn_by(number).experiment][number.variable]
    array.loc[place] = number.value + 0.98 * edge
    assert judged(results, number)[0].verdict == number.best
    array.loc[place] = number.value + 1.02 * edge
    assert judged(results, number)[0].verdict != "match"


def test_outside_the_tolerance_without_raw_values_is_undecided() -> None:
    results = copies()
    drifting = [n for n in PUBLISHED.numbers if "quantile" in n.select and n.group is None]
    for number in drifting:
        put(results, PUBLISHED, number, far_off(number))
    rows = judged(results, *drifting, raw=False)
    assert {row.verdict for row in rows} == {"not determinable here"}
    assert all("raw values" in row.why for row in rows)


def test_raw_values_may_be_missing_incomplete_or_too_few() -> None:
    results = copies()
    number = NUMBERS["erasers_onto_writer"]
    put(results, PUBLISHED, number, 1.0)

    def absent(name: str) -> xr.Dataset:
        raise KeyError(name)

    for raw, reason in (
        (absent, "not here"),
        (lambda name: xr.Dataset(), "not here"),
        (lambda name: raw_of(results[name], n_prompts=9), "at least 10 prompts"),
    ):
        (row,) = check(results, subject_is_papers=True, same_prompts=True, raw=raw, published=only(number))
        assert row.verdict == "not determinable here"
        assert reason in row.why


def test_a_number_without_spread_differs_outright() -> None:
    results = copies()
    number = NUMBERS["logit_difference/michigan"]
    put(results, PUBLISHED, number, 1.8)
    (row,) = judged(results, number, raw=False)
    assert (row.verdict, row.interval) == ("differs", None)


def test_not_a_number_differs() -> None:
    results = copies()
    results["nodes_onto_writer"]["pr"].loc[{"component": "erasers"}] = np.nan
    (row,) = judged(results, NUMBERS["erasers_onto_writer"])
    assert (row.verdict, row.why) == ("differs", "ours is not a number")
    results["sites_onto_nodes"]["pr"].loc[{"node": "L0H2"}] = np.nan
    assert judged(results, CLAIMS["present_after_writing"])[0].verdict == "differs"


def test_labels_variables_and_prompts_that_are_not_there_are_named() -> None:
    short = AGREEING["resampled_dla"].drop_sel(head="L3H5")
    other = AGREEING["resampled_dla"].assign_coords(text=("example", ["a", "b", "c", "d"]))
    for result, name, reason in (
        (short, "other_dla_clean/class/L3H5", "no head 'L3H5'"),
        (other, "logit_difference/class", "no prompt 'class MyClass"),
        (AGREEING["resampled_dla"].drop_vars("text"), "logit_difference/class", "does not say which prompts"),
        (AGREEING["resampled_dla"].drop_vars("logit_diff"), "logit_difference/class", "holds no 'logit_diff'"),
    ):
        (row,) = judged({"resampled_dla": result}, NUMBERS[name])
        assert row.verdict == "not determinable here"
        assert reason in row.why
    claim = judged({"resampled_dla": short}, CLAIMS["others_moved"])[0]
    assert (claim.verdict, claim.ours) == ("not determinable here", None)


def test_equal_rows_give_equal_reports(tmp_path: Path) -> None:
    heading = Heading("gelu-4l", subject_is_papers=True, n_prompts=300, n_positions=1024, same_prompts=True)
    for folder in ("a", "b"):
        write_report(judged(AGREEING), tmp_path / folder, heading)
    for name in ("check.md", "check.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    written = json.loads((tmp_path / "a" / "check.json").read_text(encoding="utf-8"))
    assert len(written["rows"]) == len(NUMBERS) + len(CLAIMS)
    assert written["verdicts"]["match"] + written["verdicts"]["within interval"] == len(written["rows"])


def test_the_table_is_grouped_by_figure_and_short() -> None:
    heading = Heading("gelu-4l", subject_is_papers=True, n_prompts=300, n_positions=1024, same_prompts=True)
    text = markdown(judged(AGREEING), heading)
    sections = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert sections[:2] == ["LW 1 top", "LW 1 bottom"]
    assert sections[-1] == "appendix"
    assert {"LW 2, P 2", "LW 3a, P 1", "LW 3b, P 3", "LW 4a, P 5 top", "LW 4b, P 5 bottom", "LW 5, P 4"} <= set(
        sections
    )
    assert len(text.splitlines()) < 200
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") in (9, 9) for line in rows)


def test_differences_are_shown_with_interval_and_a_word_on_chance(tmp_path: Path) -> None:
    results = copies()
    for name in ("erasers_onto_writer", "reference/MLP0/resid_mid1/median"):
        put(results, PUBLISHED, NUMBERS[name], far_off(NUMBERS[name]))
    heading = Heading("gelu-4l", subject_is_papers=True, n_prompts=300, n_positions=1024, same_prompts=True)
    rows = judged(results)
    text = markdown(rows, heading)
    assert "outside the 95 % interval over prompts" in text
    assert "2 (resid_mid1, median)" in text
    assert "by chance" in text
    results["nodes_onto_writer"]["pr"].loc[{"component": "erasers"}] = np.nan
    assert any(
        row["ours"] is not None and math.isnan(row["ours"]) for row in document(judged(results), heading)["rows"]
    )
    write_report(judged(results), tmp_path, heading)
    written = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert any(row["ours"] is None for row in written["rows"])
