"""The scan on the page: the sentence and its table, and every pair of nodes as numbers for the map."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from repro.labels import step_of
from repro.report.presence import presence_svg
from repro.scan.claims import Pairs, median
from repro.scan.confirmation import Confirmation
from repro.scan.expected import Case
from repro.scan.table import said_beside, size, verdict
from repro.scan.twin import Twin
from repro.scan.verdict import DRAWS, Scan, Writer, scan

STRATA = {"rest": "all positions but the first", "first": "the first position (one observation)"}
LARGEST = 20_000
"""Pairs up to which the map holds quartiles over prompts, too."""
REPLICABLE, SPECIFIC, NET, CLAIMED = 1, 2, 4, 8
"""Bits of a pair's conditions."""


@dataclass(frozen=True)
class ScanPart:
    """What the page says of the scan."""

    rest: Scan
    """All positions but the first."""
    verdict: str
    size: str
    """What was looked at: prompts, pairs, decoys."""
    beside: tuple[str, ...]
    """What else was found, and how sure it is."""
    confirmed: bool
    """Whether what is claimed was tried by real forwards."""
    picture: str
    """The presence of the most erased writer along the stream, as SVG."""
    map: dict[str, Any]
    """Every pair, for the script."""

    @property
    def minor(self) -> list[Writer]:
        """Return those not called erased: less of them is, in few positions, or their presence does not fall."""
        return [writer for writer in self.rest.writers if writer not in self.rest.erased]


def scan_part(raw: xr.Dataset, n_positions: int, document: Mapping[str, Any] | None) -> ScanPart:
    """Return the scan for the page.

    raw: the raw arrays of `path_shares`, without excluded prompts; document: `scan.json` of the same result, whose
    confirmations and intervals are taken over; None: nothing was confirmed, and intervals are drawn here.
    Agreement: tests/report/test_parts.py.
    """
    confirmed = _confirmations(document)
    rest = scan(raw, confirmed=confirmed, draws=DRAWS if document is None else 0)
    rest = replace(rest, writers=_with_intervals(rest.writers, document))
    first = scan(raw, "first", draws=0)
    told = document or {}
    twins = [Twin(**row) for row in told.get("untrained_twins") or ()]
    known = [Case(**row) for row in told.get("expected") or ()]
    return ScanPart(
        rest=rest,
        verdict=verdict(rest),
        size=size(rest, n_positions),
        beside=tuple(said_beside(rest, first, twins, known)),
        confirmed=bool(confirmed) or not rest.writers,
        picture=_picture(raw, rest.writers[0]) if rest.writers else "",
        map=_map(raw, {"rest": rest, "first": first}, confirmed),
    )


def _confirmations(document: Mapping[str, Any] | None) -> dict[tuple[str, str], Confirmation]:
    rows = [] if document is None else document["confirmed"]
    names = Confirmation.__dataclass_fields__
    return {
        (row["writer"], row["component"]): Confirmation(**{name: _float(row[name]) for name in names}) for row in rows
    }


def _float(value: float | None) -> float:
    """Return a number of a JSON document, where null stands for NaN."""
    return float("nan") if value is None else float(value)


def _with_intervals(writers: tuple[Writer, ...], document: Mapping[str, Any] | None) -> tuple[Writer, ...]:
    if document is None:
        return writers
    kept = {row["writer"]: row["interval"] for row in document["strata"]["rest"]["writers"]}
    return tuple(
        replace(w, interval=(_float(kept[w.label][0]), _float(kept[w.label][1]))) if w.label in kept else w
        for w in writers
    )


def _picture(raw: xr.Dataset, writer: Writer) -> str:
    seen = raw["presence"].sel(stratum="rest", node=writer.label).values
    bands = np.nanquantile(seen.astype(np.float64), (0.25, 0.5, 0.75), axis=-1)
    sites = [str(s) for s in raw["site"].values]
    marked = {step_of(e.component): e.component for e in writer.erasers}
    return presence_svg(sites, bands, step_of(writer.label), marked, writer.label)


def _map(
    raw: xr.Dataset, found: Mapping[str, Scan], confirmed: Mapping[tuple[str, str], Confirmation]
) -> dict[str, Any]:
    """Return every pair of both strata: arrays as base64 of float32 or of bytes, row by row."""
    pairs = found["rest"].pairs
    n = len(pairs.writers)
    read = np.flatnonzero(np.isfinite(pairs.path).any(axis=1))  # others write behind every component looked at
    names = [pairs.writers[i] for i in read]
    strata = {}
    for name, one in found.items():
        p = one.pairs
        conditions = REPLICABLE * p.replicable + SPECIFIC * p.specific_enough + NET * p.net + CLAIMED * p.claimed
        arrays = {
            "path": p.path,
            "clean": p.clean,
            "z": p.z,
            "p": p.p_adjusted,
            "usual": p.usual,
            "presence": median(raw["presence"].sel(stratum=name).values.astype(np.float64)),
        }
        if pairs.path.size <= LARGEST:
            path = raw["path"].sel(stratum=name).values[:n]
            arrays["low"], arrays["high"] = (_quantile(path, level) for level in (0.25, 0.75))
        strata[name] = {
            "about": STRATA[name],
            "conditions": base64.b64encode(conditions[read].astype(np.uint8).tobytes()).decode(),
            **{key: packed(values[read]) if values.ndim > 1 else packed(values) for key, values in arrays.items()},
        }
    rows = [[w, c, *_outcome(pairs, w, c, one)] for (w, c), one in confirmed.items()]
    w, c = _start(pairs, found["rest"].writers)
    return {
        "writers": names,
        "components": list(pairs.components),
        "sites": [str(s) for s in raw["site"].values],
        "steps": [[step_of(label) for label in labels] for labels in (names, pairs.components)],
        "prompts": pairs.n_prompts,
        "strata": strata,
        "confirmed": rows,
        "start": [names.index(pairs.writers[w]), c],
        "bits": [REPLICABLE, SPECIFIC, NET, CLAIMED],
    }


def _start(pairs: Pairs, writers: Sequence[Writer]) -> list[int]:
    """Return the pair that is chosen at first: the verdict's, else the strongest one."""
    if writers:
        eraser = min(writers[0].erasers, key=lambda e: e.specific)
        return [pairs.writers.index(writers[0].label), pairs.components.index(eraser.component)]
    return [int(i) for i in np.unravel_index(np.nanargmin(pairs.path), pairs.path.shape)]


def _outcome(pairs: Pairs, w: str, c: str, found: Confirmation) -> list[Any]:
    share = float(pairs.path[pairs.writers.index(w), pairs.components.index(c)])
    left = found.remaining
    return [found.outcome(share), left if np.isfinite(left) else None]


def packed(values: np.ndarray) -> str:
    """Return an array as base64 of little-endian float32, row by row."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


def _quantile(values: np.ndarray, level: float) -> np.ndarray:
    """Return a quantile over the last axis without NaN; NaN where nothing is defined."""
    out = np.full(values.shape[:-1], np.nan)
    defined = np.isfinite(values).any(-1)
    out[defined] = np.nanquantile(values[defined].astype(np.float64), level, axis=-1)
    return out
