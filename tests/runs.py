"""Commands run in process, finished runs to copy from, and small specs, for tests of the whole pipeline."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from repro.__main__ import main
from repro.measures import MEASURES
from repro.spec.read import read_spec
from repro.subjects.access import Access
from repro.subjects.resolve import choose

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "experiments.toml"
SPECS = Path(__file__).parent / "specs"


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Everything it wrote."""
        return self.out + self.err


def cli(*arguments: str | Path) -> Answer:
    """One command of `python -m repro`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Answer(code, out.getvalue(), err.getvalue())


def only_error(answer: Answer) -> str:
    """The one sentence of a command that refused: on the error stream, without a traceback."""
    (line,) = answer.err.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in answer.text
    return line.removeprefix("error: ")


@dataclass(frozen=True)
class Run:
    """A finished `all` of the default spec on one subject."""

    model: Path
    out: Path
    answer: Answer

    @property
    def subject(self) -> str:
        """The subject's name."""
        return subject_name(self.model)

    @property
    def store(self) -> Path:
        """Its results."""
        return self.out / "store" / self.subject

    @property
    def figures(self) -> Path:
        """Its figures."""
        return self.out / "paper_figures" / "out" / self.subject

    def copy(self, to: Path) -> Run:
        """The same run elsewhere, to be changed; modification times are kept."""
        shutil.copytree(self.out, to, dirs_exist_ok=True)
        return Run(self.model, to, self.answer)

    def cli(self, command: str, *arguments: str | Path, spec: Path = PAPER) -> Answer:
        """A command on this run."""
        return cli(command, *arguments, "--spec", spec, "--subject", self.model, "--out", self.out)

    def result(self, experiment: str) -> Path:
        """The one result of an experiment."""
        (found,) = (self.store / experiment).iterdir()
        return found


def subject_name(model: Path) -> str:
    """The name that a directory goes by, its digest included; a declared subject's is its own."""
    if not model.is_dir():
        return str(model)
    return choose(read_spec(PAPER, MEASURES), str(model), Access(model, offline=True)).name


def run_all(model: Path, out: Path) -> Run:
    """The default spec, automatic roles, on a model folder."""
    return Run(model, out, cli("all", "--spec", PAPER, "--subject", model, "--out", out))


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file below a folder with what a rewrite would change: modification time, inode, size."""
    return {
        file.relative_to(folder).as_posix(): (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and (stat := file.stat())
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
    }


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of plain values as TOML; a list of tables becomes inline tables."""

    def written(value: object) -> str:
        if isinstance(value, Mapping):
            return "{ " + ", ".join(f"{key} = {written(item)}" for key, item in value.items()) + " }"
        if isinstance(value, list | tuple):
            return "[" + ", ".join(written(item) for item in value) + "]"
        return json.dumps(value)

    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {written(value)}\n" for key, value in entries.items())
        for name, entries in tables.items()
    )


def notes(path: Path) -> list[dict[str, Any]]:
    """What the units' records say of how they were computed."""
    return [json.loads(file.read_text())["notes"] for file in sorted((path / "units").glob("*.json"))]


def lasting(store: Path) -> dict[str, bytes]:
    """The bytes of everything but provenance, which tells of threads and micro-batches, and what hashes it."""
    return {
        name: content
        for name, content in contents(store).items()
        if not name.endswith(("provenance.json", "COMMIT", "manifest.json"))
    }


def spoil(model: Path) -> None:
    """One value of the weights that is not a number."""
    weights = load_file(model / "model.safetensors")
    weights["blocks.1.attn.W_O"][0, 0, 0] = np.nan
    save_file(weights, model / "model.safetensors")


def with_spec(folder: Path, change: Callable[[str], str]) -> Path:
    """The paper's spec changed, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    path = folder / "experiments.toml"
    text = PAPER.read_text()
    changed = change(text)
    assert changed != text
    path.write_text(changed)
    return path
