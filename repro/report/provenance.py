"""Where the numbers on the page come from: per experiment its key and when it was committed, and what all share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xarray as xr

from repro.figures.draw import Source
from repro.store.records import COMMIT


@dataclass(frozen=True)
class Origin:
    """One experiment's result."""

    experiment: str
    key: str
    prompts: int
    positions: int
    precision: str
    kernels: str
    device: str
    date: str
    """When it was committed, in UTC; empty for a copy."""


@dataclass(frozen=True)
class Provenance:
    """Where everything on the page comes from."""

    origins: tuple[Origin, ...]
    facts: tuple[tuple[str, str], ...]
    """What all results share: names and values."""
    versions: tuple[tuple[str, str], ...]


def provenance(results: Mapping[str, xr.Dataset], sources: Mapping[str, Source]) -> Provenance:
    """Return the origin of every result on the page.

    results: summaries by experiment, with their `provenance` in the attributes; sources: where each lies.
    Agreement: tests/report/test_page.py.
    """
    bodies = {name: json.loads(found.attrs["provenance"]) for name, found in results.items()}
    origins = tuple(_origin(name, results[name], body["environment"], sources[name]) for name, body in bodies.items())
    facts = _shared([_facts(body) for body in bodies.values()])
    versions = _shared([body["versions"] for body in bodies.values()])
    return Provenance(origins, tuple(facts.items()), tuple(sorted(versions.items())))


def _origin(name: str, found: xr.Dataset, environment: Mapping[str, Any], at: Source) -> Origin:
    return Origin(
        experiment=name,
        key=at.path.name if not at.stamp else "copy in git",
        prompts=int(found.attrs["n_prompts"]),
        positions=int(found.attrs["n_positions"]),
        precision=str(environment["precision"]),
        kernels=str(environment["kernels"]),
        device=str(environment["device"]),
        date=_committed(at.path) if not at.stamp else "",
    )


def _shared(facts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return every fact by its name; where results differ, all that they say."""
    names = dict.fromkeys(name for one in facts for name in one)
    return {name: ", ".join(dict.fromkeys(one[name] for one in facts if name in one)) for name in names}


def _facts(body: Mapping[str, Any]) -> dict[str, str]:
    host, key = body.get("host", {}), body["key"]
    return {
        "model": str(body["model"]),
        "weights, sha256": str(key.get("weights", "")),
        "prompts, sha256 of the tokens": str(key.get("tokens", "")),
        "Python": str(host.get("python", "")),
        "machine": f"{host.get('machine', '')}, {host.get('cpus', '')} CPUs",
    }


def _committed(path: Path) -> str:
    moment = datetime.fromtimestamp((path / COMMIT).stat().st_mtime, UTC)
    return moment.strftime("%Y-%m-%d %H:%M UTC")
