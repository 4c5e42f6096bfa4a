"""Sweep over tiny configurations of every causal language model of transformers: `python -m tests.sweep`."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.sweep.configurations import drawn
from tests.sweep.outcome import WrongError, outcome


def main(only: list[str]) -> int:
    """Try every configuration, or those of some architectures, and print what becomes of each."""
    counts: Counter[str] = Counter()
    for given in drawn():
        if only and given.kind not in only:
            continue
        with tempfile.TemporaryDirectory() as root:
            try:
                found, said = outcome(given, Path(root) / "model")
            except WrongError as error:
                found, said = "WRONG", str(error)
        counts[found] += 1
        print(f"{given.name:<28} {found:<8} {given.settings} {said}", flush=True)
    print(counts)
    return 1 if counts["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
