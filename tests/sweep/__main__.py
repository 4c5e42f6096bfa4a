"""Sweep over tiny configurations of every causal language model of transformers, about four minutes on one core.

    python -m tests.sweep [ARCHITECTURE…]      # prints what becomes of each; of all of them, docs/sweep.md too

Exit code 1 if any configuration is neither right nor refused by name.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path

from tests.sweep.configurations import Drawn, drawn
from tests.sweep.outcome import NO_MODEL, WITHIN, WrongError, outcome

TABLE = Path(__file__).parents[2] / "docs" / "sweep.md"
HEAD = """# Sweep over configurations

Written by `python -m tests.sweep`. Tiny random configurations of the causal language models of transformers {version},
each saved as a directory and pointed at. *Right*: every site, head, MLP and logit is that of transformers' own modules
to {within:g} of the largest value in float64, on eight prompts at full length. *Refused*: one sentence that names a key
of `config.json`. A configuration that transformers itself cannot run is nobody's model, and counts nowhere.

{right} right, {refused} refused, {wrong} anything else; {models} architectures.

| model_type | right | refused | keys that were refused |
|---|---|---|---|
{rows}

Refused by `model_type` alone, one configuration each ({n_others} architectures): {others}.

Not run, since transformers could not run what was drawn ({n_none}): {none}.
"""
Found = dict[str, list[tuple[Drawn, str, str]]]


def sweep(only: list[str]) -> Found:
    """Try every configuration, or those of some architectures; by architecture, each with its outcome and sentence."""
    found: Found = defaultdict(list)
    for given in drawn():
        if only and given.kind not in only:
            continue
        with tempfile.TemporaryDirectory() as root:
            try:
                result, said = outcome(given, Path(root) / "model")
            except WrongError as error:
                result, said = "WRONG", str(error)
        found[given.kind].append((given, result, said))
        print(f"{given.name:<28} {result:<8} {given.settings} {said}", flush=True)
    return found


def table(found: Found) -> str:
    """The results in Markdown."""
    counts = Counter(result for tried in found.values() for _, result, _ in tried)
    rows, others, none = [], [], []
    for kind, tried in sorted(found.items()):
        of_kind = Counter(result for _, result, _ in tried)
        keys = sorted({key for _, result, said in tried if result == "refused" for key in refused_keys(said)})
        if of_kind[NO_MODEL] == len(tried):
            none.append(f"`{kind}`")
        elif keys == ["model_type"]:
            others.append(f"`{kind}`")
        else:
            rows.append(f"| {kind} | {of_kind['right']} | {of_kind['refused']} | {', '.join(keys)} |")
    return HEAD.format(
        version=version("transformers"),
        within=WITHIN,
        right=counts["right"],
        refused=counts["refused"],
        wrong=counts["WRONG"],
        models=len(rows) + len(others),
        rows="\n".join(rows),
        n_others=len(others),
        others=", ".join(others),
        n_none=len(none),
        none=", ".join(none),
    )


def refused_keys(said: str) -> list[str]:
    """The keys of config.json that a sentence names as not supported."""
    _, _, named = said.partition("not supported: ")
    return [part.split(" = ")[0] for part in named.partition(" in config.json")[0].split(", ") if " = " in part]


def main(only: list[str]) -> int:
    """Run the sweep, and write its table if it was of everything."""
    found = sweep(only)
    counts = Counter(result for tried in found.values() for _, result, _ in tried)
    print(dict(counts))
    if not only:
        TABLE.write_text(table(found))
    return 1 if counts["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
