"""The whole pipeline on tiny models of each kind: what runs, what is left alone, what is lost (nothing)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from repro.errors import Exit
from repro.measures import MEASURES
from repro.spec.read import read_spec
from repro.store.result import read_raw, read_summary
from repro.subjects.access import Access
from repro.subjects.resolve import choose
from tests.conftest import KINDS
from tests.runs import PAPER, Answer, Run, cli, contents, lasting, spoil, toml, tree, with_spec

Finished = Callable[[str], Run]
PAPER_FIGURES = {
    name
    for spec in (read_spec(PAPER, MEASURES).spec,)
    for name, figure in spec.figure.items()
    if spec.experiment[figure.experiment].group == "paper"
}
EXPERIMENTS = ("sites_onto_nodes", "nodes_onto_writer", "v_patch", "resampled_dla", "dla_scatter")
ROLES = ("scan", "examples")


def drawn(answer: Answer) -> tuple[int, int]:
    """How many figures were drawn and how many were left alone."""
    line = next(line for line in answer.out.splitlines() if line.startswith("figures:"))
    words = line.split()
    return int(words[1]), int(words[3])


# ---------------------------------------------------------------------------------------------------- the default spec


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_spec_runs_on_every_kind_of_model(finished: Finished, kind: str) -> None:
    run = finished(kind)
    assert run.answer.code == Exit.OK, run.answer.text
    assert run.answer.out.startswith(f"subject: {run.subject} ({run.model})")
    assert drawn(run.answer) == (14, 0)
    assert {path.name for path in run.store.iterdir()} == {*EXPERIMENTS, *ROLES}
    passes = [line.split(": ")[1] for line in run.answer.out.splitlines() if line.startswith("pass over ")]
    assert passes == [*ROLES, ", ".join(EXPERIMENTS)], "one pass serves all experiments"


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_there_as_png_and_svg(finished: Finished, kind: str) -> None:
    folder = finished(kind).figures
    wanted = {f"{name}.{ending}" for name in PAPER_FIGURES for ending in ("png", "svg")}
    wanted |= {
        "post_5_points.png",
        "paper_4_points.png",
        "figures.json",
        "check.md",
        "check.json",
        "scan.json",
        "report.html",
    }
    assert {path.name for path in folder.iterdir()} == wanted
    starts = {"png": b"\x89PNG", "svg": b"<svg"}
    for path in folder.iterdir():
        if (ending := path.suffix[1:]) in starts:
            assert path.read_bytes().startswith(starts[ending]), path
    svg = (folder / "post_2.svg").read_text()
    assert f"subject {finished(kind).subject}" in svg
    assert "Figure 2 of the post" in svg


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_proves_nothing_of_another_model(finished: Finished, kind: str) -> None:
    run = finished(kind)
    report = json.loads((run.figures / "check.json").read_text())
    assert "rows" not in report
    assert report["published_not_compared"] > 300
    assert sum(report["verdicts"].values()) == len(report["claims"]) == 9
    assert f"published numbers belong to gelu-4l; {run.subject} is another model" in run.answer.out


def test_prompts_that_need_no_hub_make_no_file_outside_the_root(finished: Finished) -> None:
    run = finished("native")
    assert {path.name for path in run.out.iterdir()} == {"store", "paper_figures"}
    assert not (PAPER.parent / "store" / finished("native").subject).exists()


def test_summaries_say_whose_numbers_they_are(finished: Finished) -> None:
    run = finished("llama")
    for name in EXPERIMENTS:
        attrs = read_summary(run.result(name)).attrs
        assert (attrs["subject"], attrs["experiment"]) == (run.subject, name)
        assert attrs["model"] == str(run.model)
        assert (attrs["n_prompts"], attrs["n_positions"]) == (8, 40)
        assert (attrs["roles"], attrs["examples"]) == ("auto", "mined")
        provenance = json.loads((run.result(name) / "provenance.json").read_text())
        assert provenance["versions"]["torch"]
        assert provenance["environment"]["kernels"] == "torch"


def test_without_a_tokenizer_examples_are_token_ids(finished: Finished) -> None:
    summary = read_summary(finished("native").result("resampled_dla"))
    for name in ("text", "answer", "other", "first", "second"):
        assert all(re.fullmatch(r"(<\d+>)+", str(value)) for value in summary[name].values), name


def test_mined_examples_never_resample_from_their_own_prompt(finished: Finished) -> None:
    run = finished("native")
    mined = json.loads(read_summary(run.result("examples")).attrs["mined"])
    raw = read_raw(run.result("resampled_dla"))["resampled"].values
    undefined = np.isnan(raw).all(axis=1)
    for row, item in zip(undefined, mined, strict=True):
        assert np.flatnonzero(row).tolist() == [item["prompt"]]


def test_the_second_run_recomputes_and_redraws_nothing(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path)
    before = tree(tmp_path)
    answer = run.cli("all")
    assert answer.code == Exit.OK
    assert drawn(answer) == (0, 14)
    assert "pass over" not in answer.out
    after = tree(tmp_path)
    rewritten = {name for name in before if before[name] != after.get(name)}
    figures = f"paper_figures/out/{finished('native').subject}"
    assert rewritten <= {f"{figures}/{name}" for name in ("check.md", "check.json", "scan.json")}
    assert set(before) == set(after)


def test_one_changed_figure_is_the_only_one_redrawn(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path / "out")
    spec = with_spec(tmp_path / "spec", lambda text: text.replace("Erasers onto $writer, clean", "The erasers, clean"))
    before = tree(tmp_path / "out")
    answer = run.cli("figures", spec=spec)
    assert answer.code == Exit.OK, answer.text
    assert drawn(answer) == (1, 13)
    after = tree(tmp_path / "out")
    changed = {Path(name).name for name in after if before.get(name) != after[name]}
    assert changed == {"paper_3.png", "paper_3.svg", "figures.json"}
    assert "The erasers, clean" in (run.figures / "paper_3.svg").read_text()


# --------------------------------------------------------------------------------------------- experiments as entries


NEW = """
[experiment.heads_of_layer_two]
measure = "v_patch"
layer = 2
group = "mine"
quantiles = [0.1, 0.9]

[figure.my_figure]
chart = "patched_heads"
experiment = "heads_of_layer_two"
title = "My own figure of $writer"
labels = {}
"""


def test_a_new_experiment_is_a_toml_entry_and_nothing_else(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path / "out")
    spec = with_spec(tmp_path / "spec", lambda text: text + NEW)
    before = contents(run.store)
    answer = run.cli("all", "--only", "by_position,mine", spec=spec)
    assert answer.code == Exit.OK, answer.text
    assert drawn(answer) == (2, 0)
    shares = read_summary(run.result("pr_by_position"))["variance_share"]
    np.testing.assert_allclose(shares.sum("source").values, 1, atol=1e-6)
    mine = read_summary(run.result("heads_of_layer_two"))
    assert list(mine["head"].values) == ["L2H0", "L2H1", "L2H2", "L2H3"]
    assert "My own figure of " + mine.attrs["writer"] in (run.figures / "my_figure.svg").read_text()
    after = contents(run.store)
    assert {name: after.get(name) for name in before} == before, "what was there is untouched"


def test_a_changed_experiment_is_stale_by_the_name_of_its_field(finished: Finished, tmp_path: Path) -> None:
    run = finished("native")
    spec = with_spec(
        tmp_path,
        lambda text: text.replace('measure = "v_patch"\nabout', 'measure = "v_patch"\nscale = "recomputed"\nabout', 1),
    )
    lines = run.cli("plan", spec=spec).out.splitlines()
    stale = lines.index("stale (changed: scale frozen -> recomputed):")
    assert lines[stale + 1].startswith("  v_patch ")
    states = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert sorted(states) == ["fresh:", "stale (changed: scale frozen -> recomputed):"]
    assert not lines[stale + 2].startswith("  "), "no other is stale"


# ------------------------------------------------------------------------------------------------------------- options


def test_fewer_prompts_are_another_result_and_both_are_kept(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path)
    before = contents(run.store)
    answer = run.cli("run", "nodes_onto_writer", "--prompts", "3")
    assert answer.code == Exit.OK, answer.text
    kept = finished("native").result("nodes_onto_writer").name
    (fewer,) = (path for path in (run.store / "nodes_onto_writer").iterdir() if path.name != kept)
    assert read_raw(fewer)["pr"].sizes["prompt"] == read_summary(fewer).attrs["n_prompts"] == 3
    after = contents(run.store)
    assert {name: after.get(name) for name in before} == before
    assert run.cli("plan", "--prompts", "800", "--json").out == run.cli("plan", "--json").out, "no more than there are"


def test_only_takes_experiments_figures_and_groups(finished: Finished) -> None:
    run = finished("native")

    def planned(only: str) -> list[str]:
        rows = json.loads(run.cli("plan", "--only", only, "--json").out)["items"]
        return [row["experiment"] for row in rows]

    assert planned("v_patch") == planned("post_3a") == planned("paper_3,post_3b") == ["v_patch"]
    assert planned("paper") == list(EXPERIMENTS)
    assert planned("scan,roles") == ["scan", "examples"]
    assert planned("beyond, v_patch") == ["pr_by_position", "v_patch"]


def test_fresh_computes_and_draws_anew_and_finds_the_same(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path)
    result = run.result("v_patch")
    before = read_summary(result).load()
    stamps, others = tree(result), tree(run.result("dla_scatter"))
    answer = run.cli("all", "--only", "post_3a", "--fresh")
    assert answer.code == Exit.OK, answer.text
    assert drawn(answer) == (1, 0)
    assert all(stamps[name] != now for name, now in tree(run.result("v_patch")).items())
    assert tree(run.result("dla_scatter")) == others
    # Not the same bits: what else is in the pass decides the shapes of matrix products.
    xr.testing.assert_allclose(read_summary(result), before, rtol=1e-5, atol=1e-5)


def test_everything_fresh_is_the_same_bits_again(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path)
    stamps = tree(run.store)
    answer = run.cli("run", "--fresh")
    assert answer.code == Exit.OK, answer.text
    assert not set(stamps.values()) & set(tree(run.store).values())
    assert lasting(run.store) == lasting(finished("native").store)


def test_fresh_with_a_model_that_cannot_be_had_costs_no_result(finished: Finished, tmp_path: Path) -> None:
    run = finished("native").copy(tmp_path / "out")
    before = contents(tmp_path / "out")
    model = tmp_path / "native"
    shutil.copytree(run.model, model)
    spoil(model)
    answer = cli("run", "--fresh", "--spec", PAPER, "--subject", model, "--out", run.out)
    assert answer.code == Exit.UNAVAILABLE
    assert contents(tmp_path / "out") == before


def test_kernels_and_memory_change_speed_and_not_what_is_found(finished: Finished, tmp_path: Path) -> None:
    run = finished("native")
    ours = read_raw(run.result("v_patch"))
    found = {}
    for name, options in {"reference": ["--kernels", "reference"], "small": ["--memory", "600KiB"]}.items():
        out = tmp_path / name
        shutil.copytree(run.out / "store", out / "store")
        if name == "small":
            shutil.rmtree(out / "store" / run.subject / "v_patch")
        answer = cli("run", "v_patch", *options, "--spec", PAPER, "--subject", run.model, "--out", out)
        assert answer.code == Exit.OK, answer.text
        paths = (out / "store" / run.subject / "v_patch").iterdir()
        path = next(path for path in paths if name == "small" or path.name != run.result("v_patch").name)
        provenance = json.loads((path / "provenance.json").read_text())
        found[name] = (provenance["environment"]["kernels"], provenance["micro_batch"])
        for variable in ("site_pr", "head_pr"):
            np.testing.assert_allclose(read_raw(path)[variable], ours[variable], rtol=1e-5, atol=1e-5)
    assert found == {"reference": ("reference", 4), "small": ("torch", 1)}


def test_named_roles_are_taken_as_they_are(finished: Finished, tmp_path: Path) -> None:
    run = finished("native")
    subject = {"model": str(run.model), "writer": "L0H1", "erasers": ["L2H0", "L2H3"]}
    spec = with_spec(tmp_path, lambda text: text + toml({"subject.named": subject}))
    answer = cli("run", "v_patch", "--subject", "named", "--spec", spec)
    assert answer.code == Exit.OK, answer.text
    assert {path.name for path in (tmp_path / "store" / "named").iterdir()} == {"v_patch"}, "nothing to be found"
    (path,) = (tmp_path / "store" / "named" / "v_patch").iterdir()
    attrs = read_summary(path).attrs
    assert (attrs["writer"], attrs["erasers"], attrs["layer"]) == ("L0H1", "L2H0, L2H3", 2)
    assert attrs["roles"] == "named, no scan yet"
    assert "found" not in attrs


def test_named_roles_are_put_to_the_test_once_a_scan_is_there(finished: Finished, tmp_path: Path) -> None:
    run = finished("native")
    subject = {"model": str(run.model), "writer": "L0H1", "erasers": ["MLP1", "L2H0", "L2H3"]}
    spec = with_spec(tmp_path, lambda text: text + toml({"subject.named": subject}))
    given = ("--subject", "named", "--spec", spec)
    assert cli("run", "v_patch", *given).code == Exit.OK
    svg = tmp_path / "paper_figures" / "out" / "named" / "post_3a.svg"
    for scan, said in ((False, "roles named, no scan yet"), (True, "roles named, not claimed by the scan")):
        if scan:
            assert cli("run", "scan", *given).code == Exit.OK
        assert cli("figures", "--only", "post_3a", *given).code == Exit.OK
        assert said in " ".join(re.sub("<[^>]*>", " ", svg.read_text()).split())
    # No number changes, so nothing is computed again; what is computed from now on says so itself.
    assert "pass over" not in cli("run", "v_patch", *given).out
    assert cli("run", "nodes_onto_writer", *given).code == Exit.OK
    (path,) = (tmp_path / "store" / "named" / "nodes_onto_writer").iterdir()
    attrs = read_summary(path).attrs
    assert (attrs["roles"], attrs["found"], attrs["layer"]) == ("named, not claimed by the scan", 0, "1 and 2")


def test_a_subject_of_the_spec_is_found_by_name(finished: Finished, tmp_path: Path) -> None:
    """Five lines of TOML make a subject, relative to the spec's folder."""
    run = finished("gpt2")
    lines = (
        f'\n[subject.mine]\nmodel = "{run.model}"\nprompts = "mine.safetensors"\nwriter = "auto"\nerasers = "auto"\n'
    )
    spec = with_spec(tmp_path, lambda text: text + lines)
    shutil.copy(run.model / "prompts.safetensors", tmp_path / "mine.safetensors")
    chosen = choose(read_spec(spec, MEASURES), "mine", Access(tmp_path, offline=True))
    assert chosen.folder.prompts == tmp_path / "mine.safetensors"
    answer = cli("run", "examples", "--subject", "mine", "--spec", spec)
    assert answer.code == Exit.OK, answer.text
    assert {path.name for path in (tmp_path / "store" / "mine").iterdir()} == {"scan", "examples"}
