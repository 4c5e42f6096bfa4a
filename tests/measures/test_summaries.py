"""Every measure's reduction, through a real store on disk, against brute force on the raw arrays."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.stats import linregress

from repro.measures import DLAScatter, Measure, MineExamples, Projection, ResampledDLA, VPatch
from repro.measures.describe import DERIVED, described, mark_capped
from repro.measures.mine_examples import mined_positions
from repro.measures.reduce import summarise
from repro.measures.roles import ExampleTokens
from repro.store.layout import DIMENSIONS
from repro.store.result import open_result, read_summary
from tests.scenes import ROLES, Scene, model, prompts, scaled_head, single_precision

Reduce = Callable[..., tuple[xr.Dataset, dict[str, np.ndarray]]]
SITES_ON_NODES = Projection(measure="projection", of="sites", onto="nodes")
NODES = Projection(measure="projection", of="nodes", onto="$writer")


def small(kind: str = "native", **changes: Any) -> Scene:
    """5 prompts of 12 tokens in single precision, the type of the store."""
    return replace(Scene(single_precision(model(kind)), ROLES[kind], prompts(5, 12)), **changes)


@pytest.fixture
def reduce(tmp_path: Path) -> Reduce:
    """Computes an experiment, stores it in units of 2 prompts, reduces it from there, and reads the summary back."""

    def run(experiment: Measure, shown: Scene) -> tuple[xr.Dataset, dict[str, np.ndarray]]:
        context = shown.context
        declared = experiment.layout(context)
        result = open_result(tmp_path / "subject" / "experiment" / "key", declared, 2, {"environment": {}})
        computed = shown.compute(experiment)
        arrays = {variable.name: computed[variable.name].astype(variable.dtype) for variable in declared.variables}
        for unit in range(3):
            rows = declared.prompts(2, unit)
            result.write_unit(unit, {v.name: arrays[v.name][declared.index(v, rows)] for v in declared.variables})
        once = shown.prepared(experiment)
        result.finalise(summarise(experiment, context, result, once, lambda token: f"<{token}>"))
        return read_summary(result.path), arrays

    return run


def band(values: np.ndarray, at: tuple[float, float] = (0.25, 0.75)) -> np.ndarray:
    """Quantiles over the last two axes by numpy, NaN excluded."""
    flat = values.astype(np.float64).reshape(*values.shape[:-2], -1)
    return np.array([[np.nanquantile(row, q) for row in flat.reshape(-1, flat.shape[-1])] for q in (at[0], 0.5, at[1])])


def assert_pooled(dataset: xr.Dataset, name: str, values: np.ndarray, at: tuple[float, float] = (0.25, 0.75)) -> None:
    """The summary's variable against brute force."""
    assert dataset[name].dims[0] == "quantile"
    assert dataset["quantile"].values.tolist() == ["lower", "median", "upper"]
    np.testing.assert_allclose(dataset[name].values.reshape(3, -1), band(values, at), rtol=1e-6, atol=1e-9)


def test_sites_on_nodes(reduce: Reduce) -> None:
    shown = small()
    dataset, arrays = reduce(SITES_ON_NODES, shown)
    assert_pooled(dataset, "pr", arrays["pr"])
    assert dataset["pr"].dims == ("quantile", "node", "site")
    assert dataset["node"].values.tolist() == shown.context.nodes
    assert dataset["site"].values.tolist() == shown.context.sites
    assert not dataset["nan_count"].any()
    told = {
        "measure": "projection", "writer": "L0H1", "layer": 2, "roles": "named, no scan yet",
        "n_prompts": 5, "n_positions": 12,
    }  # fmt: skip
    assert {key: dataset.attrs[key] for key in told} == told
    assert dataset.attrs["erasers"] == "L2H0, L2H3"
    assert list(dataset.attrs["quantiles"]) == [0.25, 0.75]


def test_a_silent_node_is_undefined_and_counted(reduce: Reduce) -> None:
    shown = small()
    shown = shown.with_model(scaled_head(shown.model, "L1H2", 0))
    dataset, arrays = reduce(SITES_ON_NODES, shown)
    assert int(np.isnan(arrays["pr"]).sum()) == 7 * 60
    for node in shown.context.nodes:
        counts, values = dataset["nan_count"].sel(node=node), dataset["pr"].sel(node=node)
        assert (counts == (60 if node == "L1H2" else 0)).all()
        assert values.isnull().all() if node == "L1H2" else values.notnull().all()


@pytest.mark.parametrize(
    ("positions", "kept"),
    [(None, slice(None)), ((1, -1), slice(1, None)), ((2, 5), slice(2, 6)), ((3, -3), slice(3, 10))],
)
def test_nodes_on_the_writer_over_some_positions(reduce: Reduce, positions: Any, kept: slice) -> None:
    shown = small("llama")
    experiment = NODES.model_copy(update={"positions": positions, "quantiles": (0.125, 0.875)})
    dataset, arrays = reduce(experiment, shown)
    assert_pooled(dataset, "pr", arrays["pr"][..., kept], (0.125, 0.875))
    assert dataset["component"].values.tolist()[-1] == "erasers"
    assert "L0H3" not in dataset["component"].values
    # Medians do not add: the erasers' sum has a median of its own.
    medians = dataset["pr"].sel(quantile="median")
    assert abs(float(medians.sel(component=list(shown.roles.erasers)).sum() - medians.sel(component="erasers"))) > 1e-6


def test_by_position(reduce: Reduce) -> None:
    experiment = Projection(
        measure="projection", of="sites", onto="$writer", summarise="by_position", positions=(1, -2)
    )
    dataset, arrays = reduce(experiment, small("gpt2"))
    values = arrays["pr"].astype(np.float64)
    expected = np.quantile(values[:, :, 1:11], (0.25, 0.5, 0.75), axis=1)
    assert dataset["position"].values.tolist() == list(range(1, 11))
    np.testing.assert_allclose(dataset["pr"].transpose("quantile", "site", "position"), expected, rtol=1e-6)
    assert dataset["source"].values.tolist() == ["prompt", "position", "interaction"]
    for site, shares in zip(
        values[:, :, 1:11], dataset["variance_share"].transpose("site", "source").values, strict=True
    ):
        deviations = site - site.mean()
        prompt, position = (10 * (deviations.mean(1) ** 2).sum(), 5 * (deviations.mean(0) ** 2).sum())
        np.testing.assert_allclose(shares[:2] * (deviations**2).sum(), (prompt, position), rtol=1e-6)
        assert shares.sum() == pytest.approx(1)


@pytest.mark.parametrize("scale", ["frozen", "recomputed"])
def test_the_patch(reduce: Reduce, scale: Any) -> None:
    shown = small("wide")
    dataset, arrays = reduce(VPatch(measure="v_patch", layer=3, scale=scale), shown)
    assert_pooled(dataset, "site_pr", arrays["site_pr"])
    assert_pooled(dataset, "head_pr", arrays["head_pr"])
    assert dataset["run"].values.tolist() == ["clean", "patched"]
    assert dataset["head"].values.tolist() == [f"L3H{head}" for head in range(5)]
    assert dataset.attrs["layer"] == 3  # the patched layer, though the erasers are in layer 2
    assert dataset.attrs["scale"] == scale
    assert {"site_nan_count", "head_nan_count"} <= set(dataset)


@pytest.mark.parametrize("target", ["top2", "next_token"])
def test_the_scatter(reduce: Reduce, target: Any) -> None:
    experiment = DLAScatter(measure="dla_scatter", target=target, positions=(2, -1))
    dataset, arrays = reduce(experiment, small("rotary"))
    x, stop = arrays["writer_dla"][:, 2:].astype(np.float64), 11 - (target == "next_token")
    n = 5 * (stop + 1 - 2)
    for index, against in enumerate(["output", "v_composition"]):
        y = arrays["answer_dla"][index, :, 2:].astype(np.float64)
        good = np.isfinite(x) & np.isfinite(y)
        line, one = linregress(x[good], y[good]), dataset.sel(against=against)
        assert good.sum() == n == int(one["n_points"])
        ours = [float(one[name]) for name in ("pearson_r", "slope", "intercept")]
        np.testing.assert_allclose(ours, (line.rvalue, line.slope, line.intercept), rtol=1e-6)
        counts = one["density"].transpose("y_bin", "x_bin").values
        assert counts.sum() == n
        x_edges, y_edges = np.array(dataset.attrs["x_edges"]), np.array(dataset.attrs["y_edges"])
        # Each axis's own histogram: transposed bins would show here.
        assert np.array_equal(counts.sum(0), np.histogram(x[good], x_edges)[0])
        assert np.array_equal(counts.sum(1), np.histogram(y[good], y_edges)[0])
        np.testing.assert_allclose(one["answer_dla"], y, rtol=1e-6)
    np.testing.assert_allclose(dataset["x"], (x_edges[1:] + x_edges[:-1]) / 2)
    np.testing.assert_allclose(dataset["y"], (y_edges[1:] + y_edges[:-1]) / 2)
    np.testing.assert_allclose(dataset["writer_dla"], x, rtol=1e-6)
    assert (dataset.attrs["target"], dataset.attrs["v_composition"]) == (target, "attention")


def test_resampled_dla(reduce: Reduce) -> None:
    shown = small()
    own = tuple(shown.tokens[3, :7].tolist())
    mined = ExampleTokens("mined", own, 4, 9, "text of it", " four", " nine", prompt=3)
    probe = replace(shown, examples=(mined,)).prepared(ResampledDLA(measure="resampled_dla"))
    first, second = probe["first"][0], probe["second"][0]
    right = replace(mined, label="right", answer=first, other=second)
    shown = replace(shown, examples=(mined, right))
    dataset, arrays = reduce(ResampledDLA(measure="resampled_dla", resample="last_position"), shown)
    values = arrays["resampled"].astype(np.float64)
    np.testing.assert_allclose(dataset["resampled"], np.nanquantile(values, (0.25, 0.5, 0.75), axis=-1), rtol=1e-6)
    assert (dataset["nan_count"] == 1).all()  # its own prompt
    assert np.isnan(values[:, :, 3]).all()
    assert dataset["top2_named"].values.tolist() == [False, True]
    assert dataset["first"].values.tolist() == [f"<{first}>"] * 2
    assert dataset["second"].values.tolist() == [f"<{second}>"] * 2
    assert dataset["text"].values.tolist() == ["text of it"] * 2
    assert dataset["answer"].values.tolist() == [" four"] * 2
    assert dataset["other"].values.tolist() == [" nine"] * 2
    assert (dataset.attrs["examples"], dataset.attrs["resample"]) == ("mined", "last_position")
    once = shown.prepared(ResampledDLA(measure="resampled_dla"))
    np.testing.assert_allclose(dataset["clean"], np.array(once["clean"]))
    np.testing.assert_allclose(dataset["logit_diff"], np.array(once["logit_diff"]))
    shown_heads = dataset["head_shown"].values.tolist()
    assert len(set(shown_heads) | {"L0H1"}) == 3
    clean = dataset["clean"].sel(example="mined").drop_sel(head="L0H1")
    assert shown_heads[0] == clean["head"].values[int(clean.values.argmax())]


def test_examples_are_mined(reduce: Reduce) -> None:
    shown = small("gpt2")
    dataset, arrays = reduce(MineExamples(measure="mine_examples", count=3), shown)
    start = mined_positions(shown.context).start
    mined = json.loads(dataset.attrs["mined"])
    assert len(mined) == 3
    for item in mined:
        at = item["prompt"], item["position"] - start
        assert item["dla"] == pytest.approx(float(arrays["writer_dla"][at]))
        assert (item["first"], item["second"]) == (arrays["first"][at], arrays["second"][at])
        assert item["right"] == (shown.tokens[item["prompt"], item["position"] + 1] == item["first"])
    assert dataset.attrs["right"] == int((arrays["first"] == shown.tokens[:, start + 1 :]).sum())
    assert dataset.attrs["positions"] == arrays["first"].size
    np.testing.assert_allclose(dataset["writer_dla"].values, band(arrays["writer_dla"][None])[:, 0], rtol=1e-6)


# ------------------------------------------------------------------------------------------------- units and long names


@pytest.mark.parametrize(
    "experiment",
    [
        SITES_ON_NODES,
        NODES,
        Projection(measure="projection", of="sites", onto="$writer", summarise="by_position"),
        VPatch(measure="v_patch"),
        DLAScatter(measure="dla_scatter"),
    ],
    ids=lambda experiment: f"{experiment.measure} {getattr(experiment, 'of', '')}".strip(),
)
def test_every_variable_says_its_unit_and_what_it_is(reduce: Reduce, experiment: Measure) -> None:
    dataset, _ = reduce(experiment, small())
    declared = {variable.name for variable in experiment.layout(small().context).variables}
    for name, variable in dataset.variables.items():
        assert set(variable.attrs) >= {"units", "long_name"}, name
        assert name in declared | set(DERIVED) | set(DIMENSIONS), f"{name}: only its name tells what it is"
        assert (variable.attrs["units"] == "") == (variable.dtype.kind == "O"), name
    units = {"DLAScatter": ("slope", "1", "intercept", "logits")}
    if known := units.get(type(experiment).__name__):
        one, its, other, others = known
        assert (dataset[one].attrs["units"], dataset[other].attrs["units"]) == (its, others)


def test_a_measure_may_say_itself_what_its_variables_are() -> None:
    dataset = xr.Dataset({"pr": ("site", [1.0]), "mine_own": ("site", [1.0])}, {"site": ["resid_pre0"]})
    dataset["pr"].attrs["long_name"] = "mine"
    told = described(dataset, SITES_ON_NODES.layout(small().context))
    assert told["pr"].attrs == {"units": "1", "long_name": "mine"}
    assert told["mine_own"].attrs == {"units": "1", "long_name": "mine own"}
    assert told["site"].attrs == {"units": "", "long_name": DIMENSIONS["site"]}


@pytest.mark.parametrize("experiment", [NODES, DLAScatter(measure="dla_scatter", prompts=5)])
def test_only_results_in_logits_speak_of_a_cap(reduce: Reduce, experiment: Measure) -> None:
    dataset, _ = reduce(experiment, small())
    mark_capped(dataset, None)
    assert "logits" not in dataset.attrs
    mark_capped(dataset, 30.0)
    expected = None if experiment is NODES else "before the cap 30 tanh(l / 30)"
    assert dataset.attrs.get("logits") == expected
