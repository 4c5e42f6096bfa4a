"""How often something is found, with one-sided Clopper-Pearson bounds at 95 %."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scipy.stats import binomtest


def bounds(found: int, n: int) -> tuple[float, float]:
    """Return the one-sided lower and upper 95 % bounds of a rate, each Clopper and Pearson's."""
    low, high = (
        binomtest(found, n, alternative=side).proportion_ci(0.95, method="exact") for side in ("greater", "less")
    )
    return float(low.low), float(high.high)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how many seeds found something, the rate, and its bounds."""
    n, found = len(rows), sum(row["found"] for row in rows)
    low, high = bounds(found, n)
    return {"seeds": n, "found": found, "rate": found / n, "at_least": round(low, 4), "at_most": round(high, 4)}


def line(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """Return a setting's line: `planted MLP: found in 99 of 100, at least 95 %, at most 100 % (cleared: 97)`."""
    s, cleared = summary(rows), sum(bool(row["cleared"]) for row in rows)
    share = f"at least {s['at_least']:.1%}, at most {s['at_most']:.1%}"
    return f"{name}: found in {s['found']} of {s['seeds']}, {share} (and cleared: {cleared})"
