"""Exact reductions over prompts and positions, in bounded memory and without full sorts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

QUANTILE_LABELS = ("lower", "median", "upper")


def quantiles(values: np.ndarray, at: tuple[float, float]) -> tuple[np.ndarray, int]:
    """Return lower quantile, median and upper quantile of the non-NaN values, and how many are NaN.

    Linear interpolation between order statistics, as `numpy.nanquantile`, by partial selection instead of a sort.
    values: any shape, any unit; at: lower and upper probability, one on each side of 0.5. Returns (float64 [3], NaN
    count); NaN where nothing is left. Agreement: tests/measures/test_reduce.py.
    """
    flat = values.ravel()
    undefined = np.isnan(flat)
    # Undefined values are rare, and a copy takes half as long as a selection by a mask.
    kept = flat[~undefined] if undefined.any() else flat.copy()
    if kept.size == 0:
        return np.full(3, np.nan), flat.size
    places = np.array((at[0], 0.5, at[1])) * (kept.size - 1)
    low = np.floor(places).astype(np.int64)
    high = np.minimum(low + 1, kept.size - 1)
    below, above = np.empty(3), np.empty(3)
    # Selections of one element each are five times as fast as one of several; the outer two look on one side of the
    # median only, which itself must not be moved again.
    kept.partition(low[1])
    if low[0] < low[1]:
        kept[: low[1]].partition(low[0])
    if low[1] < low[2]:
        kept[low[1] + 1 :].partition(low[2] - low[1] - 1)
    for index, place in enumerate(low):
        below[index] = kept[place]
        above[index] = kept[place + 1 :].min() if high[index] > place else kept[place]
    return below + (above - below) * (places - low), int(flat.size - kept.size)


def quantiles_along(values: np.ndarray, at: tuple[float, float], axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `quantiles` over the last `axes` axes: ([quantile, …], NaN counts […])."""
    lead = values.shape[: values.ndim - axes]
    out, counts = np.empty((3, *lead)), np.empty(lead, dtype=np.int64)
    for index in np.ndindex(*lead):
        out[(slice(None), *index)], counts[index] = quantiles(values[index], at)
    return out, counts


@dataclass(frozen=True)
class Line:
    """A least-squares line y = slope x + intercept over n points, and Pearson's r."""

    r: float
    slope: float
    intercept: float
    n: int


def fit_line(x: np.ndarray, y: np.ndarray) -> Line:
    """Return Pearson's r and the least-squares line of y on x over the points where both are finite.

    x, y: equal shapes. r, slope and intercept are NaN with fewer than two points or no variance.
    Agreement: tests/measures/test_reduce.py, against scipy.stats.linregress.
    """
    good = np.isfinite(x) & np.isfinite(y)
    a, b = x[good].astype(np.float64), y[good].astype(np.float64)
    if a.size < 2 or np.ptp(a) == 0:
        return Line(np.nan, np.nan, np.nan, int(a.size))
    da, db = a - a.mean(), b - b.mean()
    covariance, variance = float(da @ db), float(da @ da)
    slope = covariance / variance
    # Equal values need not equal their rounded mean, so that nothing varies shows in their range and not in a sum.
    r = covariance / np.sqrt(variance * float(db @ db)) if np.ptp(b) > 0 else np.nan
    return Line(float(r), slope, float(b.mean() - slope * a.mean()), int(a.size))


def variance_shares(values: np.ndarray) -> np.ndarray:
    """Return how much of the variance of [prompt, position] lies between prompts, positions, and in neither.

    Two-way split without replication: with row means r_i, column means c_j and grand mean m,
    sum (v_ij - m)² = P sum (r_i - m)² + N sum (c_j - m)² + sum (v_ij - r_i - c_j + m)². Positions at which any prompt
    is undefined are left out. Returns [3], dimensionless, adding up to 1; NaN if nothing varies or is left.
    Agreement: tests/measures/test_reduce.py.
    """
    kept = values[:, ~np.isnan(values).any(0)].astype(np.float64)
    if kept.size == 0 or np.ptp(kept) == 0:
        return np.full(3, np.nan)
    centred = kept - kept.mean()
    rows, columns = centred.mean(1), centred.mean(0)
    total = float((centred**2).sum())
    prompt = kept.shape[1] * float(rows @ rows) / total
    position = kept.shape[0] * float(columns @ columns) / total
    return np.array((prompt, position, 1 - prompt - position))


def density_edges(x: np.ndarray, y: np.ndarray, bins: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of equal bins, along x and along y, that hold every point which is finite in both."""
    good = np.isfinite(x) & np.isfinite(y)
    edges = []
    for values in (x[good], y[good]):
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
        pad = 1e-6 * max(high - low, abs(high), 1e-12)
        edges.append(np.linspace(low - pad, high + pad, bins + 1))
    return edges[0], edges[1]


def density(x: np.ndarray, y: np.ndarray, x_edges: np.ndarray, y_edges: np.ndarray) -> np.ndarray:
    """Return how many points that are finite in both lie in each cell of a grid: [y, x]."""
    good = np.isfinite(x) & np.isfinite(y)
    counts, _, _ = np.histogram2d(y[good], x[good], bins=(y_edges, x_edges))
    return counts.astype(np.int64)
