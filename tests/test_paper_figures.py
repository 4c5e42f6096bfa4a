"""Every figure view: valid, complete, safe and the same twice, on the paper's subject and on awkward ones."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

PUBLISHED = Path(__file__).parents[1] / "repro" / "published" / "gelu4l_resid_onto_node.csv"
QUANTILES = ["lower", "median", "upper"]
NASTY = "</script><script>alert('x')</script> \"quoted\" {datum.x} <!-- \u2028"


def labels(layers: int, heads: int) -> tuple[list[str], list[str]]:
    """Nodes in model order and sites in stream order."""
    nodes = [n for i in range(layers) for n in [*(f"L{i}H{h}" for h in range(heads)), f"MLP{i}"]]
    sites = ["resid_pre0"] + [s for i in range(layers) for s in (f"resid_mid{i}", f"resid_post{i}")]
    return nodes, sites


class Subject:
    """Summaries of every measure, exactly as the store describes them, for a model of any size."""

    def __init__(self, layers: int, heads: int, writer: str, erasers: list[str], layer: int, **attrs: Any) -> None:
        self.nodes, self.sites = labels(layers, heads)
        self.heads, self.writer, self.erasers, self.layer = heads, writer, erasers, layer
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
        start, end = self.sites.index(f"resid_mid{self.writer[1:].split('H')[0]}"), self.sites.index(f"resid_mid{self.layer}")
        clean[start:end] = 1.01
        clean[:start] = 0.01
        patched = clean.copy()
        patched[end:] = np.linspace(0.88, 0.48, len(self.sites) - end)
        heads = [f"L{self.layer}H{h}" for h in range(self.heads)]
        values = np.array([PUBLISHED_BARS.get(h, 0.004) for h in heads])
        return self.dataset(
            {"site_pr": (("quantile", "run", "site"), self.banded(np.stack([clean, patched]))),
             "head_pr": (("quantile", "run", "head"), self.banded(np.stack([values, values / 9]), 0.3)),
             "site_nan_count": (("run", "site"), np.zeros((2, len(self.sites)), "int64")),
             "head_nan_count": (("run", "head"), np.zeros((2, self.heads), "int64"))},
            {"run": ["clean", "patched"], "site": self.sites, "head": heads}, **attrs,
        )  # fmt: skip

    def resampled_dla(self, **attrs: Any) -> xr.Dataset:
        shown = [h for h in ("L3H1", "L2H1", "L3H5", "L2H2") if h in self.nodes] or [n for n in self.nodes if "H" in n and n != self.writer][:4]
        texts = ["It's in the cupboard, either on the top or on the", "I went to university at Michigan",
                 "class MyClass:\n\tdef", "The church I go to is the Seventh-day Adventist"][: len(shown)]
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
        y = np.stack([-0.17 * x + self.rng.normal(0.1, 0.5, x.shape), -0.723 * x + 0.052 + self.rng.normal(0, 0.3, x.shape)])
        ex, ey = np.linspace(x.min(), x.max(), 81), np.linspace(y.min(), y.max(), 81)
        density = np.stack([np.histogram2d(a.ravel(), x.ravel(), [ey, ex])[0] for a in y]).astype("int64")
        fits = [np.polyfit(x.ravel(), a.ravel(), 1) for a in y]
        return self.dataset(
            {"writer_dla": (("prompt", "position"), x), "answer_dla": (("against", "prompt", "position"), y),
             "pearson_r": ("against", [np.corrcoef(x.ravel(), a.ravel())[0, 1] for a in y]),
             "slope": ("against", [f[0] for f in fits]), "intercept": ("against", [f[1] for f in fits]),
             "n_points": ("against", [x.size, x.size]), "density": (("against", "y_bin", "x_bin"), density)},
            {"against": ["output", "v_composition"], "x": ("x_bin", (ex[1:] + ex[:-1]) / 2), "y": ("y_bin", (ey[1:] + ey[:-1]) / 2)},
            x_edges=ex.tolist(), y_edges=ey.tolist(), **attrs,
        )  # fmt: skip

    def pr_by_position(self, **attrs: Any) -> xr.Dataset:
        p = np.arange(1024)
        median = np.stack([np.interp(i, [0, 1, 2, 4, 5, 8], [0, 1, 1, 1, 0.1, 0.05]) + 0.4 / np.sqrt(p + 1) * np.cos(i) for i in range(len(self.sites))])
        share = self.rng.dirichlet([1, 4, 3], len(self.sites)).T
        return self.dataset(
            {"pr": (("quantile", "site", "position"), self.banded(median)), "variance_share": (("source", "site"), share)},
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
