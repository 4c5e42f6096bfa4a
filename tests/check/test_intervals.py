"""The cluster bootstrap: exact against explicit resampling, covering, and wider than tokens would have it."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.check import bootstrap as intervals
from repro.check.bootstrap import (
    Bootstrap,
    percentile_interval,
    prompt_draws,
    resampled_fits,
    resampled_quantiles,
)

LEVELS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)


def repeated(values: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """The resample itself, prompts repeated."""
    return np.repeat(values, draw.astype(int), axis=0)


@given(
    n_prompts=st.integers(1, 12),
    n_positions=st.integers(1, 40),
    seed=st.integers(0, 99),
    share=st.sampled_from([0, 0.3]),
)
@settings(max_examples=60, deadline=None)
def test_quantiles_are_those_of_the_repeated_prompts(n_prompts: int, n_positions: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n_prompts, n_positions)).round(1).astype(np.float32)
    values[rng.random(values.shape) < share] = np.nan
    draws = prompt_draws(n_prompts, 8, seed)
    ours = resampled_quantiles(values, LEVELS, draws)
    for draw, row in zip(draws, ours, strict=True):
        pooled = repeated(values, draw).astype(np.float64)
        kept = pooled[~np.isnan(pooled)]
        expected = np.quantile(kept, LEVELS) if kept.size else np.full(len(LEVELS), np.nan)
        np.testing.assert_allclose(row, expected, atol=1e-12)


def test_fits_are_those_of_the_repeated_prompts() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((12, 30)) + 1000
    y = 3 - 0.7 * x + rng.standard_normal((12, 30))
    y[3, :5] = np.nan
    draws = prompt_draws(12, 20)
    fits = resampled_fits(x, y, draws)
    for i, draw in enumerate(draws):
        a, b = repeated(x, draw).ravel(), repeated(y, draw).ravel()
        a, b = a[~np.isnan(b)], b[~np.isnan(b)]
        slope = np.cov(a, b)[0, 1] / a.var(ddof=1)
        assert fits["pearson_r"][i] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-9)
        assert fits["slope"][i] == pytest.approx(slope, abs=1e-9)
        assert fits["intercept"][i] == pytest.approx(b.mean() - slope * a.mean(), abs=1e-6)


def test_a_constant_has_no_correlation() -> None:
    fits = resampled_fits(np.ones((5, 3)), np.arange(15.0).reshape(5, 3), prompt_draws(5, 4))
    assert np.isnan(fits["pearson_r"]).all()
    assert np.isnan(percentile_interval(fits["pearson_r"])).all()


def test_draws_are_seeded_and_whole() -> None:
    draws = prompt_draws(30, 50)
    np.testing.assert_array_equal(draws, prompt_draws(30, 50))
    assert not np.array_equal(draws, prompt_draws(30, 50, seed=1))
    assert (draws.sum(axis=1) == 30).all()
    assert (draws == draws.round()).all()


def clustered(rng: np.random.Generator, n_prompts: int, n_positions: int) -> np.ndarray:
    """Values whose prompts differ as much as their tokens do; median 0."""
    return rng.standard_normal((n_prompts, 1)) + rng.standard_normal((n_prompts, n_positions))


def test_the_interval_over_prompts_covers_and_the_one_over_tokens_does_not() -> None:
    rng = np.random.default_rng(7)
    covered = {"prompts": 0, "tokens": 0}
    trials = 200
    for _ in range(trials):
        values = clustered(rng, 40, 25)
        for name, clusters in (("prompts", values), ("tokens", values.reshape(-1, 1))):
            draws = prompt_draws(clusters.shape[0], 200, seed=3)
            low, high = percentile_interval(resampled_quantiles(clusters, [0.5], draws)[:, 0])
            covered[name] += low <= 0 <= high
    assert 0.89 * trials <= covered["prompts"] <= 0.99 * trials
    assert covered["tokens"] < 0.6 * trials


def test_the_interval_of_a_correlation_covers_and_tokens_are_too_sure() -> None:
    rng = np.random.default_rng(8)
    covered = {"prompts": 0, "tokens": 0}
    trials = 200
    for _ in range(trials):
        x, y = clustered(rng, 30, 20), clustered(rng, 30, 20)
        for name, (a, b) in (("prompts", (x, y)), ("tokens", (x.reshape(-1, 1), y.reshape(-1, 1)))):
            low, high = percentile_interval(resampled_fits(a, b, prompt_draws(a.shape[0], 200, seed=4))["pearson_r"])
            covered[name] += low <= 0 <= high
    assert 0.88 * trials <= covered["prompts"] <= 0.99 * trials
    assert covered["tokens"] < 0.6 * trials


def raw_values(seed: int = 0) -> xr.Dataset:
    values = np.random.default_rng(seed).standard_normal((5, 3, 12, 7)).astype(np.float32)
    coords = {"node": list("abcde"), "site": list("xyz")}
    return xr.Dataset({"pr": (("node", "site", "prompt", "position"), values)}, coords)


@pytest.mark.parametrize("block_bytes", [1, 2000, 2**27])
def test_panels_are_independent_of_how_they_are_read(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(intervals, "BLOCK_BYTES", block_bytes)
    raw = raw_values()
    panels = [({"site": "y", "node": "d"}, 0.5), ({"node": "a", "site": "x"}, 0.25), ({"node": "d", "site": "y"}, 0.75)]
    found = Bootstrap(lambda name: raw, resamples=100).quantiles("any", "pr", panels)
    for (labels, level), interval in zip(panels, found, strict=True):
        samples = resampled_quantiles(raw["pr"].sel(labels).values, [level], prompt_draws(12, 100))
        assert interval == percentile_interval(samples[:, 0])


def test_one_value_per_prompt_needs_no_position() -> None:
    raw = raw_values().isel(position=0)
    (interval,) = Bootstrap(lambda name: raw, resamples=50).quantiles("any", "pr", [({"node": "b", "site": "z"}, 0.5)])
    assert not isinstance(interval, str)
    assert interval[0] < interval[1]


def test_reading_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_values()
    monkeypatch.setattr(intervals, "BLOCK_BYTES", 2 * 3 * 12 * 7 * 4)
    panels = [((i, j), values.nbytes) for (i, j), values in intervals._blocks(raw["pr"], [(i, 0) for i in range(5)])]
    assert [index for index, _ in panels] == [(i, 0) for i in range(5)]
