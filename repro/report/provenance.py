"""Where the numbers on the page come from: per experiment its key and when it was committed, and what all share."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    origins: list[Origin] = []
    versions: dict[str, dict[str, None]] = {}
    facts: dict[str, dict[str, None]] = {}
    for name, found in results.items():
        body = json.loads(found.attrs["provenance"])
        env, at = body["environment"], sources[name]
        origins.append(
            Origin(
                experiment=name,
                key=at.path.name if not at.stamp else "copy in git",
                prompts=int(found.attrs["n_prompts"]),
                positions=int(found.attrs["n_positions"]),
                precision=str(env["precision"]),
                kernels=str(env["kernels"]),
                device=str(env["device"]),
                date=_committed(at.path) if not at.stamp else "",
            )
        )
        for library, version in body["versions"].items():
            versions.setdefault(library, {})[version] = None
        for fact, value in _facts(body).items():
            facts.setdefault(fact, {})[value] = None
    return Provenance(
        tuple(origins),
        tuple((fact, ", ".join(values)) for fact, values in facts.items()),
        tuple((library, ", ".join(found)) for library, found in sorted(versions.items())),
    )


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
