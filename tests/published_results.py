"""Synthetic results that agree with every published number, and one that disagrees in a single place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from repro.check.published import Number, Published, read_published
from repro.labels import heads, heads_of, nodes, sites

QUANTILES = ["lower", "median", "upper"]
N_PROMPTS = 20
WINDOW = [32, 1022]
NAMED: dict[str, Any] = {
    "subject": "gelu-4l",
    "model": "gelu-4l",
    "writer": "L0H2",
    "erasers": [f"L2H{head}" for head in range(2, 8)],
    "layer": 2,
    "found": True,
    "roles": "named",
    "examples": "named",
    "n_prompts": 300,
    "n_positions": 1024,
    "quantiles": [0.25, 0.75],
}
OTHER_NAMES = {"code_name": "class", "church": "adventist", "shelf": "cupboard", "university": "michigan"}


def banded(shape: tuple[int, ...]) -> np.ndarray:
    """Quantiles around 0 for panels that nobody published."""
    return np.broadcast_to(np.array([-0.05, 0.0, 0.05]).reshape(3, *(1,) * len(shape)), (3, *shape)).copy()


def agreeing() -> dict[str, xr.Dataset]:
    """Summaries of every experiment that reproduce the published numbers exactly."""
    published = read_published()
    labels = nodes(4, 8)
    components = [label for label in labels if label != "L0H2"] + ["erasers"]
    quantile = ("quantile", QUANTILES)
    results = {
        "sites_onto_nodes": xr.Dataset(
            {"pr": (("quantile", "node", "site"), banded((36, 9)))},
            {"quantile": quantile, "node": labels, "site": sites(4)},
        ),
        "nodes_onto_writer": xr.Dataset(
            {"pr": (("quantile", "component"), banded((36,)))}, {"quantile": quantile, "component": components}
        ),
        "v_patch": xr.Dataset(
            {
                "site_pr": (("quantile", "run", "site"), banded((2, 9))),
                "head_pr": (("quantile", "run", "head"), banded((2, 8))),
            },
            {"quantile": quantile, "run": ["clean", "patched"], "site": sites(4), "head": heads_of(2, 8)},
        ),
        "resampled_dla": examples(published),
        "resampled_dla_code": examples(published),
        "dla_scatter": scatter(30, {"output": (-0.159, None), "v_composition": (-0.716, None)}),
        "dla_scatter_code": scatter(10, {"output": (-0.3, None), "v_composition": (-0.9, (-0.723, 0.052))}),
    }
    for result in results.values():
        result.attrs = {**NAMED, **result.attrs}
    for number in published.numbers:
        put(results, published, number, number.value)
        if number.variable == "clean":
            move_resampled(results, published, number)
    return results


def examples(published: Published) -> xr.Dataset:
    """The four prompts under labels and in an order of our own: they are recognised by their text."""
    labels = list(OTHER_NAMES)
    return xr.Dataset(
        {
            "clean": (("example", "head"), np.full((4, 32), 0.4)),
            "resampled": (("quantile", "example", "head"), banded((4, 32))),
            "logit_diff": (("example",), np.ones(4)),
            "top2_named": (("example",), np.ones(4, dtype=bool)),
        },
        {
            "example": labels,
            "quantile": QUANTILES,
            "head": heads(4, 8),
            "text": ("example", [published.examples[OTHER_NAMES[label]] for label in labels]),
        },
    )


def scatter(n_prompts: int, wanted: Mapping[str, tuple[float, tuple[float, float] | None]]) -> xr.Dataset:
    """Raw points with exactly the wanted correlation, and slope and intercept where given."""
    rng = np.random.default_rng(n_prompts)
    x, noise = rng.standard_normal((2, n_prompts, 8 if n_prompts == 30 else WINDOW[1] - WINDOW[0] + 1))
    x -= x.mean()
    noise -= noise.mean()
    noise -= x * (x * noise).sum() / (x * x).sum()
    x /= x.std()
    noise /= noise.std()
    answers = []
    for r, line in wanted.values():
        slope, intercept = line or (r, 0.0)
        answers.append(intercept + slope * x + abs(slope) * np.sqrt(1 / r**2 - 1) * noise)
    fits = [np.polyfit(x.ravel(), y.ravel(), 1) for y in answers]
    return xr.Dataset(
        {
            "pearson_r": ("against", [float(np.corrcoef(x.ravel(), y.ravel())[0, 1]) for y in answers]),
            "slope": ("against", [float(slope) for slope, _ in fits]),
            "intercept": ("against", [float(intercept) for _, intercept in fits]),
            "writer_dla": (("prompt", "position"), x),
            "answer_dla": (("against", "prompt", "position"), np.stack(answers)),
        },
        {"against": list(wanted)},
        {"n_prompts": n_prompts, "positions": WINDOW if n_prompts == 10 else None},
    )


def where(published: Published, result: xr.Dataset, number: Number) -> dict[str, str]:
    """The number's place in a result's own labels."""
    select = dict(number.select)
    if "example" in select:
        text = published.examples[select["example"]]
        select["example"] = str(result["example"].values[list(result["text"].values).index(text)])
    return select


def far_off(number: Number) -> float:
    """A value that no tolerance and no interval reaches, with the quartiles still in their order."""
    return number.value + (-2.0 if number.select.get("quantile") == "lower" else 2.0)


def put(results: dict[str, xr.Dataset], published: Published, number: Number, value: float) -> None:
    """Sets one number in a result, its band (or, for a fit, its points) moving along."""
    result = results[published.drawn_by(number).experiment]
    place = where(published, result, number)
    old = float(result[number.variable].loc[place])
    result[number.variable].loc[place] = value
    if "quantile" in place and number.group is None:
        for edge in ("lower", "upper"):
            result[number.variable].loc[{**place, "quantile": edge}] += value - old
    if number.variable == "pearson_r" and abs(value - old) > 1e-6:
        wanted = {
            against: (0.5 if against == place["against"] else -0.5, None) for against in ("output", "v_composition")
        }
        results["dla_scatter"] = scatter(30, wanted).assign_attrs(result.attrs)
        results["dla_scatter"]["pearson_r"].loc[place] = value
    if number.variable in ("slope", "intercept") and abs(value - old) > 1e-6:
        line = (value, 0.052) if number.variable == "slope" else (-0.723, value)
        moved = scatter(10, {"output": (-0.3, None), "v_composition": (-0.9, line)})
        results["dla_scatter_code"] = moved.assign_attrs(result.attrs)


def move_resampled(results: dict[str, xr.Dataset], published: Published, number: Number) -> None:
    """Resampled values of the text variant (the writer's unmoved), clean values of the code variant (the text's)."""
    text, code = results["resampled_dla"], results["resampled_dla_code"]
    place = where(published, text, number)
    code["clean"].loc[place] = number.value
    share = 1.0 if place["head"] == "L0H2" else 0.2
    text["resampled"].loc[{**place}] = number.value * share + np.array([-0.01, 0.0, 0.01])


def raw_of(result: xr.Dataset, n_prompts: int = N_PROMPTS) -> xr.Dataset:
    """Raw values whose pooled quartiles and median are the summary's, prompts differing by a fifth of the band."""
    if "writer_dla" in result:
        kept = result[["writer_dla", "answer_dla"]]
        if result.attrs["positions"] is None:
            return kept
        # Raw values are stored for all positions; those outside the window would spoil any fit.
        return kept.pad(position=(WINDOW[0], 3), constant_values=100.0)
    offsets = np.linspace(-1, 1, n_prompts)[:, None]
    variables: dict[str, Any] = {}
    for name, array in ((str(name), array) for name, array in result.data_vars.items()):
        if "quantile" not in array.dims:
            continue
        low, mid, high = (array.sel(quantile=q).values[..., None, None] for q in QUANTILES)
        low, high = np.minimum(low, mid - 1e-3), np.maximum(high, mid + 1e-3)
        spread = 0.2 * np.minimum(np.minimum(mid - low, high - mid), 0.05)
        levels = [low - 1, low - 1, low, mid, mid, mid, mid, high, high + 1, high + 1]
        if name == "resampled":
            variables[name] = ((*array.dims[1:], "prompt"), (mid + spread * offsets.T)[..., 0, :])
        else:
            values = np.concatenate(levels, axis=-1) + spread * offsets
            variables[name] = ((*array.dims[1:], "prompt", "position"), values.astype(np.float32))
    return xr.Dataset(variables, {k: v for k, v in result.coords.items() if k not in ("quantile", "text")})
