"""Parts of the page: published numbers as charts, CSV, declarations, the scan's numbers, what does not hold."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from repro import labels
from repro.check.claims import ClaimRow
from repro.check.comparison import Comparison
from repro.check.published import read_published
from repro.check.report import Heading
from repro.measures import MEASURES
from repro.report.csv_text import csv_text
from repro.report.figures import WORTH, Shown, explained, same_view
from repro.report.presence import presence_svg
from repro.report.published import N_HEADS, N_LAYERS, published_for, stated_for
from repro.report.scan_part import CLAIMED, packed, scan_part
from repro.report.shortfalls import shortfalls
from repro.report.svg import still
from repro.report.toml import Declarations
from repro.scan.confirmation import Confirmation
from repro.scan.twin import SCALES
from repro.spec.read import read_spec
from tests.report.pages import nasty_drawing
from tests.runs import PAPER
from tests.scan.made import erase, quiet

SPEC = read_spec(PAPER, MEASURES)
NUMBERS = read_published().numbers


# --------------------------------------------------------------------------------------------------- what was published


def published(name: str) -> xr.Dataset:
    found = published_for(SPEC, SPEC.spec.figure[name])
    assert found is not None
    return found


def test_every_published_number_is_in_its_place() -> None:
    """Each number of the data, looked up in the dataset that our chart draws."""
    seen = set()
    for name in ("appendix", "post_2", "post_3a", "paper_5"):
        found, figure = published(name), SPEC.spec.figure[name]
        for number in (n for n in NUMBERS if n.experiment == figure.experiment and n.variable in found):
            place = dict(number.select)
            if "example" in place:
                text = read_published().examples[place["example"]]
                place["example"] = str(found["example"].values[list(found["text"].values).index(text)])
            assert float(found[number.variable].sel(place)) == number.value
            seen.add(number.id)
    left = {number.experiment for number in NUMBERS if number.id not in seen}
    assert left == {"dla_scatter"}, "fits without their points are said in words"
    assert len(stated_for(SPEC.spec.figure["post_5"])) == sum(n.experiment == "dla_scatter" for n in NUMBERS)


def test_what_was_not_published_is_a_gap() -> None:
    bars = published("post_2")["pr"]
    assert np.isfinite(bars.sel(quantile="median")).all()
    assert np.isnan(bars.sel(quantile=["lower", "upper"])).all(), "only medians were read off"
    patched = published("post_3a")["site_pr"].sel(quantile="median", run="patched")
    assert np.isfinite(patched).sum() == 4
    clean = published("post_3a")["site_pr"].sel(run="clean")
    own = published("appendix")["pr"].sel(node="L0H2")
    np.testing.assert_array_equal(clean, own, "the clean line is that of the first figure")


def test_the_reference_table_is_a_whole_model() -> None:
    nodes = {n.select["node"] for n in NUMBERS if n.group == "reference"}
    assert nodes == set(labels.nodes(N_LAYERS, N_HEADS))
    assert np.isfinite(published("appendix")["pr"]).all()


def test_variants_and_other_papers_have_nothing_published() -> None:
    assert published_for(SPEC, SPEC.spec.figure["post_5"]) is None
    other = SPEC.model_copy(
        update={
            "spec": SPEC.spec.model_copy(update={"run": SPEC.spec.run.model_copy(update={"paper_subject": "mini"})})
        }
    )
    assert published_for(other, SPEC.spec.figure["post_2"]) is None


# -------------------------------------------------------------------------------------------------------- what is saved


def test_a_summary_is_read_back_from_its_csv() -> None:
    values = np.array([[[0.1, -0.2]], [[0.15, np.nan]], [[0.2, 0.3]]])
    ds = xr.Dataset(
        {
            "pr": (("quantile", "node", "site"), values, {"units": "1"}),
            "nan_count": (("node", "site"), [[0, 3]]),
            "raw": (("prompt", "position"), np.zeros((2, 3))),
            "density": (("y_bin", "x_bin"), [[0, 5]]),
            "n_points": ((), 6),
            "all": ("quantile", [1.0, 2.0, 3.0]),
            "verdict": ("node", np.array(["reliable"], dtype=object)),
        },
        {"quantile": ["lower", "median", "upper"], "node": ['a,"b'], "site": ["resid_pre0", "resid_mid0"]},
    )
    rows = list(csv.DictReader(io.StringIO(csv_text(ds))))
    assert {row["variable"] for row in rows} == {"pr", "nan_count", "density", "n_points", "all", "verdict"}, (
        "raw points stay in the store"
    )
    first, second = (row for row in rows if row["variable"] == "pr")
    assert (first["node"], first["site"], first["median"], first["units"]) == ('a,"b', "resid_pre0", "0.15", "1")
    assert (second["lower"], second["median"], second["upper"]) == ("-0.2", "", "0.3")
    for name, value in (("density", "5"), ("n_points", "6"), ("verdict", "reliable")):
        assert [row["value"] for row in rows if row["variable"] == name] == [value]


def test_drawings_on_one_page_keep_their_own_clips() -> None:
    svg = '<?xml version="1.0"?>\n<svg><clipPath id="clip0"/><g clip-path="url(#clip0)"/></svg>'
    assert still(svg, "post_2") == '<svg><clipPath id="post_2-clip0"/><g clip-path="url(#post_2-clip0)"/></svg>'


def test_a_still_drawing_loses_only_what_nobody_sees() -> None:
    svg = (
        '<svg><g aria-label="axis" role="img"><text x="1.23456" aria-hidden="true">0.12345 rgb(1, 2, 3)</text></g>'
        '<path aria-label="a bar" role="graphics-symbol" d="M0,0.00001h4.000034v3.9999784Z" fill="rgb(213, 226, 0)"/>'
        '<path d="M4,1e-7h1Z" fill="rgb(213, 226, 0)"/><path d="M5,0h1Z" fill="#000"/><g/>'
        '<path d="M6,0h1Z" fill="#000"/><path d="M0,0h1Z" opacity="0.5"/><path d="M0,0h1Z" opacity="0.5"/></svg>'
    )
    assert still(svg, "x") == (
        '<svg><g><text x="1.23">0.12345 rgb(1, 2, 3)</text></g>'
        '<path d="M0,0h4v4ZM4,0h1Z" fill="#d5e200"/><path d="M5,0h1Z" fill="#000"/><g/><path d="M6,0h1Z" fill="#000"/>'
        '<path d="M0,0h1Z" opacity="0.5"/><path d="M0,0h1Z" opacity="0.5"/></svg>'
    )


def test_what_the_lines_below_figures_say_is_explained_and_nothing_else() -> None:
    def lines(*says: str) -> list[str]:
        drawn = (dataclasses.replace(nasty_drawing(), says=line) for line in says)
        return list(explained([Shown("x", "title", "", "", drawing) for drawing in drawn]))

    assert lines("30 prompts x 64 tokens") == []
    assert lines("8 prompts x 64 tokens · COMMITTED", "8 prompts x 64 tokens · PARTIAL 7/8 prompts") == [
        "COMMITTED",
        "PARTIAL",
    ]
    assert lines("8 prompts · computed in bf16 · roles named, claimed · examples MINED") == [
        word for word in WORTH if word not in ("COMMITTED", "PARTIAL")
    ]


def test_figures_that_show_the_same_are_one() -> None:
    groups = same_view(SPEC, list(SPEC.spec.figure))
    assert ["post_3a", "paper_1"] in groups
    assert ["post_5", "paper_4"] in groups
    assert ["post_2"] in groups
    assert ["paper_2"] in groups, "other options draw another figure"


# --------------------------------------------------------------------------------------------------------- declarations


@pytest.fixture(scope="module")
def declared() -> Declarations:
    return Declarations(SPEC.path.read_text(), SPEC.spec.experiment)


def test_a_declaration_is_the_files_own_lines(declared: Declarations) -> None:
    text = declared.of("v_patch", ["post_3a", "paper_1"])
    table, figures = text.split("\n\n")
    assert table.startswith('[experiment.v_patch]\nmeasure = "v_patch"')
    assert figures.splitlines()[0] == "[figure]"
    assert [line.split(" ")[0] for line in figures.splitlines()[1:]] == ["post_3a", "paper_1"]
    assert all(line in SPEC.path.read_text() for line in text.splitlines())


def test_a_variants_declaration_shows_what_it_varies(declared: Declarations) -> None:
    text = declared.of("dla_scatter_code", [])
    assert text.index("[variant.dla_scatter_code]") < text.index("[experiment.dla_scatter]")
    assert "[variant.bf16]" in declared.of("v_patch_bf16", [])
    assert "#" not in declared.of("pr_by_position", []), "comments that follow belong to what follows"


def test_tables_of_their_own_bring_their_headers(tmp_path: Path) -> None:
    text = '[experiment.a]\nmeasure = "v_patch"\n\n[figure.b]\ntitle = "t"\n'
    found = Declarations(text, {"a": SPEC.spec.experiment["v_patch"]}).of("a", ["b"])
    assert found == '[experiment.a]\nmeasure = "v_patch"\n\n[figure.b]\ntitle = "t"'


# ------------------------------------------------------------------------------------------------------------- the scan


def erased() -> xr.Dataset:
    raw = quiet()
    erase(raw, "L0H1", "MLP1", -0.6)
    return raw


def kept(**changes: Any) -> dict[str, Any]:
    found = dataclasses.asdict(Confirmation(-0.6, -0.1, -0.1, -0.1, -0.2, -0.2))
    return {
        "confirmed": [{"writer": "L0H1", "component": "MLP1", **found, **changes}],
        "strata": {"rest": {"writers": [{"writer": "L0H1", "interval": [0.5, 0.7]}]}},
    }


def unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def test_the_map_holds_every_pair() -> None:
    raw = erased()
    part = scan_part(raw, 64, kept())
    writers, components = part.map["writers"], part.map["components"]
    rest = part.map["strata"]["rest"]
    path = unpacked(rest["path"]).reshape(len(writers), len(components))
    stored = raw["path"].sel(stratum="rest").median("prompt")
    for writer, component in (("L0H1", "MLP1"), ("L0H0", "L2H1"), ("MLP1", "L0H0")):
        ours = path[writers.index(writer), components.index(component)]
        np.testing.assert_allclose(ours, stored.sel(writer=writer, component=component), rtol=1e-6)
    conditions = np.frombuffer(base64.b64decode(rest["conditions"]), np.uint8).reshape(path.shape)
    claimed = [(writers[w], components[c]) for w, c in np.argwhere(conditions & CLAIMED)]
    assert claimed == [("L0H1", "MLP1")]
    assert part.map["start"] == [writers.index("L0H1"), components.index("MLP1")]
    assert not [label for label in writers if label.startswith("decoy")]
    assert "MLP1" in writers
    assert "MLP2" not in writers, "nothing that was looked at reads it"


def test_twins_and_expected_erasures_are_told() -> None:
    twins = [{"scale": scale, "seed": 0, "claims": [["L0H1", "MLP1", -0.2]], "enough": True} for scale in SCALES]
    case = {"stratum": "rest", "writer": "L0H1", "eraser": "MLP1", "source": "me", "claimed": True}
    said = " ".join(scan_part(erased(), 64, kept() | {"untrained_twins": twins, "expected": [case]}).beside)
    assert "expected erasures: 1 of 1 claimed" in said
    assert "untrained twins" in said
    assert "expected" not in " ".join(scan_part(erased(), 64, kept()).beside).replace("expected false", "")


def test_what_was_confirmed_is_taken_over_and_what_was_not_is_said() -> None:
    part = scan_part(erased(), 64, kept())
    assert part.confirmed
    assert part.rest.erased
    assert part.rest.writers[0].interval == (0.5, 0.7)
    assert part.map["confirmed"] == [["L0H1", "MLP1", "kept", pytest.approx(1 / 6)]]
    alone = scan_part(erased(), 64, None)
    assert not alone.confirmed
    assert alone.rest.writers[0].interval[0] > 0, "drawn here"
    refuted = scan_part(erased(), 64, kept(patched=-0.6, patched_rescaled=-0.6, zero=-0.6))
    assert not refuted.rest.erased


def test_a_scan_that_found_nothing_still_has_its_map() -> None:
    part = scan_part(quiet(), 64, None)
    assert part.verdict.startswith("No erasure found")
    assert (part.rest.writers, part.picture) == ((), "")
    assert len(part.map["start"]) == 2


def test_arrays_travel_as_float32() -> None:
    values = np.array([[0.1, np.nan], [-3e4, 0.0]])
    np.testing.assert_array_equal(unpacked(packed(values)), values.astype(np.float32).ravel())


def test_the_picture_says_its_numbers() -> None:
    bands = np.array([[0.0, 0.8, 0.2], [0.0, 1.0, 0.4], [0.1, 1.2, 0.5]])
    svg = presence_svg(["resid_pre0", "resid_mid0", "resid_post0"], bands, 1, {2: "MLP0"}, "<L0H0>")
    assert "Presence of &lt;L0H0&gt; by site: resid_pre0 0.00, resid_mid0 1.00, resid_post0 0.40" in svg
    assert svg.count('class="erased"') == 1
    assert "nan" not in svg


def test_the_picture_names_erasers_where_there_is_room_and_sites_of_one_kind() -> None:
    sites = ["resid_pre0", *(f"resid_{kind}{layer}" for layer in range(30) for kind in ("mid", "post"))]
    svg = presence_svg(sites, np.ones((3, 61)), 3, {10: "MLP4", 12: "MLP5", 40: "MLP19"}, "L1H0")
    assert svg.count('class="erased"') == 3
    assert re.findall(r">(MLP\d+)<", svg) == ["MLP4", "MLP19"], "MLP5 stands too near"
    ticks = re.findall(r">(pre\d+|mid\d+|post\d+)<", svg)
    assert ticks[0] == "pre0"
    assert len(ticks) >= 6
    assert all(tick.startswith("post") for tick in ticks[1:])


# --------------------------------------------------------------------------------------------------- what does not hold


def test_everything_that_falls_short_is_said() -> None:
    claim = ClaimRow("x", "the moon is green", "0 < value", -0.5, (-0.6, -0.4), "does not hold", "at noon")
    heading = Heading("toy", False, 8, 40, False)
    comparison = Comparison(heading, [], [], [], [], [claim, dataclasses.replace(claim, verdict="undecided")])
    result = xr.Dataset(attrs={"found": 0, "writer": "L0H0", "n_prompts": 8, "quarantined": [3]})
    part = scan_part(quiet(), 64, None)
    found = shortfalls(comparison, part, {"v_patch": result}, {"post_5": "no result of dla_scatter in the store"})
    said = [item.what for item in found]
    assert said == [
        "Not so here: the moon is green",
        "PARTIAL 7/8 prompts",
        "No erasure found",
        "The figures' roles are not confirmed",
        "Not drawn: post_5",
    ]
    assert [item.what for item in shortfalls(None, None, {}, {})] == ["No scan"]
    whole = xr.Dataset(attrs={"found": 1, "n_prompts": 8})
    confirmed = scan_part(erased(), 64, kept())
    assert shortfalls(None, confirmed, {"v_patch": whole}, {}) == []
    few = xr.Dataset(attrs={"found": 1, "n_prompts": 3})
    (said_of_few,) = shortfalls(None, confirmed, {"v_patch": whole, "dla_scatter": few, "scan": whole}, {})
    assert said_of_few.what == "The first 3 of 8 prompts"
    assert said_of_few.detail.startswith("dla_scatter: fewer were declared")
