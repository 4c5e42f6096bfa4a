"""Automatic roles: on the published numbers of gelu-4l they must be the authors', on made-up ones follow the rule."""

from __future__ import annotations

import csv
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.check.published import FOLDER
from repro.labels import heads, layer_of, sites
from repro.measures.roles import (
    Roles,
    choose_erasers,
    choose_examples,
    choose_writer,
    distinct_other_heads,
    later_heads,
)

QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)
BAR = -0.03
# Figure 2 of the post, read off; the other heads after layer 0 are about 0 there.
BARS = {"L2H2": -0.145, "L2H3": -0.035, "L2H4": -0.118, "L2H5": -0.263, "L2H6": -0.177, "L2H7": -0.143, "L3H5": -0.03}
ERASERS = ("L2H2", "L2H3", "L2H4", "L2H5", "L2H6", "L2H7")


def reference_medians() -> tuple[np.ndarray, list[str], list[str]]:
    """Median PR(site, head) of gelu-4l as published, with heads and sites."""
    labels, places = heads(4, 8), sites(4)
    with (FOLDER / "gelu4l_resid_onto_node.csv").open() as file:
        table = {(row["node"], row["site"]): float(row["q50"]) for row in csv.DictReader(file)}
    return np.array([[table[head, site] for site in places] for head in labels]), labels, places


def published_bars(others: float = 0.0) -> dict[str, float]:
    """The read-off bars, with the unlisted heads of layers 1 to 3 at a given value."""
    return {head: BARS.get(head, others) for head in later_heads("L0H2", 4, 8)}


def test_the_writer_on_the_reference_table_is_the_papers() -> None:
    choice = choose_writer(*reference_medians())
    ranking = sorted(choice.scores, key=lambda head: -choice.scores[head])
    assert choice.writer == "L0H2"
    assert choice.found
    assert ranking[:2] == ["L0H2", "L0H4"]
    assert [round(choice.scores[head], 3) for head in ranking[:2]] == [0.906, 0.778]
    assert set(choice.scores) == set(heads(3, 8))  # the last layer takes no part
    medians, labels, places = reference_medians()
    assert choose_writer(medians[:24], labels[:24], places) == choice


def test_the_largest_drop_would_be_another_rule() -> None:
    medians, labels, places = reference_medians()
    drops = {
        head: row[places.index(f"resid_mid{layer_of(head)}")] - row[-1]
        for head, row in zip(labels, medians, strict=True)
        if layer_of(head) < 3
    }
    assert sorted(drops, key=lambda head: -drops[head]).index("L0H2") == 9  # tenth


@pytest.mark.parametrize("others", [-0.006, 0.0, 0.006])  # the tolerance of the read-off
def test_the_erasers_on_the_published_bars_are_the_papers(others: float) -> None:
    choice = choose_erasers(published_bars(others), True, BAR)
    assert choice.erasers == ERASERS
    assert choice.found
    assert min(choice.layer_sums, key=lambda layer: choice.layer_sums[layer]) == "layer 2"
    assert choice.layer_sums["layer 2"] == pytest.approx(-0.881 + 2 * others)


def test_the_bar_is_inclusive_and_concerns_one_layer() -> None:
    bars = published_bars()
    assert choose_erasers(bars, True, -0.035).erasers == ERASERS
    assert choose_erasers(bars, True, -0.0351).erasers == tuple(head for head in ERASERS if head != "L2H3")
    assert "L3H5" not in choose_erasers(bars, True, 0.0).erasers


def test_no_erasers_are_found_where_no_head_reaches_the_bar() -> None:
    faint = {head: value / 20 for head, value in published_bars().items()}
    choice = choose_erasers(faint, True, BAR)
    assert choice.erasers == ("L2H5",)  # the single most negative later head
    assert not choice.found


def test_no_erasers_are_found_where_the_writer_was_not() -> None:
    choice = choose_erasers(published_bars(), False, BAR)
    assert choice.erasers == ("L2H5",)
    assert not choice.found


def test_the_candidate_is_the_most_negative_head_even_outside_the_lowest_layer() -> None:
    bars = {"L1H0": -0.02, "L1H1": -0.02, "L2H0": -0.025, "L2H1": 0.1}
    choice = choose_erasers(bars, True, BAR)
    assert min(choice.layer_sums, key=lambda layer: choice.layer_sums[layer]) == "layer 1"
    assert choice.erasers == ("L2H0",)
    assert not choice.found


def test_a_silent_head_is_never_an_eraser() -> None:
    bars = published_bars() | {"L2H2": float("nan"), "L1H0": float("nan")}
    choice = choose_erasers(bars, True, BAR)
    assert choice.erasers == ERASERS[1:]
    assert choose_erasers(dict.fromkeys(bars, float("nan")), True, BAR).found is False


def score(row: np.ndarray, layer: int) -> float:
    """The writer's score by its formula, of medians at resid_pre0, resid_mid0, resid_post0, ..."""
    return min(row[2 * layer + 1], 1.0) - max(abs(row[-2]), abs(row[-1]))


@QUICK
@given(st.integers(2, 4), st.integers(1, 3), st.integers(0, 2**32 - 1), st.booleans())
def test_the_writer_is_the_best_score(n_layers: int, n_heads: int, seed: int, silent: bool) -> None:
    medians = np.random.default_rng(seed).normal(0.5, 0.7, (n_layers * n_heads, 2 * n_layers + 1))
    if silent:
        medians[0] = np.nan
    choice = choose_writer(medians, heads(n_layers, n_heads), sites(n_layers))
    scores = {
        f"L{layer}H{head}": score(medians[layer * n_heads + head], layer)
        for layer, head in product(range(n_layers - 1), range(n_heads))
    }
    known = {head: value for head, value in scores.items() if not np.isnan(value)}
    assert {head: value for head, value in choice.scores.items() if np.isfinite(value)} == pytest.approx(known)
    if known:
        assert choice.writer == max(known, key=lambda head: known[head])
        assert choice.found == (known[choice.writer] >= 0.5)
    else:
        assert not choice.found


def test_one_undefined_median_disqualifies_a_head_only_where_the_rule_reads_it() -> None:
    medians, labels, places = reference_medians()
    for site in ("resid_mid0", "resid_mid3", "resid_post3"):
        holed = medians.copy()
        holed[labels.index("L0H2"), places.index(site)] = np.nan
        choice = choose_writer(holed, labels, places)
        assert choice.writer == "L0H4"
        assert choice.scores["L0H2"] == -np.inf
    holed = medians.copy()
    holed[labels.index("L0H2"), places.index("resid_post1")] = np.nan
    assert choose_writer(holed, labels, places).writer == "L0H2"


def test_a_writer_below_the_bar_is_a_candidate_only() -> None:
    medians, labels, places = reference_medians()
    assert choose_writer(medians * 0.5, labels, places).found is False
    assert choose_writer(medians * 0.5, labels, places).writer in labels
    assert choose_writer(np.full_like(medians, np.nan), labels, places).found is False


@QUICK
@given(st.integers(1, 6), st.integers(1, 5), st.integers(2, 8), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_mined_examples_follow_the_rule(n: int, p: int, vocabulary: int, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    first, second, actual = generator.integers(0, vocabulary, (3, n, p))
    dla = generator.permutation(n * p).reshape(n, p).astype(float)  # no ties
    chosen = choose_examples(dla, first, second, actual, count)
    assert len({item.prompt for item in chosen}) == len({item.first for item in chosen}) == len(chosen)
    for item in chosen:
        at = item.prompt, item.position
        assert (item.first, item.second, item.right) == (first[at], second[at], first[at] == actual[at])

    def rank(prompt: int, position: int) -> tuple[bool, float]:
        return bool(first[prompt, position] == actual[prompt, position]), float(dla[prompt, position])

    ranks = [rank(item.prompt, item.position) for item in chosen]
    assert ranks == sorted(ranks, reverse=True)  # right ones first, then by DLA
    for at in np.ndindex(n, p):
        before = [item for item, held in zip(chosen, ranks, strict=True) if held >= rank(*at)]
        conflicts = any(item.prompt == at[0] or item.first == first[at] for item in before)
        assert conflicts or len(before) == count  # whatever was passed over could not be had


def test_mined_examples_avoid_undefined_values() -> None:
    dla = np.array([[np.nan, 1.0], [0.5, np.nan]])
    first = np.array([[1, 2], [3, 4]])
    chosen = choose_examples(dla, first, first, first, 2)
    assert [(item.prompt, item.position) for item in chosen] == [(0, 1), (1, 0)]


def test_other_heads_are_distinct_and_not_the_writer() -> None:
    labels = ["L0H0", "L0H1", "L1H0", "L1H1"]
    clean = np.array([[9.0, 5.0, 4.0, 1.0], [8.0, 5.0, 4.0, 1.0], [0.0, 5.0, 2.0, 3.0]])
    assert distinct_other_heads(clean, labels, "L0H0", [None] * 3) == ["L0H1", "L1H0", "L1H1"]
    assert distinct_other_heads(clean, labels, "L0H0", ["L1H1", "L1H1", None]) == ["L1H1", "L1H1", "L0H1"]
    # More examples than heads: the largest is shown again.
    assert distinct_other_heads(clean[:, :2], labels[:2], "L0H0", [None] * 3) == ["L0H1"] * 3


def test_roles_say_who_and_how_they_were_found() -> None:
    roles = Roles("L0H2", ERASERS, found=False, source="auto")
    assert roles.attrs() == {
        "writer": "L0H2", "erasers": list(ERASERS), "layer": 2, "found": False, "roles": "auto",
    }  # fmt: skip
    assert set(Roles("L0H2", ()).attrs()) == {"writer", "found", "roles"}
    assert later_heads("L1H0", 3, 2) == ["L2H0", "L2H1"]
