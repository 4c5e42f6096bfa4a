"""From a committed result of `path_shares` to the answer: judged, confirmed by real forwards, printed, kept as data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from repro.files import write_json
from repro.scan.confirmation import Confirmation
from repro.scan.table import answer
from repro.scan.verdict import Scan, scan, to_confirm

if TYPE_CHECKING:
    from repro.model.forward import Model

FILE = "scan.json"
"""Beside the figures: the answer as data, with the confirmations, which are not computed again for the same result."""


def answered(
    raw: xr.Dataset, key: str, subject: str, tokens: np.ndarray, model: Callable[[], Model], directory: Path
) -> list[str]:
    """Return the lines of the answer, and keep it as `scan.json`.

    raw: the raw arrays of the result, its `positions_sampled` in the attributes; key: of the result; tokens: the
    prompts; model: loads it, called only where claims are not confirmed yet. Agreement: tests/scan/test_answer.py.
    """
    found = scan(raw, draws=0)
    wanted = to_confirm(found)
    confirmed = _kept(directory / FILE, key)
    if not set(wanted) <= set(confirmed):
        confirmed = _confirmed(model(), tokens, wanted)
    rest, first = scan(raw, confirmed=confirmed), scan(raw, "first", draws=0)
    decoys = sum(str(label).startswith("decoy") for label in raw["writer"].values)
    directory.mkdir(parents=True, exist_ok=True)
    document = {"key": key, "subject": subject, "confirmed": _rows(confirmed), **_data(rest)}
    write_json(directory / FILE, document)
    return answer(rest, first, subject, tokens.shape[1], decoys)


def _confirmed(model: Model, tokens: np.ndarray, wanted: list[tuple[str, str]]) -> dict[tuple[str, str], Confirmation]:
    import torch

    from repro.scan.confirm import PROMPTS, confirm

    with torch.inference_mode():
        ids = torch.from_numpy(tokens[:PROMPTS].astype(np.int64)).to(model.W_E.device)
        return confirm(model, ids, wanted)


def _rows(confirmed: dict[tuple[str, str], Confirmation]) -> list[dict[str, Any]]:
    return [{"writer": w, "component": c, **asdict(found)} for (w, c), found in confirmed.items()]


def _kept(path: Path, key: str) -> dict[tuple[str, str], Confirmation]:
    """Return the confirmations kept for a result; none where the file is of another one or cannot be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = document["confirmed"] if document["key"] == key else []
        return {(row.pop("writer"), row.pop("component")): Confirmation(**row) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def kept_answer(directory: Path, key: str) -> dict[str, Any] | None:
    """Return what was kept of the answer from a result; None where it is of another one or cannot be read."""
    try:
        document: dict[str, Any] = json.loads((directory / FILE).read_text(encoding="utf-8"))
        return document if document["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _data(found: Scan) -> dict[str, Any]:
    """Return the answer as JSON values."""
    pairs, t = found.pairs, found.thresholds
    return {
        "found": bool(found.erased),
        "prompts": pairs.n_prompts,
        "pairs": pairs.n_pairs,
        "expected_false_pairs": pairs.false_pairs,
        "writers": [{**asdict(writer), "verdict": writer.words(t)} for writer in found.writers],
        "opposed": [list(row) for row in found.opposed[:50]],
        "refuted": [list(pair) for pair in found.refuted],
        "halves": found.halves,
    }
