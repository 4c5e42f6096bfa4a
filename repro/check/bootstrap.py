"""Cluster bootstrap over prompts: how far a pooled quantile, a correlation or a fit would move with other prompts.

Values at neighbouring positions of a prompt hang together, so whole prompts are drawn, never single tokens. A resample
is a row of multiplicities (how often each prompt was drawn); no value is copied, so memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Interval = tuple[float, float]
Floats = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 20240917
# With fewer clusters a percentile interval is far too narrow and would call agreement a difference.
MIN_PROMPTS = 10
BLOCK_BYTES = 128 * 2**20


def prompt_draws(n_prompts: int, resamples: int = RESAMPLES, seed: int = SEED) -> Floats:
    """Return how often each prompt occurs in each bootstrap resample of the prompts.

    draws[r] ~ Multinomial(n_prompts; 1/n_prompts, …), which is drawing n_prompts prompts with replacement (Efron 1979).
    n_prompts, resamples: counts. Returns Float[resample, prompt] of whole numbers, each row summing to n_prompts.
    Agreement: tests/check/test_intervals.py.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=resamples).astype(np.float64)


def percentile_interval(samples: Floats) -> Interval:
    """Return the central 95 % of a statistic's bootstrap distribution (percentile interval).

    samples: Float[resample]; resamples in which the statistic is undefined (NaN) are left out. Returns (low, high) in
    the statistic's unit, NaN if it is undefined everywhere. Agreement: tests/check/test_intervals.py (coverage).
    """
    defined = samples[~np.isnan(samples)]
    if not defined.size:
        return (np.nan, np.nan)
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return (float(low), float(high))


class _Order:
    """Pooled values in order, remembering whose prompt each is; finds order statistics of any resample.

    A resample's k-th smallest value is the first one at which the running sum of multiplicities exceeds k. Running sums
    over all values would take (resamples x values); sums over blocks of about sqrt(values) first, and then inside one
    block, give the same order statistic exactly with (resamples x sqrt(values)).
    """

    def __init__(self, values: NDArray[np.floating], draws: Floats) -> None:
        n_prompts = values.shape[0]
        pooled = values.reshape(n_prompts, -1)
        kept = ~np.isnan(pooled)
        flat, owner = pooled[kept], np.nonzero(kept)[0]
        order = np.argsort(flat, kind="stable")
        self.size = max(1, int(np.ceil(np.sqrt(flat.size))))
        blocks = max(1, -(-flat.size // self.size))
        counts = np.bincount(
            owner[order] * blocks + np.arange(flat.size) // self.size, minlength=n_prompts * blocks
        ).reshape(n_prompts, blocks)
        padding = blocks * self.size - flat.size
        # Padding belongs to a prompt that nobody draws.
        self.values = np.concatenate([flat[order].astype(np.float64), np.full(padding, np.nan)])
        self.owner = np.concatenate([owner[order], np.full(padding, n_prompts)])
        # Small whole numbers: a resample's sum inside one block fits float32 exactly, and half the memory moves.
        self.draws = np.hstack([draws, np.zeros((draws.shape[0], 1))]).astype(np.float32)
        # Whole numbers far below 2^53: sums in float64 are exact whatever their order.
        self.upto = np.cumsum(draws @ counts.astype(np.float64), axis=1)
        self.total = self.upto[:, -1]

    def at(self, rank: Floats) -> Floats:
        """Return the value of 0-based `rank[r]` in resample r."""
        rows = np.arange(rank.size)
        block = np.minimum((self.upto <= rank[:, None]).sum(axis=1), self.upto.shape[1] - 1)
        before = np.where(block > 0, self.upto[rows, block - 1], 0.0)
        place = block[:, None] * self.size + np.arange(self.size)
        running = np.cumsum(self.draws[rows[:, None], self.owner[place]], axis=1)
        inside = np.minimum((running <= (rank - before).astype(np.float32)[:, None]).sum(axis=1), self.size - 1)
        return self.values[block * self.size + inside]


def resampled_quantiles(values: NDArray[np.floating], levels: Sequence[float], draws: Floats) -> Floats:
    """Return exact quantiles over prompts x positions in every resample of the prompts.

    The quantile at level p of N pooled values is x_(k) + (h - k)(x_(k+1) - x_(k)), h = p(N - 1), k = floor(h): linear
    interpolation, as in every summary here; NaN values do not count.
    values: Float[prompt, ...]; levels: in [0, 1]; draws: Float[resample, prompt] multiplicities.
    Returns Float[resample, level] in the unit of values, NaN where a resample holds no value.
    Agreement: tests/check/test_intervals.py, against numpy.quantile on explicitly repeated prompts.
    """
    order = _Order(values, draws)
    empty = order.total == 0
    columns = []
    for level in levels:
        position = level * np.maximum(order.total - 1, 0)
        below = np.floor(position)
        low = order.at(below)
        high = order.at(np.minimum(below + 1, np.maximum(order.total - 1, 0)))
        columns.append(np.where(empty, np.nan, low + (position - below) * (high - low)))
    return np.stack(columns, axis=1)


def resampled_fits(x: NDArray[np.floating], y: NDArray[np.floating], draws: Floats) -> dict[str, Floats]:
    """Return Pearson's r, least-squares slope and intercept of y on x in every resample of the prompts.

    All three follow from per-prompt sums of 1, x, y, x^2, y^2, xy (about the common means, against cancellation):
    r = S_xy / sqrt(S_xx S_yy), slope = S_xy / S_xx, intercept = mean(y) - slope mean(x).
    x, y: Float[prompt, position]; pairs with a NaN do not count; draws: Float[resample, prompt].
    Returns Float[resample] under `pearson_r` (no unit), `slope` (unit of y per unit of x), `intercept` (unit of y).
    Agreement: tests/check/test_intervals.py, against numpy on explicitly repeated prompts.
    """
    valid = ~(np.isnan(x) | np.isnan(y))
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    mean_a, mean_b = a[valid].mean(), b[valid].mean()
    a, b = np.where(valid, a - mean_a, 0.0), np.where(valid, b - mean_b, 0.0)
    terms = np.stack([part.sum(axis=1) for part in (valid.astype(np.float64), a, b, a * a, b * b, a * b)], axis=1)
    n, s_a, s_b, s_aa, s_bb, s_ab = (draws @ terms).T
    with np.errstate(divide="ignore", invalid="ignore"):
        c_aa, c_bb, c_ab = s_aa - s_a * s_a / n, s_bb - s_b * s_b / n, s_ab - s_a * s_b / n
        slope = c_ab / c_aa
        intercept = mean_b + s_b / n - slope * (mean_a + s_a / n)
        return {"pearson_r": c_ab / np.sqrt(c_aa * c_bb), "slope": slope, "intercept": intercept}


class Bootstrap:
    """Intervals of stored experiments' summaries from their raw values, a bounded block of raw values at a time."""

    def __init__(self, raw: Callable[[str], xr.Dataset] | None, resamples: int = RESAMPLES) -> None:
        self._raw, self._resamples = raw, resamples
        self._draws: dict[int, Floats] = {}

    def quantiles(
        self, experiment: str, variable: str, panels: Sequence[tuple[Mapping[str, str], float]]
    ) -> list[Interval | str]:
        """Return bootstrap intervals of pooled quantiles of one raw variable.

        panels: pairs of (labels that select one panel, quantile level). Returns one interval per panel in the unit of
        the variable, or the reason why there is none. Agreement: tests/check/test_intervals.py.
        """
        found = self._open(experiment, [variable])
        if isinstance(found, str):
            return [found] * len(panels)
        array = found[variable].transpose(..., "prompt", "position", missing_dims="ignore")
        draws = self._for(array.sizes["prompt"])
        indices = [tuple(int(array.indexes[dim].get_loc(label)) for dim, label in ordered(array, p)) for p, _ in panels]
        levels: dict[tuple[int, ...], set[float]] = {}
        for index, (_, level) in zip(indices, panels, strict=True):
            levels.setdefault(index, set()).add(level)
        intervals: dict[tuple[tuple[int, ...], float], Interval] = {}
        for index, values in _blocks(array, sorted(levels)):
            wanted = sorted(levels[index])
            samples = resampled_quantiles(values, wanted, draws)
            intervals |= {(index, level): percentile_interval(samples[:, i]) for i, level in enumerate(wanted)}
        return [intervals[index, level] for index, (_, level) in zip(indices, panels, strict=True)]

    def medians(self, experiment: str, variable: str, labels: Mapping[str, str]) -> Floats | str:
        """Return the pooled median of one raw variable at some labels in every resample, or why there is none."""
        found = self._open(experiment, [variable])
        if isinstance(found, str):
            return found
        values = found[variable].sel(labels).transpose("prompt", ...).values
        return resampled_quantiles(values, [0.5], self._for(values.shape[0]))[:, 0]

    def fit(
        self, experiment: str, statistic: str, against: str, positions: tuple[int, int] | None = None
    ) -> Interval | str:
        """Return the bootstrap interval of `pearson_r`, `slope` or `intercept` of a scatter, or why there is none.

        positions: the first and last that enter, as raw values are stored for all of them; None: all.
        """
        found = self._open(experiment, ["writer_dla", "answer_dla"])
        if isinstance(found, str):
            return found
        if positions is not None:
            found = found.isel(position=slice(positions[0], positions[1] + 1))
        x = found["writer_dla"].transpose("prompt", "position").values
        y = found["answer_dla"].sel(against=against).transpose("prompt", "position").values
        return percentile_interval(resampled_fits(x, y, self._for(x.shape[0]))[statistic])

    def _open(self, experiment: str, variables: Sequence[str]) -> xr.Dataset | str:
        missing = "its raw values, which an interval over prompts needs, are not here"
        if self._raw is None:
            return missing
        try:
            found = self._raw(experiment)
        except KeyError:
            return missing
        if not set(variables) <= set(found.data_vars):
            return missing
        if found.sizes["prompt"] < MIN_PROMPTS:
            return f"an interval needs at least {MIN_PROMPTS} prompts and the result has {found.sizes['prompt']}"
        return found

    def _for(self, n_prompts: int) -> Floats:
        if n_prompts not in self._draws:
            self._draws[n_prompts] = prompt_draws(n_prompts, self._resamples)
        return self._draws[n_prompts]


def ordered(array: xr.DataArray, labels: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the labels of one panel in the order of the array's leading dimensions."""
    return [(str(dim), labels[str(dim)]) for dim in array.dims if dim not in ("prompt", "position")]


def _blocks(
    array: xr.DataArray, indices: Sequence[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], NDArray[np.floating]]]:
    """Yield each panel's values, read in blocks of the leading dimension (a chunk holds all labels of few prompts)."""
    first = array.dims[0]
    each = max(1, array.nbytes // array.sizes[first])
    per_block = max(1, BLOCK_BYTES // each)
    leading = sorted({index[0] for index in indices})
    for start in range(0, len(leading), per_block):
        chosen = leading[start : start + per_block]
        block = array.isel({first: chosen}).values
        for index in indices:
            if index[0] in chosen:
                yield index, block[(chosen.index(index[0]), *index[1:])]
