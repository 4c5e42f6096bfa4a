"""Writer, erasers and adversarial examples: named by the spec, or chosen by a plain rule from measured medians."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from repro.labels import head_index, heads_of, layer_of, site_after

SCORE_BAR = 0.5


@dataclass(frozen=True)
class ExampleTokens:
    """One adversarial prompt as token ids, with the pair of answers and the other head to show."""

    label: str
    tokens: tuple[int, ...]
    answer: int
    other: int
    text: str
    answer_text: str
    other_text: str
    head: str | None = None
    """The head shown beside the writer; nothing: the one with the largest DLA."""
    prompt: int | None = None
    """The row it was mined from; such an example never resamples from its own prompt."""
    right: bool = True
    """Whether a mined example's first prediction is the token that follows."""


@dataclass(frozen=True)
class Roles:
    """Who writes, who erases, and the adversarial prompts, as far as they are known.

    `found` is False where no head meets the rule and the strongest candidate is shown.
    """

    writer: str = ""
    """Empty while it is not known."""
    erasers: tuple[str, ...] = ()
    found: bool = True
    source: str = "named"
    """`named` in the spec, or `auto`: found by a rule."""
    examples: tuple[ExampleTokens, ...] | None = None
    """None while they are not known."""

    @property
    def layer(self) -> int:
        """Return the patched layer: the erasers'."""
        return layer_of(self.erasers[0])

    def knows(self, role: str) -> bool:
        """Return whether `writer`, `erasers` or `examples` is known."""
        return {"writer": bool(self.writer), "erasers": bool(self.erasers)}.get(role, self.examples is not None)

    def attrs(self) -> dict[str, object]:
        """Return writer and erasers as attributes of a result; `from_attrs` is the inverse."""
        if not self.writer:
            return {}
        known = {"writer": self.writer, "found": self.found, "roles": self.source}
        return known | ({"erasers": list(self.erasers), "layer": self.layer} if self.erasers else {})

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> Roles:
        """Return the roles that the attributes of a result tell of; a stored one has its erasers in one text."""
        erasers = attrs.get("erasers", ())
        erasers = erasers.split(", ") if isinstance(erasers, str) else erasers
        return cls(str(attrs["writer"]), tuple(erasers), bool(attrs["found"]), str(attrs["roles"]))


def eraser_rows(roles: Roles) -> list[int]:
    """Return the indices of the erasers among the heads of their layer."""
    return [head_index(label)[1] for label in roles.erasers]


@dataclass(frozen=True)
class WriterChoice:
    """The best-scoring head and every head's score."""

    writer: str
    scores: Mapping[str, float]

    @property
    def found(self) -> bool:
        """Return whether the best score reaches the bar."""
        return self.scores[self.writer] >= SCORE_BAR


def choose_writer(medians: np.ndarray, heads: Sequence[str], sites: Sequence[str]) -> WriterChoice:
    """Return the writer by rule: the head best seen right after writing and least at the end.

    score(w) = min(PR at its first site after writing, 1) - max |PR| at the last two sites, of medians over prompts x
    positions; heads of the last layer do not take part. medians: [head, site], dimensionless. Returns the choice with
    all scores (NaN medians score -inf). Agreement: tests/measures/test_roles.py, on the published table of gelu-4l.
    """
    last = max(int(site.removeprefix("resid_post")) for site in sites if site.startswith("resid_post"))
    index = {site: position for position, site in enumerate(sites)}
    scores: dict[str, float] = {}
    for row, head in zip(medians, heads, strict=True):
        if layer_of(head) == last:
            continue
        score = min(float(row[index[site_after(layer_of(head))]]), 1.0) - float(np.max(np.abs(row[-2:])))
        scores[head] = score if np.isfinite(score) else -np.inf
    return WriterChoice(max(scores, key=lambda head: scores[head]), scores)


@dataclass(frozen=True)
class EraserChoice:
    """The erasers, whether any head reaches the bar, and the sum of medians per later layer."""

    erasers: tuple[str, ...]
    found: bool
    layer_sums: Mapping[str, float]


def choose_erasers(medians: Mapping[str, float], writer_found: bool, bar: float) -> EraserChoice:
    """Return the erasers by rule: in the later layer whose heads' medians sum lowest, the heads at the bar or below.

    medians: median PR(head, writer) of every head of later layers, dimensionless. If the writer was not found or no
    head of that layer reaches the bar, the single most negative later head stands in and `found` is False.
    Agreement: tests/measures/test_roles.py, on the published bars of gelu-4l.
    """
    finite = {head: value if np.isfinite(value) else 0.0 for head, value in medians.items()}
    layers = sorted({layer_of(head) for head in finite})
    sums = {layer: sum(value for head, value in finite.items() if layer_of(head) == layer) for layer in layers}
    layer = min(sums, key=lambda key: sums[key])
    chosen = tuple(head for head in finite if layer_of(head) == layer and finite[head] <= bar)
    found = writer_found and bool(chosen)
    if not found:
        chosen = (min(finite, key=lambda head: finite[head]),)
    return EraserChoice(chosen, found, {f"layer {key}": value for key, value in sums.items()})


@dataclass(frozen=True)
class Mined:
    """One mined position: prompt row, position, the model's two first predictions, and whether the first is right."""

    prompt: int
    position: int
    first: int
    second: int
    right: bool


def choose_examples(
    dla: np.ndarray, first: np.ndarray, second: np.ndarray, actual: np.ndarray, count: int
) -> list[Mined]:
    """Choose positions of the writer's largest DLA among right predictions; distinct answers and prompts.

    dla (logits), first, second and actual (token ids): [prompt, position]. Where there are too few right predictions
    the rest is filled with wrong ones, marked so. Agreement: tests/measures/test_roles.py.
    """
    right = first == actual
    order = np.lexsort((-np.nan_to_num(dla, nan=-np.inf).ravel(), ~right.ravel()))
    chosen: list[Mined] = []
    for flat in order:
        prompt, position = divmod(int(flat), dla.shape[1])
        answer = int(first[prompt, position])
        if any(item.prompt == prompt or item.first == answer for item in chosen):
            continue
        chosen.append(Mined(prompt, position, answer, int(second[prompt, position]), bool(right[prompt, position])))
        if len(chosen) == count:
            break
    return chosen


def distinct_other_heads(
    clean: np.ndarray, heads: Sequence[str], writer: str, named: Sequence[str | None]
) -> list[str]:
    """Choose per example the head shown beside the writer: the named one, else the largest DLA not shown yet.

    clean: [example, head], logits. Agreement: tests/measures/test_roles.py.
    """
    shown: list[str] = []
    for row, name in zip(clean, named, strict=True):
        ranked = [heads[index] for index in np.argsort(-row, kind="stable") if heads[index] != writer]
        shown.append(name or next((head for head in ranked if head not in shown), ranked[0]))
    return shown


def later_heads(writer: str, n_layers: int, n_heads: int) -> list[str]:
    """Return the labels of the heads in layers after the writer's."""
    return [head for layer in range(layer_of(writer) + 1, n_layers) for head in heads_of(layer, n_heads)]
