"""How often a scan is wrong: every claim in an untrained twin is false, and planted erasers are to be found.

    python -m repro.scan.controls --seeds 200 --out store/committed/controls.json

measures both on small random models of GPT-2's and Llama's kinds, at two scales of their weights: twins over all seeds,
planted erasers over half as many, other strengths of one eraser over a tenth. It goes on where it was stopped, prints a
line per setting, and writes every seed's outcome; a larger --seeds adds to what is there. A seed takes 0.5 to 1.2
seconds, three to five if 256 wide. A tenth of it: tests/scan/test_controls.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repro.errors import Exit, ReproError
from repro.files import disk, write_durably
from repro.labels import heads_of, is_head, layer_of, sites
from repro.measures.path_shares import PathShares
from repro.measures.role_shares import RoleShares
from repro.measures.roles import Roles
from repro.model.decoder import Model
from repro.model.folder import Shape
from repro.scan.claims import THRESHOLDS, site_before
from repro.scan.examine import examine, measured
from repro.scan.rates import line, summary
from repro.scan.untrained import KINDS, copied, opposed, planted, scaled, untrained
from repro.scan.verdict import Scan

MADE_WITH: dict[str, Any] = {
    "path_shares": PathShares.version,
    "positions": 64,
    "stride": 4,
    "decoys": 64,
    "planting": 2,
    "vocabulary": 512,
    **asdict(THRESHOLDS),
}
"""What every outcome depends on beside its setting: outcomes of others are not continued."""
MEASURE = PathShares(measure="path_shares", stride=MADE_WITH["stride"], decoys=MADE_WITH["decoys"])
CALIBRATION = RoleShares(measure="role_shares", stride=MADE_WITH["stride"], decoys=8)
"""The same shares through what is planted alone, with fewer decoys, which shares do not depend on."""


@dataclass(frozen=True)
class Setting:
    """One line of the campaign: what is planted into random models, over seeds that take turns in kind and scale."""

    name: str
    what: str
    erasers: tuple[str, ...] = ()
    """Which components erase; none in an untrained twin."""
    strength: float = 0.0
    """Path share that each is to have; of one in parallel, its clean share."""
    in_parallel: bool = False
    """Whether they only oppose the writer: nothing flows."""
    kinds: tuple[str, ...] = tuple(KINDS)
    scales: tuple[float, ...] = (0.02, 0.2)
    prompts: int = 14
    layers: int = 5
    heads: int = 4
    width: int = 96
    part: int = 2
    """It takes one in so many of the campaign's seeds."""

    def shape(self, kind: str) -> Shape:
        """Return the sizes of its models; Llama's kind has two heads to a key/value head."""
        kv_heads = self.heads // 2 if kind == "llama" else self.heads
        K, P, V = self.width // self.heads, MADE_WITH["positions"], MADE_WITH["vocabulary"]
        return Shape(self.layers, self.heads, kv_heads, self.width, K, 4 * self.width, P, V)

    def turn(self, seed: int) -> tuple[str, float]:
        """Return a seed's kind and scale."""
        turn = seed % (len(self.kinds) * len(self.scales))
        return self.kinds[turn // len(self.scales)], self.scales[turn % len(self.scales)]

    def drawn(self, seed: int) -> tuple[Model, np.ndarray]:
        """Return a seed's random model and its prompts, whose tokens are as unequally frequent as words are."""
        kind, scale = self.turn(seed)
        generator = np.random.default_rng(seed)
        ids = np.arange(1, MADE_WITH["vocabulary"])
        tokens = generator.choice(ids, (self.prompts, MADE_WITH["positions"]), p=1 / ids / (1 / ids).sum())
        tokens[:, 0] = 0
        return untrained(self.shape(kind), KINDS[kind], seed, scale), tokens


_TWIN = "any pair that meets conditions 1 to 3, a false claim"
_ANY = "any planted pair that meets conditions 1 to 3"
_NONE = "a pair that meets conditions 1 to 3 although nothing flows, a false claim"
_CURVE = (0.05, 0.1, 0.5, 1.0)
"""Strengths of the detection curve, beside -0.2."""
_TEN = tuple(f"L2H{head}" for head in range(10))
SETTINGS = (
    *(
        Setting(f"twins {kind} {scale}", _TWIN, kinds=(kind,), scales=(scale,))
        for kind in KINDS
        for scale in (0.02, 0.2)
    ),
    Setting("planted head", _ANY, ("L2H1",), -0.2),
    Setting("planted MLP", _ANY, ("MLP2",), -0.2),
    Setting("planted in two layers", _ANY, ("L1H2", "MLP3"), -0.2),
    Setting("in parallel, a copy", _NONE, ("L1H1",), -0.2, in_parallel=True, kinds=("gpt2",), scales=(0.02,)),
    Setting("in parallel, a bias", _NONE, ("MLP2",), -0.2, in_parallel=True),
    Setting("planted ten heads", _ANY, _TEN, -0.05, kinds=("gpt2",), prompts=16, layers=3, heads=16, width=256),
    Setting("planted MLP, wide", _ANY, ("MLP2",), -0.2, kinds=("gpt2",), prompts=16, layers=3, heads=16, width=256),
    *(
        Setting(f"planted {eraser}, {strength}", _ANY, (eraser,), -strength, part=10)
        for eraser in ("L2H1", "MLP2")
        for strength in _CURVE
    ),
)


def present_writer(setting: Setting, model: Model, tokens: np.ndarray) -> str:
    """Return the head of layer 0 whose presence is nearest to 1 where the first eraser reads.

    What is not there cannot be taken out: in a random model others write as much along a head's output as it does.
    """
    heads, site = heads_of(0, setting.heads), sites(setting.layers)[site_before(setting.erasers[0])]
    roles = Roles(erasers=setting.erasers[:1])
    presence = measured(model, tokens, CALIBRATION, roles=roles)["presence"].sel(stratum="rest", node=heads, site=site)
    return heads[int(np.abs(presence.median("prompt").values - 1).argmin())]


def calibrated(setting: Setting, model: Model, tokens: np.ndarray, writer: str) -> Model:
    """Return the model with the setting's erasers, each of the wanted strength.

    Shares are linear in what is planted: measured without it and with it, they say how much of it is needed. What an
    MLP's other hidden units write along the writer by chance is not planted: its bias takes their clean share to 0.
    """
    if setting.in_parallel and not is_head(setting.erasers[0]):
        return _biased(model, model, tokens, writer, setting.erasers[0], setting.strength)
    name = "clean" if setting.in_parallel else "path"
    for layer in sorted({layer_of(component) for component in setting.erasers}):
        here = [component for component in setting.erasers if layer_of(component) == layer]
        model = copied(model, writer, here[0]) if setting.in_parallel else planted(model, writer, here)
        shares, others = _shares(name, model, tokens, writer, here), [0.0] * len(here)
        if not is_head(here[0]):
            none = scaled(model, here[0], 0.0)
            others = _shares(name, none, tokens, writer, here)
            model = _biased(model, none, tokens, writer, here[0], 0.0)
        for component, share, rest in zip(here, shares, others, strict=True):
            model = scaled(model, component, (setting.strength - rest) / (share - rest))
    return model


def _biased(model: Model, measured_on: Model, tokens: np.ndarray, writer: str, mlp: str, wanted: float) -> Model:
    """Return the model with the bias that gives an MLP the wanted clean share in another model, its own as a rule."""
    rows = torch.from_numpy(tokens)
    none, full = (
        _shares("clean", opposed(measured_on, writer, mlp, rows, a), tokens, writer, [mlp])[0] for a in (0.0, 1.0)
    )
    return opposed(model, writer, mlp, rows, (wanted - none) / (full - none))


def _shares(name: str, model: Model, tokens: np.ndarray, writer: str, components: list[str]) -> list[float]:
    """Return the median shares, path or clean, that components have of a writer."""
    raw = measured(model, tokens, CALIBRATION, roles=Roles(erasers=tuple(components)))
    shares = raw[name].sel(stratum="rest", writer=writer, component=components)
    return [float(share) for share in shares.median("prompt")]


def outcome(setting: Setting, seed: int) -> dict[str, Any]:
    """Return what a scan says of one random model: `found`, and what there is to know beside it."""
    model, tokens = setting.drawn(seed)
    if not setting.erasers:
        return {"seed": seed} | _false(examine(model, tokens, MEASURE))
    writer = present_writer(setting, model, tokens)
    result = examine(calibrated(setting, model, tokens, writer), tokens, MEASURE)
    pairs = result.pairs
    w, columns = pairs.writers.index(writer), [pairs.components.index(component) for component in setting.erasers]
    claimed = pairs.claimed[w, columns]
    return {
        "seed": seed,
        "model": "{} {}".format(*setting.turn(seed)),
        "found": bool(claimed.any()),
        "writer": writer,
        "claimed": int(claimed.sum()),
        "cleared": any(found.label == writer and found.cleared for found in result.writers),
        "path": _rounded(pairs.path[w, columns]),
        "clean": _rounded(pairs.clean[w, columns]),
        "specific": _rounded(pairs.specific[w, columns]),
        "z": _rounded(pairs.z[w, columns]),
        "met": {name: int(met[w, columns].sum()) for name, met in pairs.conditions.items()},
        "others_through_them": int(pairs.claimed[:, columns].sum() - claimed.sum()),
        "elsewhere": int(np.delete(pairs.claimed, columns, 1).sum()),
        "listed_as_opposed": any(row[0] == writer and row[1] in setting.erasers for row in result.opposed),
    }


def _false(result: Scan) -> dict[str, Any]:
    pairs = result.pairs
    claims = [
        [pairs.writers[w], pairs.components[c], *_rounded((pairs.path[w, c], pairs.clean[w, c], pairs.z[w, c]))]
        for w, c in np.argwhere(pairs.claimed)
    ]
    return {
        "found": bool(claims),
        "cleared": sum(writer.cleared for writer in result.writers),
        "erased": len(result.erased),
        "smallest_path": round(float(np.nanmin(pairs.path)), 4),
        "claims": claims,
    }


def _rounded(values: Sequence[float] | np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


class Outcomes:
    """The file of a campaign: one row per setting and seed, kept as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, list[dict[str, Any]]] = {}
        if path.exists():
            try:
                held = json.loads(path.read_text())
                made_with, self.rows = held["made_with"], {name: s["rows"] for name, s in held["settings"].items()}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ReproError(f"{path}: not a file of outcomes; name another with --out", Exit.FAILED) from error
            if made_with != json.loads(json.dumps(MADE_WITH)):
                raise ReproError(f"{path}: made with {made_with}, now it is {MADE_WITH}; name another with --out")

    def write(self) -> None:
        """Write everything, one row a line."""
        parts = []
        for setting in SETTINGS:
            if rows := self.rows.get(setting.name):
                head = json.dumps({"what": setting.what} | summary(rows))[:-1]
                body = ",\n".join(f"   {json.dumps(row)}" for row in rows)
                parts.append(f'  "{setting.name}": {head}, "rows": [\n{body}\n  ]}}')
        text = f'{{\n "made_with": {json.dumps(MADE_WITH)},\n "settings": {{\n' + ",\n".join(parts) + "\n }\n}\n"
        with disk(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self.path, text.encode())


def seeds_of(setting: Setting, seeds: int) -> Iterator[int]:
    """Yield a setting's seeds: the four kinds of twins share them, everything planted takes half, its curve a tenth."""
    twins = [other.name for other in SETTINGS if not other.erasers]
    if setting.name in twins:
        return iter(range(twins.index(setting.name), seeds, len(twins)))
    return iter(range(seeds // setting.part))


def campaign(outcomes: Outcomes, seeds: int, tell: Callable[[str], None]) -> None:
    """Compute what is missing, write each outcome as it comes, and tell a line per setting."""
    for setting in SETTINGS:
        rows = outcomes.rows.setdefault(setting.name, [])
        done = {row["seed"] for row in rows}
        for seed in seeds_of(setting, seeds):
            if seed not in done:
                rows.append(outcome(setting, seed))
                outcomes.write()
        if rows:
            tell(line(setting.name, rows))
    twins = [row for s in SETTINGS if not s.erasers for row in outcomes.rows[s.name]]
    if twins:
        tell(line("all twins", twins))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign from the command line."""
    parser = argparse.ArgumentParser("python -m repro.scan.controls", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=200, help="untrained twins; planted erasers take half [200]")
    parser.add_argument("--out", type=Path, default=Path("store/committed/controls.json"), help="file of the outcomes")
    given = parser.parse_args(arguments)
    if given.seeds < 1:
        parser.error(f"--seeds {given.seeds}: at least 1")
    torch.set_num_threads(1)  # these products are too small to share
    try:
        campaign(Outcomes(given.out), given.seeds, lambda text: print(text, flush=True))
    except ReproError as error:
        print(error, file=sys.stderr)
        return int(error.code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
