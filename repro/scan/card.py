"""The card with the scan's word on who erases whom, in place of what shares alone tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import xarray as xr

from repro.measures.card import DRAWS
from repro.measures.card import card as judged
from repro.scan.verdict import Scan


def claims_of(scan: Scan) -> dict[str, tuple[str, ...]]:
    """Return the claimed erasers of every writer that was scanned; an empty tuple where it has none.

    Writers with claimed erasers that are "taken back, not cleared" or lie "in few positions" are there with them: what
    is taken back of a logit does not depend on whether the stream is cleared.
    """
    claimed = {writer.label: tuple(e.component for e in writer.erasers) for writer in scan.writers}
    return {label: claimed.get(label, ()) for label in scan.pairs.writers}


def card(raw: xr.Dataset, claims: Mapping[str, Iterable[str]], draws: int = DRAWS) -> xr.Dataset:
    """Return the card of a stored `dla_card` with the claims of a scan.

    raw: its raw arrays, as `repro.store.result.read_raw` gives them without prompts that are left out; claims: as
    `claims_of` gives them. Returns what `repro.measures.card.card` returns. Agreement: tests/scan/test_card.py.
    """
    values = {str(name): _last(raw[name]) for name in raw.data_vars}
    nodes = [str(label) for label in raw["node"].values]
    writers = [nodes[int(index)] for index in values["chosen"][:, 0]]
    components = [str(label) for label in raw["component"].values]
    named = {writer: tuple(erasers) for writer, erasers in claims.items()}
    return judged(values, writers, nodes, components, named, claimed_by="scan", draws=draws)


def _last(variable: xr.DataArray) -> np.ndarray:
    """Return a raw variable with prompts last, as it is declared."""
    return np.asarray(variable.transpose(..., "prompt").values)
