"""What real forwards said of a claimed pair. Apart from `confirm`, so that reading an answer needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Confirmation:
    """What real forwards say of one claimed pair."""

    before: float
    """Clean share k on these prompts."""
    patched: float
    """k after the direct patch, with the clean norm scale."""
    patched_rescaled: float
    """The same with the scale of what is left."""
    zero: float
    """k after zero ablation of the writer."""
    mean: float
    """The same with the writer's mean over the other prompts at each position in its place."""
    resampled: float
    """The same with another prompt's."""

    def outcome(self, path: float) -> str:
        """Return kept, weakened or refuted. path: the claimed path share."""
        moved = min(self.patched, self.patched_rescaled, self.zero) - self.before
        return "refuted" if moved < abs(path) / 5 else "kept" if moved >= abs(path) / 2 else "weakened"

    @property
    def remaining(self) -> float:
        """What is left of k after zero ablation of the writer, as a share of k."""
        return self.zero / self.before if self.before else float("nan")
