"""Claims in words, asked of any subject: they hold on what agrees with the paper, fail on what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

from repro.check.claims import ClaimRow, Rule, _Estimate, _row, ask_claims
from repro.check.report import Heading, claims_line, markdown_of_claims
from tests.published_results import agreeing, raw_of

AGREEING = agreeing()
NAMES = (
    "absent_before",
    "present_after_writing",
    "falls_across_erasers",
    "erasers_negative",
    "falls_less_patched",
    "writer_unmoved",
    "others_moved",
    "r_negative",
    "slope_negative",
)


def results(**changes: Callable[[xr.Dataset], None]) -> dict[str, xr.Dataset]:
    """Results that agree with the paper, as another subject's: roles in the attributes, the heads shown named."""
    found = {}
    for name, result in AGREEING.items():
        copy = result.copy(deep=True).assign_attrs(writer="L0H2", erasers="L2H2, L2H3, L2H4, L2H5, L2H6, L2H7")
        if "example" in copy.dims:
            heads = {"cupboard": "L3H1", "michigan": "L2H1", "class": "L3H5", "adventist": "L2H2"}
            order = list(heads.values())
            copy = copy.assign_coords(head_shown=("example", [order[i] for i in range(copy.sizes["example"])]))
        if "against" in copy.dims:
            copy["n_points"] = ("against", [100, 100])
        if "site_pr" in copy:
            sites = AGREEING["sites_onto_nodes"]["pr"].sel(node="L0H2")
            early = [site for site in map(str, copy["site"].values) if site.endswith(("0", "1"))]
            copy["site_pr"].loc[{"run": "clean"}] = sites.sel(site=copy["site"].values).values
            copy["site_pr"].loc[{"run": "patched", "site": early}] = sites.sel(site=early).values
        changes.get(name, lambda same: None)(copy)
        found[name] = copy
    return found


def asked(found: dict[str, xr.Dataset], raw: bool = True) -> dict[str, ClaimRow]:
    def raw_values(name: str) -> xr.Dataset:
        return raw_of(found[name])

    rows = ask_claims(found, raw_values if raw else None, resamples=200)
    return {row.id: row for row in rows}


def test_what_agrees_with_the_paper_holds() -> None:
    rows = asked(results())
    assert tuple(rows) == NAMES
    assert {name: row.verdict for name, row in rows.items() if row.verdict != "holds"} == {}
    assert all(row.interval is not None and row.interval[0] <= row.interval[1] for row in rows.values())
    assert rows["falls_across_erasers"].why == "L0H2 from resid_post1 to resid_mid2"


def flat(result: xr.Dataset) -> None:
    """The writer stays where it is."""
    here = result["pr"].sel(node="L0H2", site="resid_post1").copy()
    for site in ("resid_mid2", "resid_post2", "resid_mid3", "resid_post3"):
        result["pr"].loc[{"node": "L0H2", "site": site}] = here


def as_clean(result: xr.Dataset) -> None:
    """The patch changes nothing."""
    result["site_pr"].loc[{"run": "patched"}] = result["site_pr"].sel(run="clean").values


def adds(result: xr.Dataset) -> None:
    """One eraser writes along the writer."""
    result["pr"].loc[{"component": "L2H4"}] = abs(result["pr"].sel(component="L2H4").values)


@pytest.mark.parametrize(
    ("experiment", "change", "failing"),
    [
        ("sites_onto_nodes", flat, "falls_across_erasers"),
        ("nodes_onto_writer", adds, "erasers_negative"),
        ("v_patch", as_clean, "falls_less_patched"),
    ],
)
def test_one_change_fails_one_claim(experiment: str, change: Any, failing: str) -> None:
    rows = asked(results(**{experiment: change}))
    assert {name for name, row in rows.items() if row.verdict != "holds"} == {failing}
    assert rows[failing].verdict == "does not hold"


def test_a_claim_is_asked_of_these_roles() -> None:
    """The same numbers under other roles: L0H0 is not what L2H2 alone takes back."""
    found = {name: r.assign_attrs(writer="L0H0", erasers="L2H2") for name, r in results().items()}
    rows = asked(found)
    assert rows["present_after_writing"].verdict == "does not hold"
    assert "L0H0" in rows["present_after_writing"].why


def test_without_raw_values_the_value_decides_and_says_so() -> None:
    rows = asked(results(), raw=False)
    assert rows["falls_across_erasers"].verdict == "holds"
    assert rows["falls_across_erasers"].interval is None
    assert "no interval" in rows["falls_across_erasers"].why


def test_what_is_missing_is_named() -> None:
    found = results()
    del found["v_patch"]
    found["nodes_onto_writer"].attrs["erasers"] = ""
    rows = asked(found)
    assert (rows["falls_less_patched"].verdict, rows["falls_less_patched"].value) == ("not determinable here", None)
    assert "no result of 'v_patch'" in rows["falls_less_patched"].why
    assert "no component has the role of an eraser" in rows["erasers_negative"].why
    assert {row.verdict for row in asked({}).values()} == {"not determinable here"}


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.3, 0.4), "holds"),
        ((0.2, 0.4), "undecided"),
        ((0.1, 0.2), "does not hold"),
        (None, "holds"),
        ((np.nan, np.nan), "not determinable here"),
    ],
)
def test_the_whole_interval_decides(interval: tuple[float, float] | None, verdict: str) -> None:
    assert Rule(0.25).judge(0.3, interval) == verdict
    assert str(Rule(0.9, 1.1)) == "0.9 < value < 1.1"


def test_a_claim_about_several_is_as_good_as_the_worst_of_them() -> None:
    """The one with the better median has the wider interval, across the bound: no statement about every one holds."""
    safe, wide = _Estimate(-0.1, known=(-0.11, -0.09)), _Estimate(-0.3, known=(-0.7, 0.1))
    row = _row(None, "id", "every one", Rule(high=0.0), lambda _: [("safe", safe), ("wide", wide)])  # type: ignore[arg-type]
    assert (row.verdict, row.value, row.interval) == ("undecided", -0.3, (-0.7, 0.1))
    assert row.why == "wide, the least favourable of 2"
    row = _row(None, "id", "every one", Rule(high=0.0), lambda _: [("safe", safe), ("safe", safe)])  # type: ignore[arg-type]
    assert row.verdict == "holds"
    lost = _Estimate(float("nan"))
    row = _row(None, "id", "every one", Rule(high=0.0), lambda _: [("safe", safe), ("lost", lost)])  # type: ignore[arg-type]
    assert (row.verdict, row.why) == ("not determinable here", "undefined for lost")


def test_everything_else_is_one_line() -> None:
    heading = Heading("mini", False, 30, 1024, False)
    rows = list(asked(results(), raw=False).values())
    text = markdown_of_claims(rows, [], heading)
    assert text.count("\n|") == len(NAMES) + 2
    assert "published numbers and rules are not compared" in text.splitlines()[-1]
    assert claims_line(rows) == (
        "claims in words, holds: 9 · does not hold: 0 · undecided: 0 · not determinable here: 0 (of 9)"
    )
