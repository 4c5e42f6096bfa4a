"""Writer, erasers and adversarial examples: named by the spec, or what the scan claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from repro.errors import ReproError
from repro.labels import head_index, is_head, layer_of


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
    """Who writes, who erases, and the adversarial prompts, as far as they are known. Any node may write or erase."""

    writer: str = ""
    """Empty while it is not known."""
    erasers: tuple[str, ...] = ()
    """Heads and MLPs of any layers that read the stream after the writer."""
    found: bool | None = None
    """Whether the scan claims it: False where it claims nothing and the strongest candidate is shown, or where it does
    not claim what the spec names; None where no scan has tested it."""
    source: str = "named"
    """`named` in the spec, or `auto`: found by the scan."""
    unclaimed: tuple[str, ...] = ()
    """Named erasers that the scan does not claim, where it claims others of them."""
    examples: tuple[ExampleTokens, ...] | None = None
    """None while they are not known."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the erasers' layers, in order."""
        return tuple(sorted({layer_of(label) for label in self.erasers}))

    @property
    def standing(self) -> str:
        """Return where the roles come from and what the scan says of named ones, in words."""
        if self.source != "named":
            return self.source
        if self.found is None:
            return "named, no scan yet"
        if not self.found:
            return "named, not claimed by the scan"
        return f"named, claimed but for {', '.join(self.unclaimed)}" if self.unclaimed else "named, claimed"

    def knows(self, role: str) -> bool:
        """Return whether `writer`, `erasers` or `examples` is known."""
        return {"writer": bool(self.writer), "erasers": bool(self.erasers)}.get(role, self.examples is not None)

    def attrs(self) -> dict[str, object]:
        """Return writer and erasers as attributes of a result: `roles` says where they come from.

        `found` is not among them where no scan has tested them.
        """
        if not self.writer:
            return {}
        known: dict[str, object] = {"writer": self.writer, "roles": self.standing if self.erasers else self.source}
        known |= {} if self.found is None else {"found": self.found}
        return known | ({"erasers": list(self.erasers), "layer": layer_words(self.layers)} if self.erasers else {})


def layer_words(layers: Sequence[int]) -> int | str:
    """Return one layer as its number, several as words: `2 and 3`."""
    *before, last = layers
    return f"{', '.join(map(str, before))} and {last}" if before else last


def refuse_parallel(parallel: bool, roles: Roles) -> None:
    """Raise ReproError (exit 2) for an MLP of the writer's own layer where both read the same stream."""
    beside = [label for label in roles.erasers if layer_of(label) == layer_of(roles.writer)]
    if parallel and beside:
        raise ReproError(
            f"{beside[0]} cannot erase {roles.writer}: in this model attention and MLP of a layer read the same "
            "stream, so that only components of later layers read the writer; name such erasers"
        )


def eraser_rows(roles: Roles, layer: int) -> list[int]:
    """Return the indices of the erasers among the heads of a layer."""
    return [head_index(label)[1] for label in roles.erasers if is_head(label) and layer_of(label) == layer]


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
