"""The card with the scan's word on who erases whom, in place of what shares alone tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from repro.errors import ReproError
from repro.measures.agreement import STATISTICS
from repro.measures.card import DRAWS
from repro.measures.card import card as judged
from repro.scan.verdict import Scan


def claims_of(scan: Scan) -> dict[str, tuple[str, ...]]:
    """Return the claimed erasers of every writer that was scanned; an empty tuple where it has none.

    Writers with claimed erasers that are "taken back, not cleared" or lie "in few positions" are there with them: what
    is taken back of a logit does not depend on whether the stream is cleared. Raises ReproError (exit 2) for a scan of
    too few prompts to claim anything.
    """
    if not scan.enough_prompts:
        pairs = scan.pairs
        raise ReproError(
            f"erasers: the scan has {pairs.n_prompts} prompts, of which nothing can be claimed; at least "
            f"{pairs.least_prompts} are needed. Scan more, or leave erasers out to go by shares alone"
        )
    claimed = {writer.label: tuple(e.component for e in writer.erasers) for writer in scan.writers}
    return {label: claimed.get(label, ()) for label in scan.pairs.writers}


def card(raw: xr.Dataset, claims: Mapping[str, Iterable[str]], draws: int = DRAWS) -> xr.Dataset:
    """Return the card of a stored `dla_card` with the claims of a scan.

    raw: its raw arrays, as `repro.store.result.read_raw` gives them without prompts that are left out; claims: as
    `claims_of` gives them. Returns what `repro.measures.card.card` returns. Agreement: tests/scan/test_card_record.py.
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


def record(dataset: xr.Dataset) -> dict[str, Any]:
    """Return what a card says as JSON values: how attributions agree with ablation, and one row for each writer.

    Statistics are [lower, estimate, upper], 95 % over prompts, rounded to 4 digits; None where undefined.
    """
    agreement: dict[str, Any] = {}
    for kind in map(str, dataset["kind"].values):
        for ablation in map(str, dataset["ablation"].values):
            here = dataset.sel(kind=kind, ablation=ablation)
            rows = {
                str(name): {s: _numbers(here[s].sel(attribution=name)) for s in STATISTICS}
                for name in dataset["attribution"].values
            }
            counts = {name: int(here[name].sel(attribution="dla")) for name in ("pairs", "signed")}
            agreement.setdefault(kind, {})[ablation] = {**counts, "attributions": rows}
    writers = [
        {
            "writer": writer,
            "verdict": str(row["verdict"].item()),
            "credited": _numbers(row["mean_abs"].sel(attribution="dla")),
            "taken_back": _numbers(row["taken_back"]),
            "r": _numbers(row["taken_back_r"]),
            "net_effect": _numbers(row["mean_abs"].sel(attribution="held")),
            "total_effect": _numbers(row["total_abs"].sel(ablation="zero")),
            "erasers": [str(c) for c in dataset["component"].values if int(row["erases"].sel(component=c))],
            "erasers_from": str(row["erasers_from"].item()),
        }
        for writer in map(str, dataset["writer"].values)
        for row in (dataset.sel(writer=writer),)
    ]
    incomplete = dict(zip(map(str, dataset["form"].values), map(float, dataset["incomplete"].values), strict=True))
    return {
        "prompts": dataset.sizes["prompt"],
        "targets": dataset.sizes["target"],
        "incomplete": incomplete,
        "agreement": agreement,
        "writers": writers,
    }


def _numbers(bounds: xr.DataArray) -> list[float | None]:
    return [round(float(value), 4) if np.isfinite(value) else None for value in bounds.values]
