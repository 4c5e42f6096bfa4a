"""Drawing from the store: what is redrawn and what is left alone, what every figure says, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repro.errors import Exit, ReproError
from repro.figures import draw as under_test
from repro.figures.draw import Drawn, Source, draw, lack, missing_error, subtitle
from repro.measures import MEASURES
from repro.spec.read import read_spec
from repro.spec.types import Loaded
from repro.store.result import commit_reduced
from tests.runs import PAPER, Run, only_error, tree

Finished = Callable[[str], Run]
ATTRS: dict[str, Any] = {
    "subject": "toy",
    "model": "owner/toy",
    "n_prompts": 8,
    "n_positions": 40,
    "found": True,
    "examples": "named",
    "measure": "v_patch",
    "own": True,
}


@pytest.fixture
def rendered(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the figures rendered, with files in the place of pictures: rendering takes most of the time."""
    finished("native")  # has its pictures
    names: list[str] = []

    def save(spec: Any, out: Path, name: str) -> tuple[Path, ...]:
        json.dumps(spec, allow_nan=False)
        names.append(name)
        path = out / f"{name}.svg"
        path.write_text(name)
        return (path,)

    monkeypatch.setattr(under_test, "_save", save)
    return names


def spec_with(folder: Path, change: Callable[[str], str] = str) -> Loaded:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "experiments.toml"
    path.write_text(change(PAPER.read_text()))
    return read_spec(path, MEASURES)


def sources(run: Run) -> Callable[[str], Source | str]:
    return lambda name: Source(run.result(name)) if (run.store / name).is_dir() else lack(name, "absent")


# ------------------------------------------------------------------------------------------------------ what it says


def test_the_subtitle_always_names_subject_and_model() -> None:
    assert subtitle(ATTRS, "") == "subject toy (owner/toy), 8 prompts x 40 tokens"


@pytest.mark.parametrize(
    ("change", "stamp", "labels", "said"),
    [
        ({"found": False}, "", "", "no erasure found; strongest candidate shown"),
        ({"roles": "named, claimed", "found": 1}, "", "", "roles named, claimed"),
        (
            {"roles": "named, not claimed by the scan", "found": 0},
            "",
            "",
            "roles named, not claimed by the scan",
        ),
        ({"roles": "named, no scan yet", "own": False}, "", "", "roles named, no scan yet"),
        ({"own": False}, "", "", "NOT the paper's model"),
        ({"examples": "mined", "measure": "resampled_dla"}, "", "", "examples MINED from its prompts"),
        ({"quarantined": [3]}, "", "", "PARTIAL 7/8 prompts"),
        ({"precision": "bf16"}, "", "", "computed in bf16"),
        ({}, "COMMITTED", "", "COMMITTED"),
        ({}, "", "Figure 2 of the post", "Figure 2 of the post"),
    ],
)
def test_the_subtitle_says_what_the_numbers_are_worth(
    change: dict[str, Any], stamp: str, labels: str, said: str
) -> None:
    assert said not in subtitle(ATTRS, "")
    assert said in subtitle(ATTRS | change, stamp, labels).split(" · ")


def test_the_papers_own_roles_need_no_scan_to_be_what_they_are() -> None:
    untested = {key: value for key, value in ATTRS.items() if key != "found"}
    assert "roles" not in subtitle(untested | {"roles": "named, no scan yet"}, "")
    assert "strongest candidate" not in subtitle(ATTRS | {"roles": "named, not claimed by the scan", "found": 0}, "")


def test_mined_examples_are_told_only_where_examples_are_shown() -> None:
    assert "MINED" not in subtitle(ATTRS | {"examples": "mined"}, "")


def test_labels_of_both_sources_are_words() -> None:
    figures = read_spec(PAPER, MEASURES).spec.figure
    assert under_test.labels(figures["post_1_top"]) == "Figure 1 (top) of the post"
    assert under_test.labels(figures["paper_5"]) == "Figure 5 of the paper"
    assert under_test.labels(figures["appendix"]) == "Appendix of the post"
    assert under_test.labels(figures["by_position"]) == ""


def test_the_title_names_writer_and_layer_and_options_the_layers_that_follow() -> None:
    figures = read_spec(PAPER, MEASURES).spec.figure
    attrs = {"writer": "L0H2", "layer": 2, "n_layers": 4}
    filled = under_test._filled(figures["post_3a"].title, attrs)
    assert filled == "Residual stream onto L0H2, clean and with layer 2 patched"
    several = under_test._filled(figures["post_3a"].title, attrs | {"layer": "1, 2 and 3"})
    assert several == "Residual stream onto L0H2, clean and with layers 1, 2 and 3 patched"
    assert under_test._filled("$erasers in $layer", attrs | {"erasers": "L2H2, MLP3"}) == "L2H2, MLP3 in 2"
    assert under_test._options(figures["paper_2"], attrs) == {"layers": [1, 2, 3]}
    assert under_test._options(figures["post_4a"], attrs) == {"show": "writer"}


# ------------------------------------------------------------------------------------------------------ what is redrawn


def test_a_figure_is_drawn_once_and_again_only_when_something_changed(
    finished: Finished, rendered: list[str], tmp_path: Path
) -> None:
    run, loaded, out = finished("native"), spec_with(tmp_path), tmp_path / "out"
    names = ["post_1_top", "post_3a"]

    def again(loaded: Loaded = loaded, stamp: str = "", fresh: bool = False) -> list[str]:
        rendered.clear()
        draw(loaded, names, lambda name: Source(run.result(name), stamp), out, fresh)
        return list(rendered)

    assert again() == names
    before = tree(out)
    assert again() == []
    assert tree(out) == before
    assert again(fresh=True) == names
    (out / "post_3a.svg").unlink()
    assert again() == ["post_3a"]
    retitled = spec_with(tmp_path / "new", lambda text: text.replace("Residual stream onto", "Stream onto"))
    assert again(retitled) == ["post_3a"]
    assert again() == ["post_3a"], "and back"
    assert again(stamp="COMMITTED") == names
    (out / "figures.json").write_text("[")
    assert again() == names, "a damaged record of what was drawn costs a drawing, nothing else"


def test_a_figure_is_redrawn_when_its_numbers_changed(finished: Finished, rendered: list[str], tmp_path: Path) -> None:
    run, loaded = finished("native").copy(tmp_path / "run"), spec_with(tmp_path)
    draw(loaded, ["post_3a", "post_2"], sources(run), tmp_path / "out")
    rendered.clear()
    shutil.rmtree(run.store / "v_patch")
    assert run.cli("run", "v_patch").code == Exit.OK
    draw(loaded, ["post_3a", "post_2"], sources(run), tmp_path / "out")
    assert "post_2" not in rendered


@pytest.mark.usefixtures("rendered")
def test_what_has_no_result_is_skipped_with_the_reason(finished: Finished, tmp_path: Path) -> None:
    run, loaded = finished("native"), spec_with(tmp_path)
    drawn = draw(loaded, ["post_2", "by_position"], sources(run), tmp_path / "out")
    assert [item.skipped for item in drawn] == ["", "no result of pr_by_position in the store"]
    error = missing_error(drawn)
    assert error is not None
    assert error.code == Exit.FAILED
    assert error.message == (
        "by_position: no result of pr_by_position in the store; compute it with "
        "`python -m repro run by_position` and the same options"
    )
    assert missing_error([Drawn("a"), Drawn("b", skipped="unchanged")]) is None


def test_figures_of_nothing_exit_one(folders: dict[str, Path], tmp_path: Path) -> None:
    run = Run(folders["native"], tmp_path, None)  # type: ignore[arg-type]
    answer = run.cli("figures", "--only", "post_2,post_3a")
    assert answer.code == Exit.FAILED
    assert answer.err.startswith("error: post_2: no result of nodes_onto_writer in the store; post_3a: no result of ")


def test_an_unfinished_result_is_refused_with_how_much_there_is(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path)
    (run.result("v_patch") / "COMMIT").unlink()
    (run.result("v_patch") / "units" / "000001.json").unlink()
    before = tree(tmp_path / "paper_figures")
    answer = run.cli("figures", "--only", "post_3a")
    assert answer.code == Exit.FAILED
    assert only_error(answer) == (
        "post_3a: the result of v_patch is unfinished: partial 1/2 units; compute it with "
        "`python -m repro run post_3a` and the same options"
    )
    assert tree(tmp_path / "paper_figures") == before
    checked = run.cli("check")
    assert "  the result of v_patch is unfinished: partial 1/2 units; it is not compared\n" in checked.out
    claims = {claim["id"]: claim for claim in json.loads((run.figures / "check.json").read_text())["claims"]}
    assert claims["falls_less_patched"]["value"] is None
    assert "no result of 'v_patch'" in claims["falls_less_patched"]["why"]


# ------------------------------------------------------------------------------------------------------------- refusals


def test_wrong_options_are_named_once_the_others_are_drawn(
    finished: Finished, rendered: list[str], tmp_path: Path
) -> None:
    def change(text: str) -> str:
        text = text.replace('options = { heads = "erasers" }', 'options = { heads = "some" }')
        return text.replace('options = { show = "writer" }', 'options = { shows = "writer" }')

    with pytest.raises(ReproError) as caught:
        draw(spec_with(tmp_path, change), ["post_4a", "paper_3", "post_2"], sources(finished("native")), tmp_path)
    assert caught.value.code == Exit.USAGE
    assert caught.value.message.splitlines() == [
        "[figure.post_4a] options: unknown option 'shows'; this figure reads show",
        "[figure.paper_3] options: option 'heads' is 'some'; allowed: all, erasers",
    ]
    assert rendered == ["post_2"]


@pytest.mark.usefixtures("rendered")
def test_a_flipped_bit_in_a_summary_is_refused_and_never_drawn(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path)
    stored = run.result("v_patch") / "data.zarr" / "summary" / "site_pr"
    chunk = next(path for path in stored.rglob("*") if path.is_file() and path.name != "zarr.json")
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 1
    chunk.write_bytes(bytes(content))
    (run.figures / "post_3a.png").unlink()
    before = (run.figures / "post_3a.svg").read_bytes()
    answer = run.cli("figures", "--only", "post_3a")
    assert answer.code == Exit.CORRUPT
    assert str(chunk) in answer.err
    assert (run.figures / "post_3a.svg").read_bytes() == before


@pytest.mark.usefixtures("rendered")
def test_a_folder_that_cannot_be_written_is_a_usage_error(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path)
    shutil.rmtree(tmp_path / "paper_figures")
    (tmp_path / "paper_figures").write_text("a file")
    answer = run.cli("figures", "--only", "post_3a")
    assert answer.code == Exit.USAGE
    assert "figures cannot be written" in answer.err


# --------------------------------------------------------------------------------------------------- the copies in git


@pytest.mark.usefixtures("rendered")
def test_without_an_own_result_the_copy_in_git_is_drawn_and_stamped(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished("native")
    loaded = spec_with(tmp_path / "spec")
    copies = tmp_path / "spec" / "store" / "committed" / run.subject
    commit_reduced(run.result("v_patch"), copies / "v_patch")
    told: list[str] = []

    def keep(attrs: object, stamp: str, labels: str) -> str:
        told.append(stamp)
        return stamp

    monkeypatch.setattr(under_test, "subtitle", keep)
    elsewhere = Run(run.model, tmp_path / "elsewhere", run.answer)
    answer = elsewhere.cli("figures", "--only", "post_3a", spec=loaded.path)
    assert answer.code == Exit.OK, answer.text
    own = run.copy(tmp_path / "own")
    shutil.rmtree(own.figures)
    assert own.cli("figures", "--only", "post_3a", spec=loaded.path).code == Exit.OK
    assert told == ["COMMITTED", ""], "the copy where there is nothing else, the own result where there is one"
    rows = json.loads(elsewhere.cli("plan", "--only", "v_patch", "--json", spec=loaded.path).out)["items"]
    assert {row["state"] for row in rows} == {"absent", "waits for roles"}, "a copy never counts as fresh"
