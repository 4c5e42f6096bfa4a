"""The card kept in git: a stored card's statistics and verdicts as JSON, one entry for each subject.

python -m repro.card_record dla_card_nodes --subject mini
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from repro.errors import ReproError
from repro.files import disk, write_durably
from repro.measures.agreement import STATISTICS
from repro.notebook import open_result

KEPT = Path("store/committed/card.json")


def record(card: xr.Dataset) -> dict[str, Any]:
    """Return what a card says as JSON values: how attributions agree with ablation, and one row for each writer.

    card: a stored `dla_card`, as `repro.open` gives it. Statistics are [lower, estimate, upper], 95 % over prompts,
    rounded to 4 digits; None where undefined. Agreement: tests/scan/test_card_record.py.
    """
    agreement: dict[str, Any] = {}
    for kind in map(str, card["kind"].values):
        for ablation in map(str, card["ablation"].values):
            here = card.sel(kind=kind, ablation=ablation)
            rows = {
                str(name): {s: _numbers(here[s].sel(attribution=name)) for s in STATISTICS}
                for name in card["attribution"].values
            }
            counts = {name: int(here[name].sel(attribution="dla")) for name in ("pairs", "signed")}
            agreement.setdefault(kind, {})[ablation] = {**counts, "attributions": rows}
    return {
        "prompts": card.sizes["prompt"],
        "targets": card.sizes["target"],
        "incomplete": dict(zip(map(str, card["form"].values), map(float, card["incomplete"].values), strict=True)),
        "agreement": agreement,
        "writers": [_row(card.sel(writer=label)) for label in card["writer"].values],
    }


def _row(card: xr.Dataset) -> dict[str, Any]:
    """Return what is said of one writer."""
    return {
        "writer": str(card["writer"].item()),
        "verdict": str(card["verdict"].item()),
        "credited": _numbers(card["mean_abs"].sel(attribution="dla")),
        "taken_back": _numbers(card["taken_back"]),
        "r": _numbers(card["taken_back_r"]),
        "net_effect": _numbers(card["mean_abs"].sel(attribution="held")),
        "total_effect": _numbers(card["total_abs"].sel(ablation="zero")),
        "erasers": [str(c) for c in card["component"].values if int(card["erases"].sel(component=c))],
        "erasers_from": str(card["erasers_from"].item()),
    }


def _numbers(bounds: xr.DataArray) -> list[float | None]:
    return [round(float(value), 4) if np.isfinite(value) else None for value in bounds.values]


def _read(path: Path) -> dict[str, Any]:
    """Return what is kept already; nothing where there is no file."""
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ReproError(f"{path}: not JSON ({error}); restore it, or write elsewhere with --to") from None
    return kept


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a stored card's entry into the file; the slice that a test computes anew stays as it is."""
    parser = argparse.ArgumentParser("python -m repro.card_record", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", help="the experiment whose result is kept: dla_card or dla_card_nodes")
    parser.add_argument("--subject", required=True)
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--to", type=Path, default=KEPT)
    given = parser.parse_args(arguments)
    try:
        card = open_result(given.subject, given.experiment, prompts=given.prompts, out=given.out)
        if card.attrs["measure"] != "dla_card":
            raise ReproError(f"{given.experiment}: a {card.attrs['measure']}; give an experiment that is a dla_card")
        kept = _read(given.to)
        kept[given.subject] = {**kept.get(given.subject, {}), **record(card)}
        with disk(given.to):
            write_durably(given.to, (json.dumps(kept) + "\n").encode())
    except ReproError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
