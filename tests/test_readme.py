"""The commands of the README and of the docs run, and their tables are what the program has."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import xarray as xr

from repro.measures import MEASURES
from repro.spec.read import read_spec
from tests.runs import PAPER, ROOT, cli

pytestmark = pytest.mark.long

README = (ROOT / "README.md").read_text()
PAGES = {page.name: page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


def commands(text: str) -> list[str]:
    """The lines of a page's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]


COMMANDS = commands(README)
OURS = list(
    dict.fromkeys(line for text in PAGES.values() for line in commands(text) if line.startswith("python -m repro "))
)


def test_the_readme_has_its_commands() -> None:
    assert "make paper" in COMMANDS
    assert "make test" in COMMANDS
    assert len(OURS) >= 5
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"paper", "test"} <= set(targets)


@pytest.fixture(scope="module")
def place(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's spec with the README's own subject, and a toy where the bundled model is."""
    root = tmp_path_factory.mktemp("readme")
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


@pytest.mark.parametrize("command", OURS)
def test_a_command_of_the_readme_runs(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    words = shlex.split(command)[3:]
    if words[0] == "bench":
        words = [*words, "--help"]
    ran = cli(*words)
    assert ran.code == 0, ran.text


def test_the_notebook_section_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    section = README[README.index("## In a notebook") : README.index("## The paper's figures")]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(ROOT)
    made: dict[str, object] = {}
    exec(code, made)
    assert str(made["found"]).startswith("Model: 14 prompts x 64 tokens")
    card = made["card"]
    assert isinstance(card, xr.Dataset)
    assert {"dla", "taken_back", "remainder", "net_effect", "gradient", "verdict"} <= set(card)
    for word in set(card["verdict"].values):
        assert word in section


def test_a_result_is_opened_as_the_readme_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(
        r"```python\n(import repro\n.*?)```", README[README.index("## Add an experiment") :], re.DOTALL
    )
    (tmp_path / "store").mkdir()
    (tmp_path / "repro").mkdir()
    for name in ("experiments.toml", "store/committed", "repro/subjects"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    made: dict[str, object] = {}
    exec(code, made)
    assert len(made["against_the_writer"]) == 5  # type: ignore[arg-type]
    with xr.open_dataset("nodes_onto_writer.nc") as again:
        assert "pr" in again


def test_the_worked_example_is_the_specs_own_entry() -> None:
    (entry,) = re.findall(r"```toml\n(\[experiment\.pr_by_position\].*?)```", README, re.DOTALL)
    declared = PAPER.read_text()
    assert all(line in declared for line in entry.splitlines())


@pytest.mark.parametrize("page", PAGES)
def test_every_entry_shown_is_the_specs_own_or_runs(page: str) -> None:
    declared = PAPER.read_text().splitlines()
    (run,) = re.findall(r"```toml\n(\[subject\.mine\].*?)```", README, re.DOTALL)
    for entry in re.findall(r"```toml\n(.*?)```", PAGES[page], re.DOTALL):
        assert entry == run or all(line in declared for line in entry.splitlines()), entry


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
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for path in re.findall(r"\]\(([^)#\s]+)[^)]*\)", PAGES[page]):
        assert path.startswith("http") or (folder / path).exists(), path
