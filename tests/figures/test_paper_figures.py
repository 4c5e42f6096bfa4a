"""Every figure view: valid, complete, safe and the same twice, on the paper's subject and on awkward ones."""

from __future__ import annotations

import csv
import io
import json
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import altair as alt
import numpy as np
import pytest
import vl_convert
import xarray as xr

import paper_figures
from paper_figures import parts, plots, text, theme

PUBLISHED = Path(__file__).parents[2] / "repro" / "check" / "published" / "gelu4l_resid_onto_node.csv"
QUANTILES = ["lower", "median", "upper"]
NASTY = "</script><script>alert('x')</script> \"quoted\" {datum.x} <!-- \u2028"


def labels(layers: int, heads: int) -> tuple[list[str], list[str]]:
    """Nodes in model order and sites in stream order."""
    nodes = [n for i in range(layers) for n in [*(f"L{i}H{h}" for h in range(heads)), f"MLP{i}"]]
    sites = ["resid_pre0"] + [s for i in range(layers) for s in (f"resid_mid{i}", f"resid_post{i}")]
    return nodes, sites


class Subject:
    """Summaries of every measure, exactly as the store describes them, for a model of any size."""

    def __init__(
        self, layers: int, heads: int, writer: str, erasers: list[str], layer: int | str, **attrs: Any
    ) -> None:
        self.nodes, self.sites = labels(layers, heads)
        self.heads, self.writer, self.erasers, self.layer = heads, writer, erasers, layer
        # What is patched: whole layers of heads, and MLPs.
        whole = {label[: label.index("H") + 1] for label in erasers if "H" in label} or {f"L{layer}H"}
        self.patched = [n for n in self.nodes if n in erasers or (n.startswith("L") and n[: n.index("H") + 1] in whole)]
        self.rng = np.random.default_rng(7)
        self.attrs: dict[str, Any] = {
            "subject": "gelu-4l", "model": "NeelNanda/GELU_4L512W_C4_Code", "experiment": "e", "measure": "m",
            "writer": writer, "erasers": erasers, "layer": layer, "found": bool(erasers), "n_prompts": 300,
            "n_positions": 1024, "quantiles": [0.25, 0.75], "roles": "named", "examples": "named", "options": {},
            "title": "Projection of the residual stream", "subtitle": "gelu-4l · NeelNanda/GELU_4L512W_C4_Code",
        } | attrs  # fmt: skip

    def banded(self, median: np.ndarray, width: float = 0.18) -> np.ndarray:
        """Quartiles around a median, lower below and upper above it."""
        away = np.abs(self.rng.normal(width, width / 3, (2, *median.shape))) * (0.15 + np.abs(median))
        return np.stack([median - away[0], median, median + away[1]]).astype("float32")

    def dataset(self, variables: dict[str, Any], coords: dict[str, Any], **attrs: Any) -> xr.Dataset:
        return xr.Dataset(variables, {"quantile": QUANTILES} | coords, self.attrs | attrs)

    def sites_onto_nodes(self, **attrs: Any) -> xr.Dataset:
        shape = (len(self.nodes), len(self.sites))
        pr = self.banded(np.cumsum(self.rng.normal(0, 0.3, shape), axis=1))
        return self.dataset(
            {"pr": (("quantile", "node", "site"), pr), "nan_count": (("node", "site"), np.zeros(shape, "int64"))},
            {"node": self.nodes, "site": self.sites}, **attrs,
        )  # fmt: skip

    def nodes_onto_writer(self, **attrs: Any) -> xr.Dataset:
        others = [n for n in self.nodes if n != self.writer]
        median = self.rng.normal(0, 0.02, len(others))
        for label, value in PUBLISHED_BARS.items():
            if label in others:
                median[others.index(label)] = value
        component = [*others, "erasers"] if self.erasers else others
        median = np.append(median, -0.903) if self.erasers else median
        return self.dataset(
            {"pr": (("quantile", "component"), self.banded(median, 0.4)),
             "nan_count": ("component", np.zeros(len(component), "int64"))},
            {"component": component}, **attrs,
        )  # fmt: skip

    def v_patch(self, **attrs: Any) -> xr.Dataset:
        clean = np.r_[np.full(len(self.sites), 0.05)]
        start, end = (
            self.sites.index(f"resid_mid{parts.layer_of(self.writer)}"),
            self.sites.index(f"resid_mid{parts.layer_of(self.patched[0])}"),
        )
        clean[start:end] = 1.01
        clean[:start] = 0.01
        patched = clean.copy()
        patched[end:] = np.linspace(0.88, 0.48, len(self.sites) - end)
        heads = self.patched
        values = np.array([PUBLISHED_BARS.get(h, 0.004) for h in heads])
        return self.dataset(
            {"site_pr": (("quantile", "run", "site"), self.banded(np.stack([clean, patched]))),
             "head_pr": (("quantile", "run", "head"), self.banded(np.stack([values, values / 9]), 0.3)),
             "site_nan_count": (("run", "site"), np.zeros((2, len(self.sites)), "int64")),
             "head_nan_count": (("run", "head"), np.zeros((2, len(heads)), "int64"))},
            {"run": ["clean", "patched"], "site": self.sites, "head": heads}, **attrs,
        )  # fmt: skip

    def resampled_dla(self, **attrs: Any) -> xr.Dataset:
        shown = [h for h in ("L3H1", "L2H1", "L3H5", "L2H2") if h in self.nodes] or [
            n for n in self.nodes if "H" in n and n != self.writer
        ][:4]
        texts = [
            "It's in the cupboard, either on the top or on the",
            "I went to university at Michigan",
            "class MyClass:\n\tdef",
            "The church I go to is the Seventh-day Adventist",
        ][: len(shown)]
        pairs = [(" bottom", " top"), (" State", " University"), (" __", " get"), (" Church", " church")][: len(shown)]
        n = len(shown)
        heads = [self.writer, *shown]
        clean, moved = np.zeros((n, n + 1)), np.zeros((n, n + 1))
        clean[:, 0], moved[:, 0] = (0.60, 0.84, 0.95, 0.247)[:n], (0.60, 0.815, 0.975, 0.248)[:n]
        for i, (a, b) in enumerate(zip((1.14, 0.84, 2.30, 0.53), (0.09, 0.04, 0.72, 0.17), strict=True)):
            if i < n:
                clean[i, i + 1], moved[i, i + 1] = a, b
        return self.dataset(
            {"clean": (("example", "head"), clean), "resampled": (("quantile", "example", "head"), self.banded(moved)),
             "logit_diff": ("example", np.array([1.07, 1.89, 3.02, 0.94])[:n]), "top2_named": ("example", [True] * n)},
            {"example": [f"example{i}" for i in range(n)], "head": heads, "text": ("example", texts),
             "answer": ("example", [a for a, _ in pairs]), "other": ("example", [b for _, b in pairs]),
             "first": ("example", [a for a, _ in pairs]), "second": ("example", [b for _, b in pairs]),
             "head_shown": ("example", shown)}, **attrs,
        )  # fmt: skip

    def dla_scatter(self, prompts: int = 30, positions: int = 1024, **attrs: Any) -> xr.Dataset:
        x = self.rng.normal(0.25, 0.45, (prompts, positions))
        y = np.stack(
            [-0.17 * x + self.rng.normal(0.1, 0.5, x.shape), -0.723 * x + 0.052 + self.rng.normal(0, 0.3, x.shape)]
        )
        ex, ey = np.linspace(x.min(), x.max(), 81), np.linspace(y.min(), y.max(), 81)
        density = np.stack([np.histogram2d(a.ravel(), x.ravel(), [ey, ex])[0] for a in y]).astype("int64")
        fits = [np.polyfit(x.ravel(), a.ravel(), 1) for a in y]
        return self.dataset(
            {"writer_dla": (("prompt", "position"), x), "answer_dla": (("against", "prompt", "position"), y),
             "pearson_r": ("against", [np.corrcoef(x.ravel(), a.ravel())[0, 1] for a in y]),
             "slope": ("against", [f[0] for f in fits]), "intercept": ("against", [f[1] for f in fits]),
             "n_points": ("against", [x.size, x.size]), "density": (("against", "y_bin", "x_bin"), density)},
            {"against": ["output", "v_composition"], "x": ("x_bin", (ex[1:] + ex[:-1]) / 2),
             "y": ("y_bin", (ey[1:] + ey[:-1]) / 2)},
            x_edges=ex.tolist(), y_edges=ey.tolist(), **attrs,
        )  # fmt: skip

    def dla_card(self, prompts: int = 4, targets: int = 6, **attrs: Any) -> xr.Dataset:
        writers = [*([self.writer] if self.writer in self.nodes else []), *self.nodes[::-1]][:20]
        writers = list(dict.fromkeys(writers))
        W, named = len(writers), ["dla", "dla_star", "held", "halves", "gradient"]
        values = self.rng.normal(0, 0.6, (5, W, targets, prompts))
        total = values[2] + self.rng.normal(0, 0.3, (3, W, targets, prompts))
        share = np.where(np.arange(W) % 3 == 0, 0.55, 0.0)

        def bounds(x: np.ndarray) -> np.ndarray:
            return np.stack([0.8 * x, x, 1.2 * x])

        size, effect = np.abs(values).mean((-2, -1)), np.abs(total).mean((-2, -1))
        erases = np.zeros((W, len(self.nodes)), "int8")
        erases[share > 0, -1] = 1
        pearson = self.rng.uniform(0.3, 0.9, (3, 5, 3, 3))
        return self.dataset(
            {"mean_abs": (("bound", "attribution", "writer"), bounds(size)),
             "total_abs": (("bound", "ablation", "writer"), bounds(effect)),
             "taken_back": (("bound", "writer"), bounds(share)),
             "taken_abs": (("bound", "writer"), bounds(share * size[0])),
             "verdict": ("writer", np.where(share > 0, "partly taken back", "mostly indirect").astype(object)),
             "erases": (("writer", "component"), erases),
             "erasers_from": ("writer", np.array(["roles", *["shares"] * (W - 1)], dtype=object)),
             "values": (("attribution", "writer", "target", "prompt"), values),
             "total": (("ablation", "writer", "target", "prompt"), total),
             "pearson": (("bound", "attribution", "ablation", "kind"), pearson)},
            {"writer": writers, "component": self.nodes, "attribution": named,
             "ablation": ["zero", "mean", "resampled"], "bound": ["lower", "estimate", "upper"],
             "kind": ["heads", "MLPs", "all"]}, **attrs,
        )  # fmt: skip

    def pr_by_position(self, **attrs: Any) -> xr.Dataset:
        p = np.arange(1024)
        median = np.stack(
            [
                np.interp(i, [0, 1, 2, 4, 5, 8], [0, 1, 1, 1, 0.1, 0.05]) + 0.4 / np.sqrt(p + 1) * np.cos(i)
                for i in range(len(self.sites))
            ]
        )
        share = self.rng.dirichlet([1, 4, 3], len(self.sites)).T
        return self.dataset(
            {"pr": (("quantile", "site", "position"), self.banded(median)),
             "variance_share": (("source", "site"), share)},
            {"site": self.sites, "position": p, "source": ["prompt", "position", "interaction"]}, **attrs,
        )  # fmt: skip


PUBLISHED_BARS = {
    "MLP0": 0.086, "L0H0": 0.04, "L0H7": -0.024, "L2H2": -0.145, "L2H3": -0.035, "L2H4": -0.118, "L2H5": -0.263,
    "L2H6": -0.177, "L2H7": -0.143, "L3H5": -0.03,
}  # fmt: skip


class Gelu4L(Subject):
    """The paper's subject, with its published medians and quartiles."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(4, 8, "L0H2", [f"L2H{h}" for h in range(2, 8)], 2, **attrs)

    def sites_onto_nodes(self, **attrs: Any) -> xr.Dataset:
        ds = super().sites_onto_nodes(**attrs)
        with PUBLISHED.open() as lines:
            for row in csv.DictReader(lines):
                at = {"node": row["node"], "site": row["site"]}
                ds["pr"].loc[at] = [float(row[q]) for q in ("q25", "q50", "q75")]
        return ds


VIEWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "LW 1 top": ("site_heads", "sites_onto_nodes", {}),
    "LW 1 bottom": ("site_writer", "sites_onto_nodes", {}),
    "LW 2": ("nodes_onto_writer", "nodes_onto_writer", {}),
    "P 2": ("nodes_onto_writer", "nodes_onto_writer", {"layers": [1, 2, 3]}),
    "LW 3a": ("patched_sites", "v_patch", {}),
    "LW 3b": ("patched_heads", "v_patch", {}),
    "P 3": ("patched_heads", "v_patch", {"heads": "erasers"}),
    "LW 4a": ("resampled_dla", "resampled_dla", {}),
    "LW 4b": ("resampled_dla", "resampled_dla", {"show": "others"}),
    "P 5": ("resampled_dla", "resampled_dla", {"show": "both"}),
    "LW 5": ("scatter", "dla_scatter", {}),
    "appendix": ("resid_onto_nodes", "sites_onto_nodes", {}),
    "by position": ("by_position", "pr_by_position", {}),
    "card": ("dla_card", "dla_card", {}),
    "net effect": ("net_scatter", "dla_card", {}),
}
SUBJECTS = {
    "gelu-4l": Gelu4L(),
    "toy without erasers": Subject(2, 4, "L0H1", [], 1),
    "two found wanting": Subject(3, 2, "L1H0", ["L2H1"], 2, found=False, roles="auto"),
    "any nodes": Subject(4, 3, "MLP0", ["L1H2", "MLP1", "L3H0"], "1 and 3", roles="named, claimed"),
}


def dataset(view: str, subject: str = "gelu-4l", **attrs: Any) -> xr.Dataset:
    _, measure, options = VIEWS[view]
    built: xr.Dataset = getattr(SUBJECTS[subject], measure)(options=options, **attrs)
    return built


def draw(view: str, ds: xr.Dataset) -> dict[str, Any]:
    return paper_figures.spec(VIEWS[view][0], ds)


def svg(spec: dict[str, Any]) -> str:
    picture: str = vl_convert.vegalite_to_svg(spec)
    return picture


def words(picture: str) -> list[str]:
    """Every line of text in the picture, as a reader sees it."""
    tags = {"{http://www.w3.org/2000/svg}text", "{http://www.w3.org/2000/svg}tspan"}
    return [e.text for e in ElementTree.fromstring(picture).iter() if e.tag in tags and e.text]


def rows(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Every row of data that a chart's spec carries."""
    return [row for values in spec["datasets"].values() for row in values]


@cache
def drawn(view: str, subject: str) -> tuple[xr.Dataset, dict[str, Any], str]:
    """The summary, the chart's spec, checked against Vega-Lite's schema, and its picture."""
    ds = dataset(view, subject)
    spec = paper_figures.chart(VIEWS[view][0], ds).to_dict()
    return ds, spec, svg(spec)


every_view = pytest.mark.parametrize("view", VIEWS)
every_subject = pytest.mark.parametrize("subject", SUBJECTS)


@every_view
@every_subject
def test_every_view_of_every_subject_is_valid_and_says_whose_it_is(view: str, subject: str) -> None:
    ds, spec, picture = drawn(view, subject)
    json.dumps(spec, allow_nan=False)
    seen = words(picture)
    assert ds.attrs["title"] in seen
    assert " ".join(seen).count("GELU_4L512W_C4_Code") == 1
    assert any(line.startswith("Caveat: no erasure found") for line in seen) != ds.attrs["found"]


@every_view
@every_subject
def test_quartiles_keep_their_order_and_no_row_is_lost(view: str, subject: str) -> None:
    ds, spec, _ = drawn(view, subject)
    kept = [r for r in rows(spec) if r.get("lower") is not None]
    assert all(r["lower"] <= r["median"] <= r["upper"] for r in kept)
    whole = {
        # An MLP that writes is shown beside the heads of its layer.
        "LW 1 top": ds.sizes.get("site", 0) * (SUBJECTS[subject].heads + SUBJECTS[subject].writer.startswith("MLP")),
        "appendix": ds.sizes.get("node", 0) * ds.sizes.get("site", 0),
    }
    whole |= {
        "LW 1 bottom": ds.sizes.get("site", 0),
        "LW 2": ds.sizes.get("component", 0),
        "LW 3a": 2 * ds.sizes.get("site", 0),
    }
    if view in whole:
        assert len(kept) == whole[view]


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ("LW 1 top", ["MLP0", "L0H0", "L0H2"]),
        ("LW 1 bottom", ["layer 0: MLP0 writes", "layer 1: erasers", "layer 3: erasers"]),
        ("LW 2", ["L1H2", "MLP1", "L3H0", "L0H0", "sum of erasers"]),
        ("LW 3a", ["layer 1: patched", "layer 3: patched"]),
        ("LW 3b", ["L1H0", "L1H2", "MLP1", "L3H0", "L3H2", "component", "projection ratio PR(component, MLP0)"]),
        ("P 3", ["L1H2", "MLP1", "L3H0"]),
        ("LW 4a", ["DLA of MLP0, the writer (logits)"]),
        ("LW 5", ["DLA of the erasers, the paths from the writer alone (logits)"]),
        ("by position", ["PR(resid_post0, MLP0)", "PR(resid_mid3, MLP0)", "PR(resid_post3, MLP0)"]),
    ],
)
def test_roles_may_be_any_nodes_of_any_layers(view: str, expected: list[str]) -> None:
    seen = words(drawn(view, "any nodes")[2])
    assert set(expected) <= set(seen)
    if view == "LW 3a":
        patched = "the value input of every head of layers 1 and 3 and the input of MLP1."
        assert patched in " ".join(seen)
    if view == "P 3":
        assert not {"L1H0", "L3H1"} & set(seen)


def test_of_many_patched_layers_only_the_erasers_are_shown() -> None:
    erasers = ["MLP3", "L4H1", "L9H0"]
    many = Subject(12, 40, "L3H1", erasers, "3, 4 and 9")
    seen = words(svg(draw("LW 3b", many.v_patch())))
    assert set(erasers) <= set(seen)
    assert "L4H0" not in seen
    assert "Of 81 patched heads and MLPs 3 are shown." in seen


def test_named_roles_that_the_scan_does_not_claim_carry_their_own_caveat() -> None:
    roles = "named, not claimed by the scan"
    ds = dataset("LW 1 bottom", "any nodes", roles=roles, found=0)
    seen = words(svg(draw("LW 1 bottom", ds)))
    assert "Caveat: the scan does not claim that L1H2, MLP1, L3H0 erase MLP0." in seen
    one = ds.assign_attrs(erasers="MLP1")
    assert theme.caveat(one) == "Caveat: the scan does not claim that MLP1 erases MLP0."


def test_a_node_that_is_projected_on_by_name_takes_the_writers_place() -> None:
    seen = words(svg(draw("by position", dataset("by position", onto="L1H4"))))
    assert {"PR(resid_mid1, L1H4)", "PR(resid_mid2, L1H4)", "variance of PR(site, L1H4) by source"} <= set(seen)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ("LW 1 top", [f"L0H{h}" for h in range(8)]),
        ("LW 1 bottom", ["layer 0: L0H2 writes", "layer 2: erasers", "0.96", "1.02", "0.10"]),
        ("LW 2", [*(n for n in labels(4, 8)[0] if n != "L0H2"), "sum", "sum of erasers", "\u22120.903", "layer 3"]),
        ("P 2", [n for n in labels(4, 8)[0] if n[-3:-2] in "123"]),
        ("LW 3a", ["clean", "patched", "layer 2: patched"]),
        ("LW 3b", ["clean", "patched", *(f"L2H{h}" for h in range(8))]),
        ("P 3", ["clean", "patched", *(f"L2H{h}" for h in range(2, 8))]),
        (
            "LW 4a",
            ["·bottom / ·top", "·__ / ·get", "class MyClass:\\n\\tdef", "logit difference 3.02", "0.248"],
        ),
        ("LW 4b", ["L3H1", "L2H1", "L3H5", "L2H2", "2.300", "0.720"]),
        ("P 5", ["L3H1", "L2H1", "L3H5", "L2H2", "0.950", "0.975", "·Church / ·church"]),
        ("LW 5", ["perfect erasure", "points per bin"]),
        ("appendix", [*labels(4, 8)[0], *labels(4, 8)[1], "10.14", "\u22122.41"]),
        ("card", ["taken back", "total effect, zero ablation", "L0H2", "MLP3", "mostly indirect"]),
        ("net effect", ["heads", "MLPs", "equal", "DLA (logits)"]),
        ("by position", ["PR(resid_mid0, L0H2)", "PR(resid_post1, L0H2)", "PR(resid_mid2, L0H2)", "prompt", "1024"]),
    ],
)
def test_labels_a_reader_of_the_paper_looks_for(view: str, expected: list[str]) -> None:
    ds, _, picture = drawn(view, "gelu-4l")
    wanted = [*expected, *labels(4, 8)[1]] if view in ("LW 1 top", "LW 1 bottom", "LW 3a", "appendix") else expected
    assert set(wanted) <= set(words(picture))
    assert "Infinity" not in picture
    assert ds.attrs["title"] in picture
    if view == "LW 5":
        assert sum(line.startswith("fit: r = ") and line.endswith("n = 30,720") for line in words(picture)) == 2


def test_views_limited_by_an_option_show_nothing_else() -> None:
    assert not {"L0H0", "MLP0"} & set(words(drawn("P 2", "gelu-4l")[2]))
    assert not {"L2H0", "L2H1"} & set(words(drawn("P 3", "gelu-4l")[2]))
    assert not {"L3H1"} & set(words(drawn("LW 4a", "gelu-4l")[2]))
    assert "No eraser among what is patched: all of it is shown." in words(drawn("P 3", "toy without erasers")[2])


def test_the_writer_alone_is_highlighted_and_carries_its_published_medians() -> None:
    lines = [r for r in rows(drawn("LW 1 top", "gelu-4l")[1]) if "site" in r]
    assert {r["node"] for r in lines if r["colour"] == theme.WRITER} == {"L0H2"}
    assert len({r["colour"] for r in lines}) == 8
    with PUBLISHED.open() as published:
        want = {(r["node"], r["site"]): float(r["q50"]) for r in csv.DictReader(published)}
    for view in ("LW 1 top", "LW 1 bottom", "appendix"):
        got = {(r["node"], r["site"]): r["median"] for r in rows(drawn(view, "gelu-4l")[1]) if "median" in r}
        assert all(value == pytest.approx(want[at], rel=1e-5) for at, value in got.items())
    blue = {r["component"] for r in rows(drawn("LW 2", "gelu-4l")[1]) if r.get("colour") == theme.ERASER}
    assert blue == {*SUBJECTS["gelu-4l"].erasers, "sum"}


def test_the_appendix_counts_what_its_colours_do_not_reach() -> None:
    ds, _, picture = drawn("appendix", "gelu-4l")
    medians = ds["pr"].sel(quantile="median").values
    beyond = int(((medians < -1) | (medians > 2)).sum())
    assert f"; {beyond} of 324 medians lie beyond" in " ".join(words(picture))
    calm = ds.assign(pr=ds["pr"] * 0.01)
    assert "no median lies beyond" in " ".join(words(svg(draw("appendix", calm))))


def test_undefined_values_are_told_and_leave_a_gap() -> None:
    for view, name, counts in (
        ("LW 1 top", "pr", "nan_count"), ("appendix", "pr", "nan_count"), ("LW 2", "pr", "nan_count"),
        ("LW 3a", "site_pr", "site_nan_count"), ("LW 3b", "head_pr", "head_nan_count"),
    ):  # fmt: skip
        ds = dataset(view).copy(deep=True)
        first = dict.fromkeys(ds[counts].dims, 0)
        ds[name][first | {"quantile": slice(None)}] = np.nan
        ds[counts][first] = 307_200
        spec = draw(view, ds)
        json.dumps(spec, allow_nan=False)
        told = " ".join(words(svg(spec)))
        assert "left out: 307,200 of" in told
        assert "medians are undefined" in told
        assert "left out" not in " ".join(words(drawn(view, "gelu-4l")[2]))
    gone = dataset("LW 4a").copy(deep=True)
    gone["resampled"][:] = np.nan
    assert words(svg(draw("LW 4a", gone))).count("undefined") == 8, "each with its outline"


@every_view
def test_nothing_at_all_to_draw_is_still_a_figure(view: str) -> None:
    ds = dataset(view).copy(deep=True)
    for variable in ds.data_vars.values():
        if variable.dtype.kind == "f":
            variable[:] = np.nan
    if "density" in ds:
        ds["density"][:] = 0
    json.dumps(draw(view, ds), allow_nan=False)


@pytest.mark.parametrize("scale", [0.05, 1.0, 40.0])
def test_axes_hold_everything_drawn(scale: float) -> None:
    ds = dataset("LW 1 bottom")
    ds = ds.assign(pr=ds["pr"] * scale)
    found = [
        json.loads(d)
        for d in re.findall(r'"domain": (\[-?[\d.e-]+, -?[\d.e-]+\])', json.dumps(draw("LW 1 bottom", ds)))
    ]
    here = ds["pr"].sel(node="L0H2")
    assert found
    assert all(lo <= min(0, float(here.min())) and hi >= max(1, float(here.max())) for lo, hi in found)


def test_all_raw_points_pass_and_no_global_setting_moves() -> None:
    ds = dataset("LW 5")
    before = alt.data_transformers.active, alt.data_transformers.options, alt.theme.active
    chart = paper_figures.load("scatter").points(ds)
    written = io.BytesIO()
    chart.save(written, format="png")
    assert written.getvalue()[:4] == b"\x89PNG"
    assert json.dumps(chart.to_dict()).count("\\n") > 2 * 30_720
    assert before == (alt.data_transformers.active, alt.data_transformers.options, alt.theme.active)
    fewer = ds.copy(deep=True)
    fewer["writer_dla"][0, :5] = np.nan
    fewer["density"][0] = 0
    assert "10 points are not drawn" in json.dumps(paper_figures.load("scatter").points(fewer).to_dict())
    assert "points are not drawn" in json.dumps(draw("LW 5", fewer))


def test_every_point_is_in_a_bin_of_the_stored_edges() -> None:
    spec = json.dumps(draw("LW 5", dataset("LW 5")))
    bins = re.findall(r'"values": "x,x2,y,y2,points\\n([^"]*)"', spec)
    assert sum(float(line.split(",")[-1]) for found in bins for line in found.split("\\n")) == 2 * 30_720


def test_a_figure_is_the_same_twice_and_changes_with_its_data() -> None:
    for view in ("LW 1 bottom", "appendix", "LW 5"):
        ds, first, picture = drawn(view, "gelu-4l")
        second = draw(view, ds.copy(deep=True))
        assert svg(second) == picture
        assert second == first
    assert vl_convert.vegalite_to_png(first) == vl_convert.vegalite_to_png(second)
    assert svg(draw("LW 1 bottom", dataset("LW 1 bottom", title="another"))) != svg(drawn("LW 1 bottom", "gelu-4l")[1])


def test_text_from_a_prompt_cannot_act() -> None:
    ds = dataset("P 5", title=NASTY, subtitle=NASTY)
    ds = ds.assign_coords(
        text=("example", [NASTY] * 4), answer=("example", [NASTY] * 4), example=[f"{NASTY}{i}" for i in range(4)]
    )
    ds["top2_named"][:] = False
    chart = draw("P 5", ds)
    picture = svg(chart)
    assert "<script" not in picture
    seen = " ".join(words(picture))
    assert "{datum.x}" in seen
    assert "<script>alert('x')</script>" in seen


def test_mined_examples_and_pairs_that_are_not_the_top_two_are_marked() -> None:
    ds = dataset("LW 4a", examples="mined")
    ds["top2_named"][1] = False
    ds["nan_count"] = (("example", "head"), np.eye(4, 5, dtype="int64"))
    ds = ds.assign_coords(first=("example", [" a", " University", " b", " c"]))
    told = words(svg(draw("LW 4a", ds)))
    assert any("MINED" in line for line in told)
    assert any(line.startswith("Up to 1 of these texts") for line in told)
    assert "·State / ·University *" in told
    assert any("·University / ·University instead" in line for line in told)
    assert not any("MINED" in line for line in words(drawn("LW 4a", "gelu-4l")[2]))


def test_a_model_of_thirty_layers_is_drawn_whole() -> None:
    big = Subject(30, 2, "L3H1", ["L7H0", "L7H1"], 7)
    seen = words(svg(draw("appendix", big.sites_onto_nodes())))
    assert {"L3H1", "L0H0", "L29H0", "resid_post29"} <= set(seen)
    bars = draw("LW 2", big.nodes_onto_writer())
    assert len({r["component"] for r in rows(bars) if "component" in r}) == 90
    assert {"L7H0", "L7H1", "29"} <= set(words(svg(bars)))


@every_view
def test_charts_that_share_what_they_hold_are_those_that_altair_copies_whole(
    view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = dataset(view, "two found wanting")
    shared = draw(view, ds)
    for kind in (plots.Chart, plots.LayerChart):
        monkeypatch.delattr(kind, "__deepcopy__")
    assert draw(view, ds) == shared


@pytest.mark.parametrize(
    ("view", "options", "wording"),
    [
        ("LW 1 top", {"layer": 1}, "unknown option 'layer'; this figure reads none"),
        ("LW 2", {"layers": [9]}, "holds no component"),
        ("LW 3b", {"heads": "some"}, "option 'heads' is 'some'; allowed: all, erasers"),
        ("LW 4a", {"shown": "writer"}, "unknown option 'shown'; this figure reads show"),
        ("by position", {"sites": ["resid_mid9"]}, "resid_mid9"),
        ("card", {"ablation": "none"}, "option 'ablation' is 'none'; allowed: zero, mean, resampled"),
        ("net effect", {"against": "truth"}, "allowed: held, halves, gradient, total"),
    ],
)
def test_a_wrong_option_is_named(view: str, options: dict[str, Any], wording: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wording)):
        draw(view, dataset(view).assign_attrs(options=options))


def test_views_are_found_by_name_and_nothing_else_is() -> None:
    assert {view for view, _, _ in VIEWS.values()} == set(paper_figures.names())
    assert all(callable(paper_figures.load(name).chart) for name in paper_figures.names())
    for wrong in ("theme", "os", "site_head"):
        with pytest.raises(KeyError, match=wrong):
            paper_figures.load(wrong)
    with pytest.raises(ValueError, match="neither a head"):
        parts.layer_of("H2")


def test_words_are_wrapped_whole_cut_at_the_front_and_made_visible() -> None:
    said = "a long sentence with oneveryveryverylongword that must be broken somewhere " * 3
    lines = text.wrap(said, 120, 11)
    assert "".join("".join(lines).split()) == "".join(said.split())
    assert all(text.text_width(line, 11) <= 120 for line in lines)
    kept = text.ending(said, 120, 11, 2)
    assert len(kept) == 2
    assert kept[0].startswith("…")
    assert kept[-1].endswith("somewhere")
    assert text.ending("short", 120, 11, 2) == ["short"]
    cut = text.ending("x" * 400, 120, 11, 2)
    assert len(cut) == 2
    assert cut[0].startswith("…xxxxxxx")
    assert text.ending("", 120, 11, 2) == [""]
    assert text.visible("a\n\tb\u200f") == "a\\n\\tb\\u200f"
    assert text.visible("def f():\n    a b ") == "def f():\\n····a b·"
    assert [text.number(v) for v in (-0.001, -1.5, float("nan"))] == ["0.00", "\u22121.50", "\u2013"]


def test_direct_labels_keep_their_order_and_their_distance() -> None:
    values = [0.5, 0.1, 0.11, 0.12, -1.0]
    placed = parts.spread(values, 0.1, -1.2, 1.2)
    ordered = sorted(placed)
    assert all(b - a >= 0.1 - 1e-6 for a, b in pairwise(ordered))
    assert [values.index(v) for v in sorted(values)] == [placed.index(p) for p in ordered]
    assert parts.spread([0.5, -0.5], 0.1, -1, 1) == [0.5, -0.5]
    assert parts.spread([], 0.1, -1, 1) == []
