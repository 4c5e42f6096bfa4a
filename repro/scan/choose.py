"""From a committed scan to roles: its claims confirmed by real forwards, once for each result, and kept beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from repro.labels import is_node
from repro.scan.confirmation import Confirmation
from repro.scan.record import Pair, ScanRecord, load, save
from repro.scan.twin import Twin
from repro.scan.verdict import Scan, scan, to_confirm

if TYPE_CHECKING:
    from repro.model.decoder import Model

_RANKS = ("slightly", "in few positions", "taken back, not cleared")


def settled(
    path: Path,
    raw: Callable[[], xr.Dataset],
    tokens: np.ndarray,
    model: Callable[[], Model],
    named: Iterable[Pair] = (),
) -> ScanRecord:
    """Return what is kept of a scan, made and kept first where it is not there yet.

    path: the result directory; raw: reads its raw arrays, `positions_sampled` in the attributes; tokens: the prompts
    [prompt, position]; model: loads it; both are called only where something is to be made. named: pairs of the roles
    named in the spec; those of them that are claimed are confirmed, too. Agreement: tests/scan/test_record.py.
    """
    asked, before = frozenset(named), load(path)
    if before is not None and asked <= before.asked:
        return before
    arrays = raw()
    found = scan(arrays, draws=0)
    confirmed = {} if before is None else dict(before.confirmed)
    asked |= frozenset() if before is None else before.asked
    wanted = [pair for pair in dict.fromkeys((*to_confirm(found), *_claimed(found, asked))) if pair not in confirmed]
    if wanted:
        confirmed |= confirm_on(model(), tokens, wanted)
    record = _record(scan(arrays, confirmed=confirmed, draws=0), confirmed, asked)
    record = record if before is None else replace(record, twins=before.twins)
    save(path, record)
    return record


def with_twins(path: Path, record: ScanRecord, twins: Callable[[], tuple[Twin, ...]]) -> ScanRecord:
    """Return what is kept of a scan with what is claimed in untrained twins, looked at once for each result."""
    if record.twins:
        return record
    record = replace(record, twins=twins())
    save(path, record)
    return record


def confirm_on(model: Model, tokens: np.ndarray, wanted: list[Pair]) -> dict[Pair, Confirmation]:
    """Return what real forwards on the first prompts say of pairs."""
    import torch

    from repro.scan.confirm import PROMPTS, confirm

    with torch.inference_mode():
        ids = torch.from_numpy(tokens[:PROMPTS].astype(np.int64)).to(model.W_E.device)
        return confirm(model, ids, wanted)


def _claimed(found: Scan, asked: frozenset[Pair]) -> list[Pair]:
    """Return the claimed pairs among those that roles name; of a writer whose erasers are not named, all."""
    pairs = [(writer.label, eraser.component) for writer in found.writers for eraser in writer.erasers]
    return [(w, c) for w, c in pairs if (w, c) in asked or (w, "") in asked]


def _record(found: Scan, confirmed: dict[Pair, Confirmation], asked: frozenset[Pair]) -> ScanRecord:
    """Return the claims as what roles are chosen from: embeddings hold none."""
    writers = [writer for writer in found.writers if is_node(writer.label)]
    claimed = {
        writer.label: tuple(eraser.component for eraser in writer.erasers)
        for writer in writers
        if writer.words not in ("taken back, not cleared", "in few positions")
    }
    strongest, best = _strongest(found)
    if not strongest:
        candidate: tuple[str, tuple[str, ...]] = ("", ())
    elif writers:
        # Nothing is called erased: what is claimed at all is a better candidate than what is not.
        top = min(writers, key=lambda w: (_RANKS.index(w.words) if w.words in _RANKS else -1, -w.erased))
        candidate = (top.label, tuple(eraser.component for eraser in top.erasers))
    else:
        candidate = (best, (strongest[best],))
    erased = tuple(writer.label for writer in found.erased if is_node(writer.label))
    return ScanRecord(confirmed, asked, claimed, erased, candidate, strongest)


def _strongest(found: Scan) -> tuple[dict[str, str], str]:
    """Return of every node the component with the lowest path share beside what is usual there, and the lowest of all.

    Components whose whole output does not oppose the writer come last. Empty where nothing reads any node.
    """
    pairs = found.pairs
    specific = np.where(pairs.reads & np.isfinite(pairs.specific), pairs.specific, np.inf)
    specific = np.where(pairs.clean < 0, specific, specific + np.abs(np.nan_to_num(specific, posinf=0.0)).max() * 2 + 1)
    rows = [i for i, label in enumerate(pairs.writers) if is_node(label) and pairs.reads[i].any()]
    chosen = {pairs.writers[i]: pairs.components[int(np.argmin(specific[i]))] for i in rows}
    return chosen, pairs.writers[min(rows, key=lambda i: float(specific[i].min()))] if rows else ""
