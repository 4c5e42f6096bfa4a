"""What is kept of a scan beside its result: what real forwards said of its claims, the roles that follow, and what is
claimed in untrained twins.

Apart from `verdict` and `confirm`, so that planning needs neither scipy nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from repro import files
from repro.errors import ReproError
from repro.measures.roles import Roles
from repro.scan.confirmation import Confirmation
from repro.scan.twin import Twin
from repro.store.records import ROLES, plain

VERSION = 2
"""Raised with every change of the claims, of the confirmation, of the choice or of the twins that alters what a scan
says: what was kept by another version is stale, and made anew from the same result."""
Pair = tuple[str, str]


@dataclass(frozen=True)
class ScanRecord:
    """The claims of one scan, all positions but the first, once they have been confirmed. Heads and MLPs alone."""

    confirmed: Mapping[Pair, Confirmation]
    """What real forwards said of pairs (writer, component)."""
    asked: frozenset[Pair]
    """Pairs of roles named in the spec that were put to the same test."""
    claimed: Mapping[str, tuple[str, ...]]
    """Writers that meet all four conditions, each with its claimed erasers, in model order."""
    erased: tuple[str, ...]
    """Those of them that are called erased, the one with the largest erased share first."""
    candidate: tuple[str, tuple[str, ...]]
    """The strongest candidate where none is: a writer and its erasers."""
    strongest: Mapping[str, str]
    """Of every writer the component that takes most of it back, claimed or not."""
    twins: tuple[Twin, ...] = ()
    """What the same scan claims in untrained twins; empty where nobody asked."""

    def roles(self, writer: str, erasers: Literal["auto"] | tuple[str, ...]) -> Roles:
        """Return the roles that a subject declares, `auto` chosen and named ones put to the test.

        Chosen are the writer with the largest erased share and its claimed erasers. Where nothing is claimed the
        strongest candidate stands in, and `found` is False. Raises ReproError for a writer that nothing reads.
        Agreement: tests/scan/test_record.py.
        """
        if writer == "auto":
            found = bool(self.erased)
            chosen, its = (self.erased[0], self.claimed[self.erased[0]]) if found else self.candidate
            return Roles(chosen, its, found, "auto")
        claimed = self.claimed.get(writer, ())
        if isinstance(erasers, str):
            if not claimed and writer not in self.strongest:
                raise ReproError(f"writer: nothing reads {writer} in this model, so that nothing can erase it")
            return Roles(writer, claimed or (self.strongest[writer],), bool(claimed), "auto")
        left = tuple(label for label in erasers if label not in claimed)
        some = len(left) < len(erasers)
        return Roles(writer, erasers, some, "named", left if some else ())


def load(path: Path) -> ScanRecord | None:
    """Return what is kept beside the result at `path`; None if nothing is, or if it is stale or damaged."""
    try:
        body = files.load(path / ROLES)
    except ReproError:
        return None
    if body is None or body["version"] != VERSION:
        return None
    return ScanRecord(
        confirmed={
            (row["writer"], row["component"]): Confirmation(*map(float, row["shares"])) for row in body["confirmed"]
        },
        asked=frozenset((writer, component) for writer, component in body["asked"]),
        claimed={writer: tuple(erasers) for writer, erasers in body["claimed"].items()},
        erased=tuple(body["erased"]),
        candidate=(body["candidate"][0], tuple(body["candidate"][1])),
        strongest=body["strongest"],
        twins=tuple(
            Twin(row["scale"], row["seed"], tuple((w, c, p) for w, c, p in row["claims"]), row["enough"])
            for row in body.get("twins", ())
        ),
    )


def save(path: Path, record: ScanRecord) -> None:
    """Keep it beside the result at `path`, for good."""
    body: dict[str, Any] = {
        "version": VERSION,
        "confirmed": [
            {"writer": writer, "component": component, "shares": list(asdict(found).values())}
            for (writer, component), found in record.confirmed.items()
        ],
        "asked": sorted(record.asked),
        "claimed": record.claimed,
        "erased": record.erased,
        "candidate": record.candidate,
        "strongest": record.strongest,
        "twins": [asdict(twin) for twin in record.twins],
    }
    with files.disk(path):
        files.write_durably(path / ROLES, files.sealed(plain(body)))


def named_pairs(writer: str, erasers: Literal["auto"] | Sequence[str]) -> list[Pair]:
    """Return the pairs that a subject's declaration names; a writer alone is a pair without its second."""
    if writer == "auto":
        return []
    return [(writer, "")] if isinstance(erasers, str) else [(writer, label) for label in erasers]
