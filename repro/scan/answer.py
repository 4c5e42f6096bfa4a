"""From a committed result of `path_shares` to the answer: judged, confirmed by real forwards, printed, and data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from repro.files import write_json
from repro.scan.choose import settled, with_twins
from repro.scan.document import document
from repro.scan.expected import compare
from repro.scan.table import answer
from repro.scan.twin import Twin
from repro.scan.verdict import scan

if TYPE_CHECKING:
    from repro.model.decoder import Model

FILE = "scan.json"
"""Beside the figures: the answer as data."""


def answered(
    raw: xr.Dataset,
    path: Path,
    subject: str,
    tokens: np.ndarray,
    model: Callable[[], Model],
    directory: Path,
    twins: Callable[[], tuple[Twin, ...]] | None = None,
    origin: tuple[str, str] = ("", ""),
) -> list[str]:
    """Return the lines of the answer, and write it as `scan.json`.

    raw: the raw arrays of the result at `path`, its `positions_sampled` in the attributes; tokens: the prompts; model:
    loads it, called only where claims are not confirmed yet; twins: looks at untrained twins, where somebody asks for
    them: once for each result, and told from then on; origin: where the model comes from and the name of its
    directory, for what is known of it elsewhere.
    Agreement: tests/scan/test_answer.py.
    """
    kept = settled(path, lambda: raw, tokens, model)
    kept = kept if twins is None else with_twins(path, kept, twins)
    confirmed = kept.confirmed
    rest, first = scan(raw, confirmed=confirmed), scan(raw, "first", draws=0)
    directory.mkdir(parents=True, exist_ok=True)
    known = compare(*origin, rest, first)
    data = {"key": path.name, "subject": subject, **document(raw, rest, first, confirmed)}
    data["expected"] = [asdict(case) for case in known]
    data["untrained_twins"] = [asdict(twin) for twin in kept.twins] or None
    write_json(directory / FILE, data)
    return answer(rest, first, subject, tokens.shape[1], kept.twins, known)


def kept_answer(directory: Path, key: str) -> dict[str, Any] | None:
    """Return what was kept of the answer from a result; None where it is of another one or cannot be read."""
    try:
        found: dict[str, Any] = json.loads((directory / FILE).read_text(encoding="utf-8"))
        return found if found["key"] == key and "strata" in found else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
