"""How well attributions agree with total effects: correlation, rank correlation, slope and sign."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

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
    for a in range(A):
        known = np.isfinite(total[a])
        x, y = found[:, known].astype(np.float64), total[a, known].astype(np.float64)
        out["pairs"][:, a] = y.size
        large = np.abs(y) > bar
        out["signed"][:, a] = large.sum()
        if large.any():
            out["sign_right"][:, a] = (np.sign(x[:, large]) == np.sign(y[large])).mean(-1)
        if y.size < 3 or np.ptp(y) == 0:
            continue
        out["pearson"][:, a], out["slope_of_total"][:, a] = _line(x, y)
        out["spearman"][:, a], _ = _line(rankdata(x, axis=-1), rankdata(y))
    return out


def _line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Pearson's r of each row of x [E, n] with y [n], and the slope of y on it; NaN where a row is constant."""
    dx, dy = x - x.mean(-1, keepdims=True), y - y.mean()
    covariance, variance = dx @ dy, np.square(dx).sum(-1)
    constant = np.ptp(x, axis=-1) == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        r, slope = covariance / np.sqrt(variance * (dy @ dy)), covariance / variance
    return np.where(constant, np.nan, r), np.where(constant, np.nan, slope)


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
