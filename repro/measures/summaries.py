"""From raw arrays to what figures and `check` read: medians, quartiles, fits and choices, labelled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import singledispatch
from typing import Any

import numpy as np
import xarray as xr

from repro.labels import layer_of
from repro.measures.declare import Context, mined_positions, patched_layer
from repro.measures.roles import choose_erasers, choose_examples, choose_writer, distinct_other_heads
from repro.measures.statistics import QUANTILE_LABELS, density, fit_line, quantiles, quantiles_along, variance_shares
from repro.spec.types import (
    Common,
    DLAScatter,
    FindErasers,
    FindWriter,
    MineExamples,
    Pooled,
    Projection,
    ResampledDLA,
    VPatch,
    Windowed,
)
from repro.store.excluded import NOTE, Raw, ValidPrompts

Decode = Callable[[int], str]
"""Token id -> text."""


def summarise(
    experiment: Common,
    context: Context,
    raw: Raw,
    prepared: Mapping[str, Any],
    decode: Decode,
    without: Sequence[int] = (),
) -> xr.Dataset:
    """The reduced result of an experiment.

    raw: its complete arrays; prepared: what was computed before the pass; decode: token id -> text; without: prompts
    that are left out, as if they did not exist. Returns a Dataset whose attrs name quantiles, roles, sizes, and the prompts
    left out where there are any. Raises ReproError (exit 1) where none is left.
    Agreement: tests/measures/test_summaries.py, tests/store/test_excluded.py.
    """
    dataset = reduced(experiment, context, ValidPrompts(raw, without), prepared, decode)
    if without:
        dataset.attrs[NOTE] = list(without)
    dataset.attrs.update(
        measure=experiment.measure,  # type: ignore[attr-defined] # every subclass declares its own
        n_prompts=context.n_prompts,
        n_positions=context.n_positions,
        **_variant(experiment, context),
    )
    if context.roles is not None:
        for key, value in context.roles.attrs().items():
            dataset.attrs.setdefault(key, value)
    return dataset


def _variant(experiment: Common, context: Context) -> dict[str, object]:
    """The fields in which texts and research code differ, so that `check` can tell which variant a result is."""
    given = experiment.model_dump(
        mode="json", include={"quantiles", "scale", "resample", "target", "v_composition", "positions"}
    )
    if given.get("positions") is not None:
        first, last = given["positions"]
        given["positions"] = [first, last + context.n_positions if last < 0 else last]
    return {key: value for key, value in given.items() if value is not None}


@singledispatch
def reduced(
    experiment: Common, context: Context, raw: ValidPrompts, prepared: Mapping[str, Any], decode: Decode
) -> xr.Dataset:
    """One measure's own reduction."""
    raise NotImplementedError(type(experiment).__name__)


def _window(experiment: Windowed) -> slice:
    """The positions that enter."""
    if experiment.positions is None:
        return slice(None)
    first, last = experiment.positions
    return slice(first, None if last == -1 else last + 1)


def _pooled(
    experiment: Pooled, raw: ValidPrompts, name: str, nan_name: str = "nan_count"
) -> dict[str, tuple[Any, Any]]:
    """Median and quantiles of a variable over prompts x positions, one value per remaining label."""
    dims = [dim for dim in raw.layout.variable(name).dims if dim not in ("prompt", "position")]
    sizes = [len(raw.layout.coords[dim]) for dim in dims]
    out, counts = np.empty((3, *sizes)), np.empty(sizes, dtype=np.int64)
    for block, values in raw.iter_blocks(name):
        index = tuple(block[dim] for dim in dims)
        out[(slice(None), *index)], counts[index] = quantiles_along(
            values[..., _window(experiment)], experiment.quantiles, axes=2
        )
    return {name: (("quantile", *dims), out), nan_name: (tuple(dims), counts)}


def _dataset(raw: ValidPrompts, variables: Mapping[str, tuple[Any, Any]]) -> xr.Dataset:
    coords: dict[str, Any] = {dim: list(labels) for dim, labels in raw.layout.coords.items()}
    if any("quantile" in dims for dims, _ in variables.values()):
        coords["quantile"] = list(QUANTILE_LABELS)
    return xr.Dataset(dict(variables), coords)


@reduced.register
def _(
    experiment: Projection, context: Context, raw: ValidPrompts, prepared: Mapping[str, Any], decode: Decode
) -> xr.Dataset:
    if experiment.summarise == "pooled":
        return _dataset(raw, _pooled(experiment, raw, "pr"))
    sites = raw.layout.coords["site"]
    bands, shares = [], []
    for index in range(len(sites)):
        values = raw.read("pr", site=index)
        bands.append(quantiles_along(values[:, _window(experiment)].T, experiment.quantiles, axes=1)[0])
        shares.append(variance_shares(values[:, _window(experiment)]))
    dataset = _dataset(raw, {"pr": (("quantile", "site", "position"), np.stack(bands, 1))})
    dataset["variance_share"] = (("source", "site"), np.stack(shares, 1))
    return dataset.assign_coords(
        source=["prompt", "position", "interaction"], position=np.arange(context.n_positions)[_window(experiment)]
    )


@reduced.register
def _(
    experiment: VPatch, context: Context, raw: ValidPrompts, prepared: Mapping[str, Any], decode: Decode
) -> xr.Dataset:
    sites = _pooled(experiment, raw, "site_pr", "site_nan_count")
    dataset = _dataset(raw, sites | _pooled(experiment, raw, "head_pr", "head_nan_count"))
    dataset.attrs["layer"] = patched_layer(experiment, context)
    return dataset


@reduced.register
def _(
    experiment: ResampledDLA, context: Context, raw: ValidPrompts, prepared: Mapping[str, Any], decode: Decode
) -> xr.Dataset:
    bands, counts = quantiles_along(raw.read("resampled"), experiment.quantiles, axes=1)
    dims = ("example", "head")
    dataset = _dataset(raw, {"resampled": (("quantile", *dims), bands), "nan_count": (dims, counts)})
    clean = np.array(prepared["clean"])
    dataset["clean"] = (dims, clean)
    dataset["logit_diff"] = ("example", np.array(prepared["logit_diff"]))
    examples = context.examples
    pairs = [(example.answer, example.other) for example in examples]
    named = [
        pair == found
        for pair, found in zip(pairs, zip(prepared["first"], prepared["second"], strict=True), strict=True)
    ]
    dataset["top2_named"] = ("example", np.array(named))
    heads = list(raw.layout.coords["head"])
    texts = {
        "text": [example.text for example in examples],
        "answer": [example.answer_text for example in examples],
        "other": [example.other_text for example in examples],
        "first": [decode(token) for token in prepared["first"]],
        "second": [decode(token) for token in prepared["second"]],
        "head_shown": distinct_other_heads(clean, heads, context.known.writer, [example.head for example in examples]),
    }
    dataset.attrs["wrong_predictions"] = sum(not example.right for example in examples)
    dataset.attrs["examples"] = "named" if all(example.prompt is None for example in examples) else "mined"
    return dataset.assign_coords({name: ("example", values) for name, values in texts.items()})


@reduced.register
def _(
    experiment: DLAScatter, context: Context, raw: ValidPrompts, prepared: Mapping[str, Any], decode: Decode
) -> xr.Dataset:
    writer, answers = raw.read("writer_dla"), raw.read("answer_dla")
    window = _window(experiment)
    x = writer[:, window]
    lines = [fit_line(x, answer[:, window]) for answer in answers]
    grid_x = np.concatenate([x.ravel()] * len(answers))
    _, x_edges, y_edges = density(grid_x, answers[..., window].ravel())
    counts = [_counts(x, answer[:, window], x_edges, y_edges) for answer in answers]
    against = "against"
    dataset = _dataset(
        raw,
        {
            "pearson_r": (against, np.array([line.r for line in lines])),
            "slope": (against, np.array([line.slope for line in lines])),
            "intercept": (against, np.array([line.intercept for line in lines])),
            "n_points": (against, np.array([line.n for line in lines])),
            "density": ((against, "y_bin", "x_bin"), np.stack(counts).astype(np.int64)),
            "writer_dla": (("prompt", "position"), writer[:, window]),
            "answer_dla": ((against, "prompt", "position"), answers[..., window]),
        },
    )
    dataset.attrs.update(x_edges=x_edges.tolist(), y_edges=y_edges.tolist())
    return dataset.assign_coords(x=("x_bin", _centres(x_edges)), y=("y_bin", _centres(y_edges)))


def _counts(x: np.ndarray, y: np.ndarray, x_edges: np.ndarray, y_edges: np.ndarray) -> np.ndarray:
    """How many points that are finite in both lie in each cell: [y, x]."""
    good = np.isfinite(x) & np.isfinite(y)
    return np.histogram2d(y[good], x[good], bins=(y_edges, x_edges))[0]


def _centres(edges: np.ndarray) -> np.ndarray:
    return (edges[1:] + edges[:-1]) / 2


@reduced.register
def _(
    experiment: FindWriter, context: Context, raw: ValidPrompts, prepared: Mapping[str, Any], decode: Decode
) -> xr.Dataset:
    dataset = _dataset(raw, _pooled(experiment, raw, "pr"))
    heads, sites = list(raw.layout.coords["head"]), list(raw.layout.coords["site"])
    choice = choose_writer(dataset["pr"].sel(quantile="median").values, heads, sites)
    dataset["score"] = ("head", np.array([choice.scores[head] for head in heads]))
    dataset.attrs.update(writer=choice.writer, found=choice.found, roles="auto")
    return dataset


@reduced.register
def _(
    experiment: FindErasers, context: Context, raw: ValidPrompts, prepared: Mapping[str, Any], decode: Decode
) -> xr.Dataset:
    dataset = _dataset(raw, _pooled(experiment, raw, "pr"))
    medians = dict(zip(raw.layout.coords["head"], dataset["pr"].sel(quantile="median").values.tolist(), strict=True))
    choice = choose_erasers(medians, context.known.found, experiment.bar)
    dataset["layer_sum"] = ("layer", np.array(list(choice.layer_sums.values())))
    dataset = dataset.assign_coords(layer=list(choice.layer_sums))
    dataset.attrs.update(erasers=list(choice.erasers), layer=layer_of(choice.erasers[0]))
    dataset.attrs.update(writer=context.known.writer, found=choice.found, roles="auto")
    return dataset


@reduced.register
def _(
    experiment: MineExamples, context: Context, raw: ValidPrompts, prepared: Mapping[str, Any], decode: Decode
) -> xr.Dataset:
    values = {name: raw.read(name) for name in ("writer_dla", "first", "second", "actual")}
    chosen = choose_examples(
        values["writer_dla"], values["first"], values["second"], values["actual"], experiment.count
    )
    start = mined_positions(context).start
    median, counts = quantiles(values["writer_dla"], experiment.quantiles)
    dataset = xr.Dataset({"writer_dla": ("quantile", median)}, {"quantile": list(QUANTILE_LABELS)})
    dataset.attrs["nan_count"] = counts
    dataset.attrs["right"] = int((values["first"] == values["actual"]).sum())
    dataset.attrs["positions"] = int(values["first"].size)
    dataset.attrs["mined"] = json.dumps(
        [
            {
                "prompt": int(raw.prompts[item.prompt]),
                "position": item.position + start,
                "first": item.first,
                "second": item.second,
                "right": item.right,
                "dla": float(values["writer_dla"][item.prompt, item.position]),
            }
            for item in chosen
        ]
    )
    return dataset
