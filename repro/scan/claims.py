"""Which pairs are claimed as erasure: four conditions on stored shares, each a column that a reader can see fail.

1. replicable: over prompts the path share's median lies below -d; exact sign test, Holm over all pairs of the stratum.
2. specific: z of the median against the component's decoys is at most -5, and it lies by d below the median over all
   writers through that component: trained components damp whatever stands in the stream.
3. net: the clean share's median lies below -d, too.
4. cleared, of a writer with all its claimed erasers: its presence lies in 0.5 to 4 before the first of them, and falls
   by at least half of its erased share E until after the last.

z is no p-value: 64 decoys do not resolve the tail that all pairs would need. What decoys themselves would be claimed
for is counted beside the claims (`false_pairs`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

import numpy as np
import xarray as xr
from scipy.stats import binom

from repro.labels import is_node, layer_of, step_of

LEVEL = 0.05


@dataclass(frozen=True)
class Thresholds:
    """What a claim needs."""

    d: float = 0.02
    """Least share of the writer that one pair takes back."""
    z: float = -5.0
    """Highest z of a claim: its median lies at least five of the decoys' standard deviations below their mean."""
    present: tuple[float, float] = (0.5, 4.0)
    """Range of the writer's presence before its first eraser."""
    mostly: float = 0.5
    partly: float = 0.25


THRESHOLDS = Thresholds()


@dataclass(frozen=True)
class Pairs:
    """Every pair of one stratum: writers W (decoys after them) by components C. Shares are medians over prompts."""

    writers: tuple[str, ...]
    components: tuple[str, ...]
    reads: np.ndarray
    """Whether the component reads the writer: [W, C]."""
    path: np.ndarray
    clean: np.ndarray
    usual: np.ndarray
    """Median of the path share over all writers through the component: [C]."""
    specific: np.ndarray
    """e: the path share less the usual one."""
    z: np.ndarray
    p_adjusted: np.ndarray
    """Holm's adjusted p-value of the sign test over all pairs of the stratum; 1 where there is no pair."""
    replicable: np.ndarray
    specific_enough: np.ndarray
    net: np.ndarray
    false_pairs: float
    """Pairs that decoys would be claimed for under conditions 1 and 2, scaled to the real pairs."""
    n_pairs: int
    family: int
    """Pairs of the whole model, to whose level claims are held: more than `n_pairs` where few components were asked."""
    n_prompts: int
    n_decoys: int
    """Decoys of every component."""
    alone: bool = False
    """Whether all prompts are one observation: the first position, where all begin with the same token."""
    kept: np.ndarray | None = None
    """Which pairs no intervention has refuted: [W, C]; None where none was tested."""

    @property
    def conditions(self) -> dict[str, np.ndarray]:
        """Which pairs meet each of the conditions 1 to 3, by name: [W, C]."""
        return {"replicable": self.replicable, "specific": self.specific_enough, "net": self.net}

    @property
    def claimed(self) -> np.ndarray:
        """Which pairs meet the conditions 1 to 3 and were not refuted: [W, C]."""
        met = self.replicable & self.specific_enough & self.net
        return met if self.kept is None else met & self.kept

    @property
    def least_prompts(self) -> int:
        """Return the smallest number of prompts with which any pair could be claimed."""
        return ceil(log2(max(self.family, 1) / LEVEL))


def sign_test(shares: np.ndarray, d: float) -> np.ndarray:
    """Return the p-value of 'the median over prompts lies below -d': exact, one-sided, no symmetry assumed.

    P(Binomial(n, 1/2) >= number of prompts below -d), n without NaN; as `scipy.stats.quantile_test`.
    shares: [..., prompt]. Agreement: tests/scan/test_claims.py.
    """
    defined = np.isfinite(shares)
    below = ((shares < -d) & defined).sum(-1)
    return np.asarray(binom.sf(below - 1, defined.sum(-1), 0.5))


def holm(p: np.ndarray, family: int = 0) -> np.ndarray:
    """Return Holm's adjusted p-values of a flat array; valid under any dependence.

    family: of how many tests they are part, where the others were not made: as if none of those could be rejected.
    """
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * (max(family, len(p)) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def judge_pairs(
    path: np.ndarray,
    clean: np.ndarray,
    writers: list[str],
    components: list[str],
    t: Thresholds = THRESHOLDS,
    family: int = 0,
    alone: bool = False,
) -> Pairs:
    """Return all pairs of a stratum judged by the conditions 1 to 3.

    path, clean: shares [writer, component, prompt], NaN where the component does not read the writer; writers: labels,
    decoys named decoy0, decoy1, … after the real ones; family: pairs of the whole model, where only some are here;
    alone: all prompts are one observation, which is judged by decoys without a p-value.
    Agreement: tests/scan/test_claims.py.
    """
    real = np.array([not label.startswith("decoy") for label in writers])
    n = int(real.sum())
    reads = np.isfinite(path).any(-1)
    middle, middle_clean = median(path), median(clean)
    decoys = middle[n:]
    mean, spread = np.nanmean(decoys, 0), np.nanstd(decoys, 0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (middle - mean) / spread
    usual = median(np.moveaxis(middle[:n], 0, -1))
    specific = middle - usual
    # Only real pairs are tested; decoys are held against the same bound to see what they would be claimed for.
    p = np.where(reads, sign_test(path, t.d), 1.0)
    adjusted = np.ones_like(p)
    tested = reads[:n]
    family = max(family, int(tested.sum()))
    adjusted[:n][tested] = holm(p[:n][tested], family)
    if alone:
        adjusted[:n] = np.nan
        with np.errstate(invalid="ignore"):
            p = np.where(middle < -t.d, 0.0, 1.0)
        accepted = tested & (p[:n] == 0)
    else:
        accepted = adjusted[:n] < LEVEL
    bound = p[:n][accepted].max() if accepted.any() else LEVEL / max(family, 1)
    specific_enough = np.nan_to_num((z <= t.z) & (specific <= -t.d))
    with np.errstate(invalid="ignore"):
        false = (p[n:] <= bound) & specific_enough[n:]
        net = middle_clean < -t.d
    rate = false.mean(0) if len(false) else np.zeros(len(components))
    return Pairs(
        writers=tuple(writers[:n]),
        components=tuple(components),
        reads=tested,
        path=middle[:n],
        clean=middle_clean[:n],
        usual=usual,
        specific=specific[:n],
        z=z[:n],
        p_adjusted=adjusted[:n],
        replicable=accepted,
        specific_enough=specific_enough[:n],
        net=net[:n],
        false_pairs=float((rate * tested.sum(0)).sum()),
        n_pairs=int(tested.sum()),
        family=family,
        alone=alone,
        n_prompts=int(np.isfinite(path).any((0, 1)).sum()),
        n_decoys=len(writers) - n,
    )


def median(values: np.ndarray) -> np.ndarray:
    """Return the median over the last axis without NaN; NaN where nothing is defined."""
    defined = np.isfinite(values).any(-1)
    out = np.full(values.shape[:-1], np.nan)
    if np.isfinite(values[defined]).all():
        out[defined] = np.median(values[defined], -1)
    else:
        out[defined] = np.nanmedian(values[defined], -1)
    return out


def erased_share(specific: np.ndarray, components: tuple[str, ...], erasers: np.ndarray) -> float:
    """Return E = 1 - prod over layers of (1 + sum of e over the claimed erasers in that layer).

    Each path refers to what the writer wrote, so shares of one layer add and layers compound.
    specific: e [C]; erasers: which components are claimed [C].
    """
    by_layer: dict[int, float] = {}
    for c in np.flatnonzero(erasers):
        layer = layer_of(components[c])
        by_layer[layer] = by_layer.get(layer, 0.0) + float(specific[c])
    return 1.0 - float(np.prod([1 + total for total in by_layer.values()]))


def site_before(component: str) -> int:
    """Return the index of the last site before a component writes, which it reads unless blocks are parallel."""
    return step_of(component) - 1


def pairs_of_model(nodes: list[str], components: list[str]) -> int:
    """Return how many pairs a scan of the whole model has, or 0 where `components` are all of its heads and MLPs.

    nodes: everything that may write. Pairs of a layer's heads with its own MLP are counted in parallel blocks, too, and
    those of a positional embedding in any model: claims are held to a level that is slightly stricter than it need be.
    """
    every = [label for label in nodes if is_node(label)]
    if set(every) <= set(components):
        return 0
    return sum(step_of(writer) < step_of(component) for component in every for writer in nodes)


def stratum(raw: xr.Dataset, name: str) -> dict[str, np.ndarray]:
    """Return the raw arrays of one stratum, prompts last."""
    return {str(key): np.asarray(raw[key].sel(stratum=name).values, np.float64) for key in raw.data_vars}
