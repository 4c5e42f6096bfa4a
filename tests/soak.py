"""The long fault suite, not part of `make test`: 1,000 kills at random instants, then 5,000 flipped bits.

    python -m pytest -s tests/soak.py

Takes five to ten minutes on one core, and prints its counts.
"""

from __future__ import annotations

from pathlib import Path

from tests import campaigns, faulty
from tests.run.test_faults import folder

__all__ = ["folder"]


def test_a_thousand_kills(folder: Path) -> None:
    counts = campaigns.kill_at_random(folder, n_prompts=21, kills=1000, seed=2)
    print(f"\n{counts}")
    assert counts["kills"] >= 1000


def test_five_thousand_flipped_bits(folder: Path) -> None:
    path = folder / "s" / "e" / "k"
    faulty.run(path, n_prompts=9)
    counts = campaigns.flip_bits(path, flips=5000, seed=3)
    print(f"\n{counts}")
    assert sum(counts.values()) == 5000
