"""The spec: what the paper declares, and what is refused, by file, line, table and key, everything at once.

Files in specs/refused say on each line that is refused what is said of it, behind `#>`.
"""

from __future__ import annotations

import json
import random
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest
import tomli
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from pydantic import BaseModel

import paper_figures
from repro.errors import Exit, ReproError
from repro.measures import MEASURES
from repro.spec import schema, source
from repro.spec.read import read_spec
from repro.spec.types import Spec, spec_type
from tests.runs import PAPER, SPECS

REFUSED = sorted((SPECS / "refused").glob("*.toml"))
LABELS = {
    "post_1_top": ("1 (top)", None),
    "post_1_bottom": ("1 (bottom)", None),
    "post_2": ("2", None),
    "post_3a": ("3a", None),
    "post_3b": ("3b", None),
    "post_4a": ("4a", None),
    "post_4b": ("4b", None),
    "post_5": ("5", None),
    "paper_1": (None, "1"),
    "paper_2": (None, "2"),
    "paper_3": (None, "3"),
    "paper_4": (None, "4"),
    "paper_5": (None, "5"),
    "appendix": ("appendix", None),
}


def spec_types() -> list[type[BaseModel]]:
    """Every type of table."""
    found: list[type[BaseModel]] = []

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in found:
            found.append(annotation)
            for field in annotation.model_fields.values():
                visit(field.annotation)
        for inner in get_args(annotation):
            visit(inner)

    visit(spec_type(MEASURES))
    return found


# --------------------------------------------------------------------------------------------------------- the paper


def test_the_paper_has_fourteen_figures_with_their_labels_in_both_sources() -> None:
    spec = read_spec(PAPER, MEASURES).spec
    paper = {
        name: figure for name, figure in spec.figure.items() if spec.experiment[figure.experiment].group == "paper"
    }
    assert {name: (figure.labels.post, figure.labels.paper) for name, figure in paper.items()} == LABELS
    assert len(paper) == 14


def test_figures_are_views_on_shared_experiments_and_nothing_is_computed_twice() -> None:
    spec = read_spec(PAPER, MEASURES).spec
    whole = {name: entry.model_dump(exclude={"about", "group"}) for name, entry in spec.experiment.items()}
    twice = [pair for pair in combinations(whole, 2) if whole[pair[0]] == whole[pair[1]]]
    assert twice == []
    for post, paper in (("post_3a", "paper_1"), ("post_2", "paper_2"), ("post_3b", "paper_3"), ("post_5", "paper_4")):
        assert spec.figure[post].experiment == spec.figure[paper].experiment
    viewed = {figure.experiment for figure in spec.figure.values()}
    drawn = {name for name, entry in spec.experiment.items() if entry.group == "paper"}
    assert drawn <= viewed, "every experiment of the paper is seen in a figure"
    assert len(drawn) == 5


def test_every_figure_says_only_what_its_chart_reads() -> None:
    for name, figure in read_spec(PAPER, MEASURES).spec.figure.items():
        known = getattr(paper_figures.load(figure.chart), "OPTIONS", {})
        assert set(figure.options) <= set(known), name


def test_the_texts_are_the_default_and_the_code_is_a_variant() -> None:
    """Where text and research code differ, the default group follows the text."""
    spec = read_spec(PAPER, MEASURES).spec
    paper = {name: entry for name, entry in spec.experiment.items() if entry.group == "paper"}
    assert all(getattr(entry, "quantiles", (0.25, 0.75)) == (0.25, 0.75) for entry in paper.values())
    scatter, code = spec.experiment["dla_scatter"].model_dump(), spec.experiment["dla_scatter_code"].model_dump()
    assert (scatter["target"], scatter["v_composition"], scatter["prompts"]) == ("top2", "attention", 30)
    assert (code["target"], code["v_composition"], code["prompts"]) == ("next_token", "same_position", 10)
    assert code["positions"] == (32, -2), "to 1022 of 1024 positions"


def test_gelu_4l_is_the_papers_subject_with_its_named_roles() -> None:
    spec = read_spec(PAPER, MEASURES).spec
    gelu = spec.subject["gelu-4l"]
    assert spec.run.paper_subject == "gelu-4l"
    assert spec.run.default_subjects == ("gelu-4l", "smollm2", "mini")
    assert (gelu.writer, gelu.erasers) == ("L0H2", tuple(f"L2H{head}" for head in range(2, 8)))
    assert not isinstance(gelu.examples, str)
    assert [(e.answer, e.other, e.head) for e in gelu.examples] == [
        (" bottom", " top", "L3H1"),
        (" State", " University", "L2H1"),
        (" __", " get", "L3H5"),
        (" Church", " church", "L2H2"),
    ]


# --------------------------------------------------------------------------------------------------------- refusals


def refusal(path: Path) -> list[str]:
    """The lines of the error that reading a file ends in."""
    with pytest.raises(ReproError) as caught:
        read_spec(path, MEASURES)
    assert caught.value.code == Exit.USAGE
    return caught.value.message.splitlines()


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_every_problem_is_told_at_once_by_line_table_and_key(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    said = [(number, words.strip()) for number, line in enumerate(lines, 1) for words in line.split("#>")[1:]]
    assert refusal(path) == [f"{path}:{number}: {words}" for number, words in sorted(said)]


def test_a_minimal_spec_is_read() -> None:
    loaded = read_spec(SPECS / "minimal.toml", MEASURES)
    assert loaded.folder == SPECS.resolve()
    assert loaded.spec.subject["toy"].erasers == ("L1H1", "L1H2")


def test_a_file_that_is_no_text_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b"[run]\n# caf\xe9\n")
    assert refusal(path) == [f"{path}:2: not UTF-8: byte 0xe9; save the file as UTF-8"]


def test_an_empty_file_lacks_every_table(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_bytes(b"")
    tables = ("experiment", "figure", "run", "subject")
    assert refusal(path) == [f"{path}:1: [{table}] is missing" for table in tables]


def test_a_missing_file_says_how_to_get_a_spec_and_a_folder_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "none.toml"
    papers = f"the paper's is {PAPER} (with --out . its results land here)"
    assert refusal(path) == [f"{path}: no such file; name a spec with --spec; {papers}"]
    # An installed copy has no spec beside it.
    monkeypatch.setattr(source, "_PAPERS", tmp_path / "nowhere")
    assert refusal(path) == [
        f"{path}: no such file; change to a checkout of this project, whose experiments.toml is the paper, or name a "
        "spec with --spec"
    ]
    assert refusal(tmp_path) == [f"{tmp_path}: cannot be read as a spec (Is a directory); name a TOML file with --spec"]


def test_marks_and_line_ends_of_other_systems_are_read(tmp_path: Path) -> None:
    text = (SPECS / "minimal.toml").read_text()
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_spec(path, MEASURES).spec == read_spec(SPECS / "minimal.toml", MEASURES).spec
    path.write_bytes(text.replace("\n", "\r\n").replace("post =", "pots =").encode())
    assert refusal(path)[0].startswith(f"{path}:21: [figure.one] labels.pots: unknown key.")


@pytest.mark.parametrize("depth", [50, 400, 20000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{ a = ", " }")])
def test_deep_nesting_is_refused_and_never_crashes(tmp_path: Path, depth: int, opening: str, closing: str) -> None:
    path = tmp_path / "deep.toml"
    text = (SPECS / "minimal.toml").read_text()
    path.write_text(text + f"\noptions = {{ a = {opening * depth}1{closing * depth} }}\n")
    (line,) = refusal(path)
    assert line.startswith((f"{path}:23: [figure.one] options", f"{path}:1: not a spec: nested too deeply"))


def test_a_damaged_spec_is_refused_with_a_sentence_whatever_the_damage(tmp_path: Path) -> None:
    """Lines of the paper's own spec lost, doubled, cut or given another value: read, or refused by line."""
    rng = random.Random(0)
    lines = PAPER.read_text().splitlines()
    path = tmp_path / "damaged.toml"
    refused: list[ReproError] = []
    for _ in range(60):
        damaged = list(lines)
        for _ in range(rng.randint(1, 3)):
            index = rng.randrange(len(damaged))
            line = damaged[index]
            value = rng.choice(["-1", "[[]]", '""', "1e400", "{}", "true", "[1, 'a']", "9" * 400, "1979-05-27"])
            damaged[index : index + 1] = rng.choice(
                [[], [line, line], [line[: len(line) // 2]], [line.split("=")[0] + "= " + value]]
            )
        path.write_text("\n".join(damaged))
        try:
            read_spec(path, MEASURES)
        except ReproError as error:
            refused.append(error)
    assert len(refused) > 20
    assert {error.code for error in refused} == {Exit.USAGE}
    for one in refused:
        assert all(line.startswith(f"{path}:") for line in one.message.splitlines()), one.message


# ------------------------------------------------------------------------------------------------- schema and documents


def test_the_committed_schema_is_current() -> None:
    assert schema.FILE.read_text(encoding="utf-8") == schema.text(MEASURES), "run `python -m repro.measures`"


def test_the_schema_takes_the_paper_and_refuses_what_the_types_refuse() -> None:
    validator = Draft202012Validator(json.loads(schema.text(MEASURES)))
    Draft202012Validator.check_schema(schema.schema(MEASURES))
    assert not list(validator.iter_errors(tomli.loads(PAPER.read_text())))
    for name in ("unknown_keys", "wrong_types", "missing_keys", "unknown_measure"):
        data = tomli.loads((SPECS / "refused" / f"{name}.toml").read_text())
        assert list(validator.iter_errors(data)), name


@pytest.mark.parametrize("table", spec_types(), ids=lambda table: table.__name__)
def test_every_table_and_every_field_is_documented(table: type[BaseModel]) -> None:
    assert table.__doc__
    own_words = {"measure"} | (set(table.model_fields) if issubclass(table, Spec) else set())
    for name, field in table.model_fields.items():
        assert field.description or name in own_words, f"{table.__name__}.{name}"


def test_every_experiment_type_has_a_measure_of_its_own() -> None:
    measures = [get_args(kind.model_fields["measure"].annotation)[0] for kind in MEASURES]
    assert len(set(measures)) == len(MEASURES) >= 7


# ------------------------------------------------------------------------------------------------------------- variants

BASE = """
[run]
default_subjects = ["toy"]
groups = ["paper"]
paper_subject = "toy"

[subject.toy]
model = "toy"

[experiment.patch]
measure = "v_patch"
about = "the patch"

[experiment.scatter]
measure = "dla_scatter"
"""


def with_variants(folder: Path, text: str) -> Path:
    path = folder / "spec.toml"
    path.write_text(f"{BASE}\n{text}\n[figure]\n")
    return path


def test_a_variant_is_what_it_varies_but_for_what_it_sets(tmp_path: Path) -> None:
    text = '[variant.own]\nof = "patch"\nscale = "recomputed"\nabout = "own scale"\n'
    text += '[variant.bf16]\nof = ["patch", "own"]\ngroup = "precision"\nprecision = "bf16"\nabout = "in bf16"\n'
    found = read_spec(with_variants(tmp_path, text), MEASURES).spec.experiment
    assert list(found) == ["patch", "scatter", "own", "patch_bf16", "own_bf16"]
    own, coarse, both = (found[name] for name in ("own", "patch_bf16", "own_bf16"))
    assert (own.scale, own.group, own.variant_of, own.about) == ("recomputed", "variants", "patch", "own scale")
    assert (coarse.scale, coarse.precision, coarse.group) == ("frozen", "bf16", "precision")
    assert (coarse.variant_of, coarse.about) == ("patch", "the patch, in bf16")
    assert (both.scale, both.precision, both.variant_of) == ("recomputed", "bf16", "own")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[variant.x]\nof = "patsch"\n', "18: [variant.x] of: no experiment \"patsch\". Did you mean 'patch'?"),
        ('[variant.x]\nof = ["patch", "no"]\n', '18: [variant.x] of: no experiment "no". Known: '),
        ("[variant.x]\nof = 3\n", "18: [variant.x] of: given 3; allowed: a string or an array of strings"),
        ('[variant.x]\nscale = "recomputed"\n', "17: [variant.x]: 'of' is missing; allowed: "),
        ('[variant.x]\nof = "patch"\nscale = "own"\n', '19: [variant.x] scale: given "own"; allowed: "frozen" or '),
        ('[variant.x]\nof = "patch"\nscael = "own"\n', "19: [variant.x] scael: unknown key. Did you mean 'scale'?"),
        ('[variant.scatter]\nof = "patch"\n', '17: [variant.scatter]: an experiment is called "scatter" already'),
    ],
)
def test_a_variant_that_cannot_be_is_refused_where_it_stands(tmp_path: Path, text: str, said: str) -> None:
    path = with_variants(tmp_path, text)
    with pytest.raises(ReproError) as caught:
        read_spec(path, MEASURES)
    (line,) = caught.value.message.splitlines()
    assert line.startswith(f"{path}:{said}")


def test_what_is_wrong_with_an_experiment_is_said_once_whatever_varies_it(tmp_path: Path) -> None:
    path = with_variants(tmp_path, '[variant.bf16]\nof = ["scatter"]\nprecision = "bf16"\n')
    path.write_text(path.read_text().replace('measure = "dla_scatter"', 'measure = "dla_scatter"\nprompts = 0'))
    with pytest.raises(ReproError) as caught:
        read_spec(path, MEASURES)
    (line,) = caught.value.message.splitlines()
    assert "[experiment.scatter] prompts: given 0" in line
