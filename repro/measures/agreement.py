"""How well attributions agree with total effects: correlation, rank correlation, slope and sign."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

SIGNED = 0.1
"""Total effects smaller than this, in logits, have no sign that an attribution could miss."""
STATISTICS = ("pearson", "spearman", "slope_of_total", "sign_right")


def compare(found: np.ndarray, total: np.ndarray, bar: float = SIGNED) -> dict[str, np.ndarray]:
    """Return how well attributions agree with total effects, over n (node, prompt, target) triples.

    pearson and spearman: r of values and of ranks; slope_of_total: least-squares slope of the total effect on the
    attribution, 1 if it is the total effect; sign_right: share of triples with |total effect| > bar in which the
    sign is that of the total effect; pairs and signed: how many entered the first three and the last.
    found: logits [E, n], NaN nowhere; total: logits [A, n], with NaN where it is not known. Returns [E, A] each, NaN
    where nothing varies or fewer than three triples are known. Agreement: tests/measures/test_agreement.py, with
    scipy.stats.
    """
    E, A = len(found), len(total)
    out = {name: np.full((E, A), np.nan) for name in STATISTICS}
    out |= {name: np.zeros((E, A)) for name in ("pairs", "signed")}
    each: _Rows | None = None
    before = np.empty(0, bool)
    for a in range(A):
        known = np.isfinite(total[a])
        if each is None or not np.array_equal(known, before):
            each, before = _Rows(found[:, known].astype(np.float64)), known
        x, y = each.values, total[a, known].astype(np.float64)
        out["pairs"][:, a] = y.size
        large = np.abs(y) > bar
        out["signed"][:, a] = large.sum()
        if large.any():
            out["sign_right"][:, a] = (np.sign(x[:, large]) == np.sign(y[large])).mean(-1)
        if y.size < 3 or np.ptp(y) == 0:
            continue
        out["pearson"][:, a], out["slope_of_total"][:, a] = each.line(y)
        out["spearman"][:, a], _ = each.ranked.line(_ranks(y))
    return out


class _Rows:
    """Rows [E, n], and what lines on them need whatever lies above: each computed once."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @cached_property
    def ranked(self) -> _Rows:
        """Return the rows' ranks."""
        return _Rows(_ranks(self.values))

    @cached_property
    def centred(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows without their means, their sums of squares, and which are constant."""
        dx = self.values - self.values.mean(-1, keepdims=True)
        return dx, np.square(dx).sum(-1), np.ptp(self.values, axis=-1) == 0

    def line(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return Pearson's r of each row with y [n], and the slope of y on it; NaN where a row is constant."""
        dx, variance, constant = self.centred
        dy = y - y.mean()
        covariance = dx @ dy
        with np.errstate(divide="ignore", invalid="ignore"):
            r, slope = covariance / np.sqrt(variance * (dy @ dy)), covariance / variance
        return np.where(constant, np.nan, r), np.where(constant, np.nan, slope)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks along the last axis, those of equal values their mean."""
    from scipy.stats import rankdata  # here, because its import takes longer than planning does

    ranked: np.ndarray = rankdata(values, axis=-1)
    return ranked


def over_prompts(
    statistic: Callable[[np.ndarray], np.ndarray], n_prompts: int, draws: int, seed: int = 0
) -> np.ndarray:
    """Return a statistic with its 95 % interval by bootstrap over prompts: [lower, estimate, upper] first.

    statistic: from indices of prompts, with repeats, to an array of one shape; draws: 0 gives an interval of NaN. A
    prompt is drawn whole: targets of one prompt are no independent observations. Draws in which something is undefined
    are left out of its interval.
    """
    estimate = np.asarray(statistic(np.arange(n_prompts)), np.float64)
    if draws < 1 or n_prompts < 2:
        return np.stack((np.full_like(estimate, np.nan), estimate, np.full_like(estimate, np.nan)))
    generator = np.random.default_rng(seed)
    drawn = np.stack([statistic(generator.integers(0, n_prompts, n_prompts)) for _ in range(draws)])
    out = np.full((2, *estimate.shape), np.nan)
    defined = np.isfinite(drawn).any(0)
    out[:, defined] = np.nanquantile(drawn[:, defined], (0.025, 0.975), axis=0)
    return np.stack((out[0], estimate, out[1]))
