"""What a scan finds: each writer with its claimed erasers, how much of it is erased, of what kind, how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from repro.errors import Exit, ReproError
from repro.labels import step_of
from repro.scan.claims import THRESHOLDS, Pairs, erased_share, judge_pairs, median, pairs_of_model, site_before, stratum
from repro.scan.confirmation import Confirmation

DRAWS = 200
FEW_POSITIONS = 0.05
"""A writer whose norm sits in a smaller share of the positions is an observation about those positions."""
_SAME = 1e-4
"""Path shares that differ by less between prompts are one observation, rounded."""
_NOTHING = 1e-3
"""Share of a writer that differs between prompts below which none does: the positional embedding, rounded."""


@dataclass(frozen=True)
class Eraser:
    """One claimed pair."""

    component: str
    path: float
    clean: float
    specific: float
    z: float
    p_adjusted: float
    outcome: str = "not tested"
    """Of the confirmation by real forwards: kept, weakened, or not tested. Refuted pairs are no longer claimed."""
    remaining: float | None = None
    """Clean share after zero ablation of the writer, over that before."""


@dataclass(frozen=True)
class Writer:
    """A writer with claimed erasers."""

    label: str
    erased: float
    """E, the share that its claimed erasers take back."""
    interval: tuple[float, float]
    """95 % over prompts, the claims made anew in each draw."""
    decoys: float
    """E of decoys through the same components, on average."""
    before: float
    """Presence before the first claimed eraser."""
    after: float
    """Presence after the last."""
    cleared: bool
    kind: str
    """`content` where what differs between prompts is erased, too, else `position`; empty where unknown."""
    positions: float
    """Effective share of positions that hold its norm."""
    norm2: float
    """Mean squared norm over the sampled positions, in squared activation units."""
    erasers: tuple[Eraser, ...]

    @property
    def words(self) -> str:
        """Return how much of it is erased, in words."""
        if not self.cleared:
            return "taken back, not cleared"
        if self.positions < FEW_POSITIONS:
            return "in few positions"
        if self.erased >= THRESHOLDS.mostly:
            return "mostly erased"
        return "partly erased" if self.erased >= THRESHOLDS.partly else "slightly"


@dataclass(frozen=True)
class Scan:
    """The answer for one stratum."""

    pairs: Pairs
    writers: tuple[Writer, ...]
    """With claimed erasers, the most erased first."""
    opposed: tuple[tuple[str, str, float], ...]
    """Writer, component and clean share of pairs that oppose without a path, the strongest first."""
    halves: tuple[float, float] | None
    """Correlation and median absolute difference of path shares between two halves, over claimed pairs."""
    refuted: tuple[tuple[str, str], ...] = ()
    """Pairs that met the conditions and that an intervention refuted: they count nowhere."""

    @property
    def erased(self) -> tuple[Writer, ...]:
        """Return the writers that are called erased."""
        return tuple(w for w in self.writers if w.words in ("mostly erased", "partly erased"))

    @property
    def enough_prompts(self) -> bool:
        """Return whether anything could have been claimed."""
        return self.pairs.alone or self.pairs.n_prompts >= self.pairs.least_prompts


def scan(
    raw: xr.Dataset,
    name: str = "rest",
    confirmed: Mapping[tuple[str, str], Confirmation] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Scan:
    """Return the answer from the raw arrays of `path_shares`, for one stratum.

    confirmed: what real forwards said of pairs (writer, component); a refuted pair is not claimed; draws: bootstrap.
    Every condition is that of `repro.scan.claims`; intervals by a bootstrap over prompts in which everything, claims
    included, is computed anew. Agreement: tests/scan/test_verdict.py.
    """
    confirmed = confirmed or {}
    values, labels = _finite(stratum(raw, name), name), list(map(str, raw["writer"].values))
    components = list(map(str, raw["component"].values))
    family = pairs_of_model(list(map(str, raw["node"].values)), components)
    alone = name == "first" and _alike(values["path"])
    pairs = judge_pairs(values["path"], values["clean"], labels, components, family=family, alone=alone)
    kept = np.ones_like(pairs.claimed)
    for (writer, component), tried in confirmed.items():
        at = pairs.writers.index(writer), components.index(component)
        kept[at] = tried.outcome(float(pairs.path[at])) != "refuted"
    lost = [(pairs.writers[w], components[c]) for w, c in np.argwhere(pairs.claimed & ~kept)]
    pairs = replace(pairs, kept=kept)
    n = len(pairs.writers)
    decoys = median(values["path"][n:]) - pairs.usual
    positions = 1 if name == "first" else int(raw.attrs["positions_sampled"])
    rows = [int(w) for w in np.flatnonzero(pairs.claimed.any(1))]
    intervals = _intervals(values, labels, pairs, rows, draws, seed)
    found = [
        _writer(pairs, w, values, decoys, positions, interval, confirmed)
        for w, interval in zip(rows, intervals, strict=True)
    ]
    found.sort(key=lambda w: (not w.cleared, -w.erased))
    return Scan(pairs, tuple(found), _opposed(pairs), _halves(values["path"][:n], pairs), tuple(lost))


def to_confirm(scan: Scan, most: int = 20) -> list[tuple[str, str]]:
    """Return the pairs worth real forwards: of what is shown, writer by writer, the largest shares first."""
    shown = scan.erased or scan.writers[:1]
    pairs = [(w.label, e.component) for w in shown for e in sorted(w.erasers, key=lambda e: e.specific)]
    return pairs[:most]


def _alike(path: np.ndarray) -> bool:
    """Return whether a stratum is the same in every prompt, as the first position is behind a common first token."""
    spread = np.ptp(path, -1)[np.isfinite(path).all(-1)]
    return bool(spread.size) and float(spread.max()) < _SAME


def _finite(values: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Return the arrays without prompts of which nothing is known: they count for nothing, in the bootstrap neither."""
    known = np.isfinite(values["path"]).any((0, 1))
    if not known.any():
        raise ReproError(f"path shares of the stratum {name!r}: not a single prompt has finite ones", Exit.FAILED)
    return {key: array[..., known] for key, array in values.items()}


def _writer(
    pairs: Pairs,
    w: int,
    values: Mapping[str, np.ndarray],
    decoys: np.ndarray,
    positions: int,
    interval: tuple[float, float],
    confirmed: Mapping[tuple[str, str], Confirmation],
) -> Writer:
    """Return a row of the pairs as a writer with its claimed erasers, in the order in which they read."""
    claimed, label = pairs.claimed[w], pairs.writers[w]
    order = sorted(np.flatnonzero(claimed), key=lambda c: step_of(pairs.components[c]))
    erasers = []
    for c in order:
        eraser = Eraser(
            component=pairs.components[c],
            path=float(pairs.path[w, c]),
            clean=float(pairs.clean[w, c]),
            specific=float(pairs.specific[w, c]),
            z=float(pairs.z[w, c]),
            p_adjusted=float(pairs.p_adjusted[w, c]),
        )
        if (tried := confirmed.get((label, eraser.component))) is not None:
            eraser = replace(eraser, outcome=tried.outcome(eraser.path), remaining=tried.remaining)
        erasers.append(eraser)
    start, end = site_before(pairs.components[order[0]]), step_of(pairs.components[order[-1]])
    presence, held, fixed = values["presence"][w], values["held"][w], values["held_self"][w]
    before, after = float(np.nanmedian(presence[start])), float(np.nanmedian(presence[end]))
    erased = erased_share(pairs.specific[w], pairs.components, claimed)
    low, high = THRESHOLDS.present
    cleared = low <= before <= high and before - after >= erased / 2
    kind = ""
    if np.isfinite(fixed).any():
        # Pooled over prompts, and no ratio: the share that differs can be small in one prompt, or nothing at all.
        rest = np.nansum(1 - fixed)
        fall = np.nansum(presence[start] - held[start]) - np.nansum(presence[end] - held[end])
        kind = "content" if rest > _NOTHING * len(fixed) and fall >= rest * erased / 2 else "position"
    norm2, norm4 = np.nansum(values["norm2"][w]), np.nansum(values["norm4"][w])
    count = positions * values["norm2"].shape[-1]
    share = float(norm2**2 / norm4 / count) if norm4 > 0 else 0.0
    own = [erased_share(row, pairs.components, claimed & np.isfinite(row)) for row in decoys]
    return Writer(
        label=label,
        erased=erased,
        interval=interval,
        decoys=float(np.mean(own)) if own else np.nan,
        before=before,
        after=after,
        cleared=bool(cleared),
        kind=kind,
        positions=share,
        norm2=float(norm2 / count),
        erasers=tuple(erasers),
    )


def _intervals(
    values: Mapping[str, np.ndarray], labels: list[str], judged: Pairs, rows: list[int], draws: int, seed: int
) -> list[tuple[float, float]]:
    """Return the 95 % interval of each row's erased share over prompts, the claims made anew in every draw."""
    if not rows or draws < 1:
        return [(np.nan, np.nan)] * len(rows)
    generator, n_prompts = np.random.default_rng(seed), values["path"].shape[-1]
    components, family, alone = list(judged.components), judged.family, judged.alone
    drawn = []
    for _ in range(draws):
        prompts = generator.integers(0, n_prompts, n_prompts)
        path, clean = values["path"][..., prompts], values["clean"][..., prompts]
        pairs = judge_pairs(path, clean, labels, components, family=family, alone=alone)
        pairs = replace(pairs, kept=judged.kept)
        drawn.append([erased_share(pairs.specific[w], pairs.components, pairs.claimed[w]) for w in rows])
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _opposed(pairs: Pairs) -> tuple[tuple[str, str, float], ...]:
    """Return the pairs whose clean output opposes the writer while the path carries none of it."""
    with np.errstate(invalid="ignore"):
        parallel = (pairs.clean < -0.1) & (pairs.path > -THRESHOLDS.d) & pairs.reads
    rows = [(pairs.writers[w], pairs.components[c], float(pairs.clean[w, c])) for w, c in np.argwhere(parallel)]
    return tuple(sorted(rows, key=lambda row: row[2]))


def _halves(path: np.ndarray, pairs: Pairs) -> tuple[float, float] | None:
    """Return how well two halves of the prompts agree on the path shares of claimed pairs."""
    claimed = pairs.claimed
    if claimed.sum() < 3 or path.shape[-1] < 4:
        return None
    one, other = (np.nanmedian(path[claimed][:, i::2], -1) for i in (0, 1))
    differ = np.ptp(one) > 0 and np.ptp(other) > 0
    correlation = float(np.corrcoef(one, other)[0, 1]) if differ else np.nan
    return correlation, float(np.median(np.abs(one - other)))
