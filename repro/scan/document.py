"""The answer as data, `scan.json`: strata with their writers and claims, the verdict, what real forwards said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import quantile_test

from repro.labels import step_of
from repro.scan.claims import median, site_before, stratum
from repro.scan.confirmation import Confirmation
from repro.scan.table import verdict
from repro.scan.verdict import Eraser, Scan, Writer

OPPOSED = 50
"""Pairs that oppose in parallel, at most."""


def document(
    raw: xr.Dataset, rest: Scan, first: Scan, confirmed: Mapping[tuple[str, str], Confirmation]
) -> dict[str, Any]:
    """Return the answer as JSON values; docs/scan-json.md has every key.

    raw: the raw arrays of `path_shares`; rest, first: what was judged of them; confirmed: what real forwards said.
    Agreement: tests/scan/test_scan_json.py.
    """
    return {
        "prompts": rest.pairs.n_prompts,
        "verdict": verdict(rest),
        "found": bool(rest.erased),
        "strata": {
            "rest": {
                **_stratum(raw, rest, "rest", "claims"),
                "expected_false_pairs": rest.pairs.false_pairs,
                "halves": rest.halves,
                "opposed": [list(row) for row in rest.opposed[:OPPOSED]],
                "refuted": [list(pair) for pair in rest.refuted],
            },
            # Behind a common first token all prompts are one: what is seen there is no claim, and has no p-value.
            "first": _stratum(raw, first, "first", "observations" if first.pairs.alone else "claims"),
        },
        "confirmed": [{"writer": w, "component": c, **asdict(found)} for (w, c), found in confirmed.items()],
    }


def _stratum(raw: xr.Dataset, found: Scan, name: str, called: str) -> dict[str, Any]:
    values = stratum(raw, name)
    rows = {label: i for i, label in enumerate(map(str, raw["writer"].values))}
    places = {label: i for i, label in enumerate(map(str, raw["component"].values))}
    nodes = {label: i for i, label in enumerate(map(str, raw["node"].values))}

    def claim(writer: Writer, eraser: Eraser) -> dict[str, Any]:
        path = values["path"][rows[writer.label], places[eraser.component]]
        presence = values["presence"][nodes[writer.label]]
        row = {
            "writer": writer.label,
            "eraser": eraser.component,
            "clean_share": eraser.clean,
            "path_share": eraser.path,
            "specific_share": eraser.specific,
            "interval": median_interval(path),
            "z": eraser.z,
            "p_adjusted": eraser.p_adjusted,
            "presence_before": float(median(presence[site_before(eraser.component)])),
            "presence_after": float(median(presence[step_of(eraser.component)])),
            "confirmed": eraser.outcome,
            "remaining_after_ablation": eraser.remaining,
        }
        if called == "observations":
            del row["p_adjusted"]
        return row

    return {
        "pairs_tested": found.pairs.n_pairs,
        "pairs_corrected_for": found.pairs.family,
        "writers": [_writer(writer, found) for writer in found.writers],
        called: [claim(writer, eraser) for writer in found.writers for eraser in writer.erasers],
    }


def _writer(writer: Writer, found: Scan) -> dict[str, Any]:
    return {
        "writer": writer.label,
        "verdict": writer.words,
        "erased_share": writer.erased,
        "interval": list(writer.interval),
        "decoy_share": writer.decoys,
        "kind": writer.kind,
        "presence_before": writer.before,
        "presence_after": writer.after,
        "cleared": writer.cleared,
        "positions": writer.positions,
        "norm2": writer.norm2,
    }


def median_interval(values: np.ndarray) -> list[float]:
    """Return the exact 95 % interval of a median over prompts, from order statistics; NaN where too few are known."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return [float("nan")] * 2
    low, high = quantile_test(known, p=0.5).confidence_interval(0.95)
    return [float(low), float(high)]
