"""Agreement of attributions with total effects, against scipy.stats, and its interval over prompts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import linregress, pearsonr, spearmanr

from repro.measures.agreement import compare, over_prompts

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(2, 57))
TOTAL = np.stack((2 * X[0] + GENERATOR.normal(size=57), GENERATOR.normal(size=57).round(1)))


def test_statistics_are_those_of_scipy() -> None:
    found = compare(X, TOTAL, bar=0.3)
    for e in range(2):
        for a in range(2):
            assert found["pearson"][e, a] == pytest.approx(pearsonr(X[e], TOTAL[a])[0])
            assert found["spearman"][e, a] == pytest.approx(spearmanr(X[e], TOTAL[a])[0])  # with ties in the second
            assert found["slope_of_total"][e, a] == pytest.approx(linregress(X[e], TOTAL[a]).slope)
            large = np.abs(TOTAL[a]) > 0.3
            assert found["sign_right"][e, a] == pytest.approx(np.mean(X[e][large] * TOTAL[a][large] > 0))
            assert found["signed"][e, a] == large.sum() < found["pairs"][e, a] == 57


def test_the_total_effect_agrees_with_itself_and_its_opposite_does_not() -> None:
    found = compare(np.stack((TOTAL[0], -TOTAL[0])), TOTAL[:1])
    np.testing.assert_allclose(found["pearson"][:, 0], (1, -1))
    np.testing.assert_allclose(found["spearman"][:, 0], (1, -1))
    np.testing.assert_allclose(found["slope_of_total"][:, 0], (1, -1))
    np.testing.assert_allclose(found["sign_right"][:, 0], (1, 0))


def test_each_total_effect_is_compared_where_it_is_known_itself() -> None:
    """However the totals beside it are known."""
    total = np.stack((TOTAL[0], np.where(X[0] > 1, np.nan, TOTAL[0]), TOTAL[1], np.where(X[1] > 0, np.nan, TOTAL[1])))
    found = compare(X, total)
    for a in range(len(total)):
        for name, value in compare(X, total[a : a + 1]).items():
            np.testing.assert_array_equal(found[name][:, a], value[:, 0])


def test_what_is_not_known_is_left_out() -> None:
    total = TOTAL[:1].copy()
    total[0, 40:] = np.nan
    cut = compare(X[:, :40], total[:, :40])
    for name, value in compare(X, total).items():
        np.testing.assert_allclose(value, cut[name])
    nothing = compare(X, np.full((1, 57), np.nan))
    assert np.isnan(nothing["pearson"]).all()
    assert not nothing["pairs"].any()
    assert np.isnan(compare(np.zeros((1, 57)), TOTAL)["pearson"]).all()


def test_an_interval_is_over_whole_prompts() -> None:
    """Many targets of one prompt are one observation: equal within prompts, the interval is that of the prompts."""
    values = GENERATOR.normal(size=12)
    low, middle, high = over_prompts(lambda prompts: values[prompts].mean(), 12, 400)
    assert middle == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(12), rel=0.2)
    repeated = np.repeat(values[:, None], 50, 1)
    again = over_prompts(lambda prompts: repeated[prompts].mean(), 12, 400)
    np.testing.assert_allclose(again, (low, middle, high))
    assert np.isnan(over_prompts(lambda prompts: values[prompts].mean(), 12, 0)[[0, 2]]).all()
