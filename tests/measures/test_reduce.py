"""Quantiles, lines and variance shares against numpy, scipy and a fitted linear model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.stats import linregress

from repro.measures.statistics import density, density_edges, fit_line, quantiles, quantiles_along, variance_shares

# Reproducible, and nothing is written beside the project.
QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)
NUMBERS = st.floats(-1e6, 1e6, width=32) | st.just(math.nan)
BANDS = st.tuples(st.floats(0, 0.49), st.floats(0.51, 1))
GENERATOR = np.random.default_rng(0)


def expected_quantiles(values: np.ndarray, at: tuple[float, float]) -> np.ndarray:
    """numpy's own, NaN where nothing is left (where numpy warns)."""
    kept = values[~np.isnan(values)].astype(np.float64)
    return np.quantile(kept, (at[0], 0.5, at[1])) if kept.size else np.full(3, np.nan)


@QUICK
@given(arrays(np.float32, array_shapes(max_dims=3, max_side=9), elements=NUMBERS), BANDS)
def test_quantiles_are_numpys(values: np.ndarray, at: tuple[float, float]) -> None:
    before = values.copy()
    ours, undefined = quantiles(values, at)
    np.testing.assert_allclose(ours, expected_quantiles(values, at), rtol=1e-12, atol=1e-6)
    assert undefined == np.isnan(values).sum()
    assert np.array_equal(values, before, equal_nan=True)  # partial selection works on a copy


@pytest.mark.parametrize("n", [1, 2, 3, 7, 40, 1001, 4096, 50_000])  # numpy sorts few values where it should select
@pytest.mark.parametrize("at", [(0.25, 0.75), (0.125, 0.875), (0.0, 1.0), (0.49999, 0.50001)])
def test_quantiles_are_those_of_a_sort_to_the_bit(n: int, at: tuple[float, float]) -> None:
    smooth = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    for values in (smooth, np.round(smooth), -np.sort(smooth)):  # distinct, with many ties and signed zeros, falling
        ordered = np.sort(values).astype(np.float64)
        places = np.array((at[0], 0.5, at[1])) * (n - 1)
        below = np.floor(places).astype(int)
        low, high = ordered[below], ordered[np.minimum(below + 1, n - 1)]
        expected = (low + (high - low) * (places - below)).tobytes()
        assert quantiles(values, at)[0].tobytes() == expected
        holed = np.insert(values, [0, n // 2, n], np.nan)
        ours, undefined = quantiles(holed, at)
        assert (ours.tobytes(), undefined) == (expected, 3)


@QUICK
@given(arrays(np.float64, array_shapes(min_dims=3, max_dims=3, max_side=6), elements=NUMBERS), BANDS)
def test_quantiles_along_reduces_the_last_axes(values: np.ndarray, at: tuple[float, float]) -> None:
    for axes in (1, 2):
        ours, undefined = quantiles_along(values, at, axes)
        lead = values.shape[: 3 - axes]
        assert ours.shape == (3, *lead)
        for index in np.ndindex(*lead):
            np.testing.assert_allclose(ours[(slice(None), *index)], expected_quantiles(values[index], at), atol=1e-6)
            assert undefined[index] == np.isnan(values[index]).sum()


def test_quantiles_interpolate_and_reach_both_ends() -> None:
    assert quantiles(np.array([3.0, 1.0, 2.0, 4.0]), (0.25, 0.75))[0].tolist() == [1.75, 2.5, 3.25]
    assert quantiles(np.array([3.0, 1.0, np.nan, 2.0]), (0.0, 1.0))[0].tolist() == [1.0, 2.0, 3.0]
    assert quantiles(np.array([5.0]), (0.25, 0.75))[0].tolist() == [5.0, 5.0, 5.0]
    nothing, undefined = quantiles(np.full((2, 2), np.nan), (0.25, 0.75))
    assert np.isnan(nothing).all()
    assert undefined == 4


def test_half_precision_of_the_store_does_not_reach_the_quantiles() -> None:
    values = GENERATOR.normal(size=301).astype(np.float32)
    ours, _ = quantiles(values, (0.1, 0.9))
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, np.quantile(values.astype(np.float64), (0.1, 0.5, 0.9)), rtol=1e-14)


@QUICK
@given(st.integers(3, 40), st.floats(-3, 3), st.floats(0.01, 10), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_the_line_is_scipys(n: int, slope: float, noise: float, seed: int, undefined: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 2)) * 5 + 100
    y = slope * x + noise * generator.normal(size=(n, 2))
    theirs = linregress(x.ravel()[undefined:], y.ravel()[undefined:])
    x.ravel()[: undefined // 2], y.ravel()[undefined // 2 : undefined] = np.nan, np.inf
    ours = fit_line(x, y)
    np.testing.assert_allclose(
        (ours.r, ours.slope, ours.intercept), (theirs.rvalue, theirs.slope, theirs.intercept), rtol=1e-7, atol=1e-7
    )
    assert ours.n == 2 * n - undefined


def test_the_line_of_y_on_x_is_not_that_of_x_on_y() -> None:
    x = GENERATOR.normal(size=50)
    y = -0.7 * x + GENERATOR.normal(size=50)
    assert fit_line(x, y).r == pytest.approx(fit_line(y, x).r)
    assert abs(fit_line(x, y).slope - 1 / fit_line(y, x).slope) > 0.1
    assert fit_line(x, -0.5 * x + 2).slope == pytest.approx(-0.5)
    assert fit_line(x, -0.5 * x + 2).r == pytest.approx(-1)


def test_no_line_where_nothing_varies_or_is_left() -> None:
    x, constant = np.arange(7.0), np.full(7, 0.1)
    assert constant.mean() != 0.1  # rounding: the sum of squared deviations is not zero
    level, upright = fit_line(x, constant), fit_line(constant, x)
    assert math.isnan(level.r)
    assert (level.slope, level.intercept) == pytest.approx((0, 0.1))
    assert math.isnan(upright.r)
    assert math.isnan(upright.slope)
    assert fit_line(x, np.full(7, np.nan)).n == 0
    assert fit_line(x[:1], x[:1]).n == 1


def anova(values: np.ndarray) -> np.ndarray:
    """Shares of the total sum of squares, by fitting prompt and position as factors of a linear model."""
    rows, columns = (index.ravel() for index in np.indices(values.shape))

    def explained(*factors: np.ndarray) -> float:
        design = np.stack([factor == level for factor in factors for level in np.unique(factor)], 1).astype(float)
        fitted = design @ np.linalg.lstsq(design, values.ravel(), rcond=None)[0]
        return float(((fitted - values.mean()) ** 2).sum())

    parts = np.array([explained(rows), explained(columns), explained(rows, columns)])
    total = ((values - values.mean()) ** 2).sum()
    assert math.isclose(parts[0] + parts[1], parts[2], rel_tol=1e-9)  # balanced: the two factors are orthogonal
    return np.array([parts[0], parts[1], total - parts[2]]) / total


@QUICK
@given(st.integers(2, 7), st.integers(2, 7), st.floats(0, 3), st.floats(0, 3), st.integers(0, 2**32 - 1))
def test_variance_shares_are_those_of_a_two_way_model(
    n: int, p: int, by_row: float, by_column: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    values = (
        generator.normal(size=(n, p)) + by_row * generator.normal(size=(n, 1)) + by_column * generator.normal(size=p)
    )
    shares = variance_shares(values + 50)
    np.testing.assert_allclose(shares, anova(values), atol=1e-9)
    assert shares.sum() == pytest.approx(1)
    assert (shares > -1e-12).all()
    np.testing.assert_allclose(variance_shares(values.T)[[1, 0, 2]], shares, atol=1e-9)


def test_variance_shares_of_pure_cases() -> None:
    row, column = np.arange(4.0)[:, None], np.arange(6.0)[None] ** 2
    flat = np.zeros((4, 6))
    np.testing.assert_allclose(variance_shares(row + flat), (1, 0, 0), atol=1e-12)
    np.testing.assert_allclose(variance_shares(column + flat), (0, 1, 0), atol=1e-12)
    np.testing.assert_allclose(variance_shares((row - row.mean()) * (column - column.mean())), (0, 0, 1), atol=1e-12)


def test_variance_shares_leave_out_positions_with_undefined_values() -> None:
    values = GENERATOR.normal(size=(5, 8))
    holed = values.copy()
    holed[2, 0] = holed[4, 3] = np.nan
    np.testing.assert_allclose(variance_shares(holed), variance_shares(np.delete(values, [0, 3], 1)))
    assert np.isnan(variance_shares(np.full((3, 4), np.nan))).all()
    assert np.isnan(variance_shares(np.full((2, 9), 0.1))).all()


@QUICK
@given(arrays(np.float64, (2, 30), elements=NUMBERS), st.integers(1, 20))
def test_the_density_counts_every_defined_point_once(points: np.ndarray, bins: int) -> None:
    x, y = points
    x_edges, y_edges = density_edges(x, y, bins)
    counts = density(x, y, x_edges, y_edges)
    good = ~np.isnan(points).any(0)
    assert counts.shape == (bins, bins)
    assert counts.sum() == good.sum()
    by_hand = np.zeros((bins, bins), int)
    for a, b in points[:, good].T:
        column, row = np.searchsorted(x_edges, a, "right") - 1, np.searchsorted(y_edges, b, "right") - 1
        by_hand[row, column] += 1
    # A point on an edge may fall to either side; the marginal sums elsewhere must agree.
    assert np.abs(counts - by_hand).sum() <= 2 * np.isin(x[good], x_edges).sum() + 2 * np.isin(y[good], y_edges).sum()


def test_the_density_has_y_in_rows() -> None:
    x, y = np.array([0.0, 0.0, 10.0]), np.array([1.0, 1.0, 5.0])
    x_edges, y_edges = density_edges(x, y, bins=2)
    assert density(x, y, x_edges, y_edges).tolist() == [[2, 0], [0, 1]]
    assert (x_edges[0], y_edges[0]) == pytest.approx((0, 1), abs=1e-4)
    x, y = np.array([0.0, 1.0]), np.array([1.0, 0.0])
    assert density(x, y, *density_edges(x, y, bins=2)).tolist() == [[0, 1], [1, 0]]
