"""Roles and how they are told, adversarial examples, and which other heads are shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.errors import ReproError
from repro.measures.roles import Roles, choose_examples, distinct_other_heads, eraser_rows, layer_words, refuse_parallel

QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)


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


def test_roles_say_who_they_are_and_what_the_scan_says_of_them() -> None:
    erasers = ("L2H2", "L3H0", "MLP3")
    assert Roles("L0H2", erasers, found=False, source="auto").attrs() == {
        "writer": "L0H2", "erasers": list(erasers), "layer": "2 and 3", "found": False, "roles": "auto",
    }  # fmt: skip
    assert Roles("MLP0", ("L2H2",)).attrs() == {
        "writer": "MLP0", "erasers": ["L2H2"], "layer": 2, "roles": "named, no scan yet",
    }  # fmt: skip
    assert Roles("L0H2", erasers, True).standing == "named, claimed"
    assert Roles("L0H2", erasers, False).standing == "named, not claimed by the scan"
    assert Roles("L0H2", erasers, True, unclaimed=("MLP3",)).standing == "named, claimed but for MLP3"
    assert Roles("L0H2").attrs() == {"writer": "L0H2", "roles": "named"}
    assert Roles().attrs() == {}


def test_layers_are_told_as_a_number_or_in_words() -> None:
    assert layer_words([2]) == 2
    assert layer_words([2, 3]) == "2 and 3"
    assert layer_words([2, 3, 18]) == "2, 3 and 18"
    assert Roles("L0H0", ("MLP18", "L2H1", "L2H0")).layers == (2, 18)
    assert eraser_rows(Roles("L0H0", ("MLP2", "L2H1", "L3H5", "L2H0")), 2) == [1, 0]


def test_an_mlp_of_the_writers_layer_is_refused_where_blocks_are_parallel() -> None:
    beside, later = Roles("L1H0", ("L2H0", "MLP1")), Roles("L1H0", ("L2H0", "MLP2"))
    refuse_parallel(False, beside)
    refuse_parallel(True, later)
    with pytest.raises(ReproError, match="MLP1 cannot erase L1H0"):
        refuse_parallel(True, beside)
