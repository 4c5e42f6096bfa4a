"""The negative control of a scan: what it would claim in untrained twins of the model, where every claim is false.

A twin has the model's architecture and reads the same prompts; its weights are drawn anew with a declared seed, at two
scales (repro/scan/untrained.py). How often such a claim is made over many seeds: docs/findings.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from repro.measures.path_shares import PathShares
    from repro.model.decoder import Model

SEED = 0
SCALES = ("of an initialiser", "of the trained weights")
"""Standard deviation of the weights: that of the model's initialiser (`initializer_range` in its configuration, 0.02
where it names none, as GPT-2's and Llama's is), or of each trained matrix."""


@dataclass(frozen=True)
class Twin:
    """What the scan claims in one untrained twin."""

    scale: str
    """Which of SCALES."""
    seed: int
    claims: tuple[tuple[str, str, float], ...]
    """Writer, component and path share of every pair that meets the conditions 1 to 3, the strongest first."""
    enough: bool
    """Whether there are prompts enough to claim anything."""


def untrained_twins(
    model: Model,
    tokens: np.ndarray,
    measure: PathShares,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Twin, ...]:
    """Return what the same scan claims in a model's twins, one at each of SCALES.

    model: the trained one; tokens: its prompts [prompt, position]; measure: what it is scanned with; say: told how far
    it is. Agreement: tests/scan/test_twin.py.
    """
    from repro.progress import progress
    from repro.scan.examine import batches
    from repro.scan.untrained import twin

    with progress(len(SCALES) * batches(tokens), "batches of prompts through untrained twins", say) as advance:
        return tuple(
            claimed(twin(model, SEED, scale), tokens, measure, name, SEED, advance)
            for name, scale in zip(SCALES, (model.scales.initial, None), strict=True)
        )


def claimed(
    model: Model,
    tokens: np.ndarray,
    measure: PathShares,
    scale: str,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Twin:
    """Return what a scan claims in one model that was never trained."""
    from repro.scan.examine import examine

    found = examine(model, tokens, measure, advance)
    claims = [(w.label, e.component, e.path) for w in found.writers for e in w.erasers]
    return Twin(scale, seed, tuple(sorted(claims, key=lambda claim: claim[2])), found.enough_prompts)


def twins_line(twins: Sequence[Twin]) -> str:
    """Return the claims as a phrase: `untrained twins: no claim`, or how many at which scale, and the strongest."""
    if not all(twin.enough for twin in twins):
        return "untrained twins: too few prompts to claim anything"
    told = [
        f"{len(twin.claims)} claim{'s' * (len(twin.claims) > 1)} at the scale {twin.scale} "
        f"({twin.claims[0][0]} by {twin.claims[0][1]}, {twin.claims[0][2]:.2f})"
        for twin in twins
        if twin.claims
    ]
    return f"untrained twins: {', '.join(told) or 'no claim'}"
