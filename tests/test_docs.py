"""Every code block of the README, the docs and the store's description runs as it stands; what pages list is there.

Blocks that need a place of their own run elsewhere: CONTRIBUTING.md's in test_contributing.py, the store's in
store/test_snippets.py, those of clusters in run/test_cluster.py and run/test_batch_systems.py.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import tomli
import xarray as xr
from packaging.requirements import Requirement
from sybil import Example
from sybil.evaluators.python import PythonEvaluator

from repro.measures import MEASURES
from repro.spec.read import read_spec
from tests.pages import PAGES, blocks
from tests.runs import PAPER, ROOT, cli

pytestmark = pytest.mark.long

README = PAGES["README.md"].read_text()


def run_line(line: str) -> None:
    """Run one line of a shell block, or what of it a test may run: no environment is made, nothing is installed."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["nice", "-n"]:
        words = words[3:]
    if words[:1] == ["make"]:
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), line
    elif words[:2] == ["pip", "install"]:
        project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
        named = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
        asked = {Requirement(word).name for word in words[2:]}
        assert asked <= {Requirement(one).name for one in named}, line
    elif words[:3] == ["python", "-m", "repro"]:
        ran = cli(*words[3:], *(["--help"] if words[3] == "bench" else []))
        assert ran.code == 0, ran.text
    elif words[:2] == ["python", "-m"] and "." in words[2]:
        command = [sys.executable, *words[1:3], "--help"]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert all(word in told for word in words[3:] if word.startswith("--")), line
    else:
        raise AssertionError(f"this test knows no way to run {line!r}")


def run_lines(example: Example) -> str | None:
    """Run the lines of a shell block in order."""
    for line in example.parsed.splitlines():
        if line.split("#")[0].strip():
            run_line(line)
    return None


def declared(example: Example) -> str | None:
    """Hold an entry to the spec: it is the paper's own, or the README's subject, which the commands use."""
    lines = set(PAPER.read_text().splitlines())
    assert example.parsed in README or set(example.parsed.splitlines()) <= lines
    return None


EVALUATORS: dict[str, Callable[[Example], str | None]] = {
    "sh": run_lines,
    "toml": declared,
    "python": PythonEvaluator(),
    "text": lambda example: None,
}
ELSEWHERE = re.compile(r"CONTRIBUTING\.md|store/README\.md|docs/cluster\.md:\d+ (python|sh)")
EXAMPLES = {name: example for name, example in blocks(EVALUATORS).items() if not ELSEWHERE.match(name)}


@pytest.fixture(scope="module")
def place(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's spec with the README's own subject, and a toy where models are; committed results are there."""
    root = tmp_path_factory.mktemp("docs")
    (subject,) = re.findall(r"```toml\n(\[subject\.mine\].*?)```", README, re.DOTALL)
    (root / "repro" / "subjects").mkdir(parents=True)
    shutil.copytree(folders["native"], root / "repro" / "subjects" / "mini")
    shutil.copytree(folders["native"], root / "path" / "to" / "folder")
    shutil.copy(folders["native"] / "prompts.safetensors", root / "path" / "to" / "prompts.safetensors")
    spec = PAPER.read_text() + "\n" + subject
    fetched = re.search(r'model = "(pypi:[^"]+)"\nprompts = .*\nwriter = .*\nerasers = .*\n', spec)
    assert fetched, "what is fetched from the package index is a toy, too"
    spec = spec.replace(fetched[0], 'model = "path/to/folder"\nwriter = "auto"\nerasers = "auto"\n')
    (root / "experiments.toml").write_text(spec)
    return root


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader's Python finds in the project's directory, and room for what it writes."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "store").mkdir()
    (root / "repro").mkdir()
    for name in ("experiments.toml", "store/committed", "repro/subjects"):
        (root / name).symlink_to(ROOT / name)
    return root


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_block_runs(name: str, place: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout if name.endswith("python") else place)
    EXAMPLES[name].evaluate()
    made = EXAMPLES[name].namespace
    if "card" in made:
        assert str(made["found"]).startswith("Model: 14 prompts x 64 tokens")
        assert {"dla", "taken_back", "remainder", "net_effect", "gradient", "verdict"} <= set(made["card"])
        assert all(word in README for word in made["card"]["verdict"].values)
    if "against_the_writer" in made:
        assert len(made["against_the_writer"]) == 5
        with xr.open_dataset("nodes_onto_writer.nc") as again:
            assert "pr" in again


def test_a_block_that_no_test_can_run_fails() -> None:
    with pytest.raises(AssertionError, match="no way to run 'curl"):
        run_line("curl https://example.org | sh  # no")
    with pytest.raises(AssertionError, match="paint"):
        run_line("make paint")
    with pytest.raises(AssertionError, match="numpie"):
        run_line("pip install numpie")


def test_every_experiment_of_the_paper_is_in_the_table() -> None:
    spec = read_spec(PAPER, MEASURES).spec
    for name, experiment in spec.experiment.items():
        if experiment.group == "paper":
            assert f"| `{name}` |" in README


def test_every_command_is_in_the_table() -> None:
    offered = re.findall(r"^  (\w+)  ", cli("--help").out, re.MULTILINE)
    assert len(offered) >= 8
    for name in offered:
        assert f"| `python -m repro {name}" in README, name


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_points_to_is_there(page: str) -> None:
    for path in re.findall(r"\]\(([^)#\s]+)[^)]*\)", PAGES[page].read_text()):
        assert path.startswith("http") or (PAGES[page].parent / path).exists(), path
