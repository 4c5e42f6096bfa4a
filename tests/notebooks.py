"""Notebooks executed in a clean place, their outputs kept without what differs from run to run.

`python -m tests.notebooks` executes those of `notebooks/` and writes their outputs into them.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from tests.runs import ROOT, environment

FOLDER = ROOT / "notebooks"
NEEDED = ("experiments.toml", "experiments.lock.json", "store/committed", "repro/subjects")
"""What a notebook reads of a checkout, beside the package."""
WORDS = re.compile(r"<text[^>]*>([^<]*)</text>")
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?")


def notebooks() -> list[Path]:
    """Every notebook of the project."""
    return sorted(FOLDER.glob("*.ipynb"))


def executed(path: Path, place: Path) -> Any:
    """The notebook with the outputs of a kernel of its own, in a checkout that holds no results but the committed ones.

    place: an empty folder. Raises nbclient.exceptions.CellExecutionError where a cell raises.
    """
    for name in NEEDED:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(ROOT / name)
    folder = place / "notebooks"
    folder.mkdir()
    notebook: Any = nbformat.read(path, as_version=4)
    own = {f"JUPYTER_{kind}_DIR": str(place / ".jupyter" / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with environment(**own, IPYTHONDIR=str(place / ".ipython"), PYTHONPATH=paths, OMP_NUM_THREADS="1"):
        client = NotebookClient(
            notebook,
            timeout=None,
            coalesce_streams=True,  # what is printed arrives in pieces, as many as a busy machine makes of it
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
            record_timing=False,
        )
        client.execute()
    return plain(notebook)


def plain(notebook: Any) -> Any:
    """The notebook without versions, and with names of its cells that do not change."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    return notebook


def texts(notebook: Any) -> Iterator[tuple[int, str]]:
    """Every cell's number and what it wrote, as text: of a picture the words and numbers in it."""
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            yield number, output.get("text", "") or data.get("text/plain", "")
            if (picture := data.get("image/svg+xml")) is not None:
                yield number, "\n".join(WORDS.findall(picture))


def same(one: str, other: str) -> bool:
    """Whether two outputs agree: all words, and numbers up to what another processor may round otherwise."""
    words = (" ".join(NUMBER.sub("#", text).split()) for text in (one, other))
    if len(set(words)) > 1:
        return False
    pairs = zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)
    return all(_near(first, second) for first, second in pairs)


def _near(first: str, second: str) -> bool:
    a, b = (float(text.replace(",", "")) for text in (first, second))
    decimals = 0 if "e" in first else len(first.partition(".")[2])
    return abs(a - b) <= max(1.01 * 10**-decimals if decimals else 0, 0.03 * abs(a))


def main() -> None:
    """Execute all notebooks, and write their outputs into them."""
    argparse.ArgumentParser(prog="python -m tests.notebooks", description=main.__doc__).parse_args()
    for path in notebooks():
        with tempfile.TemporaryDirectory() as place:
            nbformat.write(executed(path, Path(place)), path)
        print(path.relative_to(ROOT), f"{path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
