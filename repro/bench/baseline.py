"""What the paper's experiments cost with the libraries alone: the baseline that runs beside `bench --end-to-end`.

For each experiment one cached run of TransformerLens' bridge over all prompts at once, every head's result computed,
`kernels/reference.py` for projections and V-composition, a long table with one row per (label, …, prompt, position),
and quantiles from that table. Figures that show the same experiment share its run here, which favours the baseline.
The numbers are those of the runner: tests/bench/test_baseline.py.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from repro.bench.meter import PAPER, above, age, peak
from repro.kernels.reference import projection, projection_onto_vectors, v_composition
from repro.labels import head_index
from repro.measures.base import Banded, Measure
from repro.measures.projection import components
from repro.measures.statistics import QUANTILE_LABELS
from repro.measures.v_patch import VPatch
from repro.model.folder import Folder
from repro.plan.plan import Item
from repro.process import quiet
from repro.request import Request, Workspace

Labels = Mapping[str, Sequence[str]]


def library_model(folder: Folder) -> Any:
    """Return the library's own model of a directory in float32, its weights processed as `repro.model.load` does.

    The end-to-end benchmark makes its model itself, of the paper's shape and without windows. Raises ReproError (exit
    4) for a model with an attention window shorter than its context, whatever the prompts: `_composed` reads all
    positions before.
    """
    from repro.model.original import read_original

    with torch.no_grad(), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge = read_original(folder, torch.float32, (), whole=True).bridge
        bridge.enable_compatibility_mode(disable_warnings=True)
    return bridge


def _cached(bridge: Any, tokens: Tensor) -> Any:
    """Return every activation of all prompts, logits included: what `run_with_cache` keeps by default."""
    return bridge.run_with_cache(tokens)[1]


def _quantiles(experiment: Measure, name: str, values: Tensor, labels: Labels) -> xr.DataArray:
    """Return quantiles over prompts (and positions) of values [*labels, prompt(, position)], from a long table."""
    assert isinstance(experiment, Banded)
    dims = [*labels, "prompt", "position"][: values.ndim]
    coords = {
        dim: list(labels[dim]) if dim in labels else range(size) for dim, size in zip(dims, values.shape, strict=True)
    }
    table = xr.DataArray(values.numpy(), coords, dims, name).to_dataframe().reset_index()
    at = [experiment.quantiles[0], 0.5, experiment.quantiles[1]]
    found = table.groupby(list(labels), sort=False)[name].quantile(at)
    return found.rename_axis([*labels, "quantile"]).to_xarray().assign_coords(quantile=list(QUANTILE_LABELS))


def _onto(vectors: Tensor, of: Tensor) -> Tensor:
    """Return PR(of, vectors): [component, B, P]."""
    num, norm2 = projection_onto_vectors(vectors[None], of)
    return (num / norm2)[:, 0]


def _sites_onto_nodes(bridge: Any, item: Item, tokens: Tensor) -> xr.Dataset:
    cache = _cached(bridge, tokens)
    sites = cache.accumulated_resid(incl_mid=True)
    rows = []
    for layer, block in enumerate(bridge.blocks):
        num, norm2 = projection(cache[f"blocks.{layer}.attn.hook_z"], block.attn.W_O, sites)
        rows += [(num / norm2).transpose(0, 1), _onto(cache[f"blocks.{layer}.hook_mlp_out"], sites)[None]]
    labels = {"node": item.context.nodes, "site": item.context.sites}
    return xr.Dataset({"pr": _quantiles(item.experiment, "pr", torch.cat(rows), labels)})


def _nodes_onto_writer(bridge: Any, item: Item, tokens: Tensor) -> xr.Dataset:
    cache, roles = _cached(bridge, tokens), item.context.roles
    written = dict(zip(item.context.heads, cache.stack_head_results(), strict=True))
    written |= {f"MLP{layer}": cache[f"blocks.{layer}.hook_mlp_out"] for layer in range(item.context.shape.n_layers)}
    written["erasers"] = torch.stack([written[label] for label in roles.erasers]).sum(0)
    labels = components(item.context)
    pr = _onto(written[item.context.writer], torch.stack([written[label] for label in labels]))
    return xr.Dataset({"pr": _quantiles(item.experiment, "pr", pr, {"component": labels})})


def _composed(bridge: Any, cache: Any, layer: int, writer: Tensor, onto: Tensor) -> tuple[Tensor, Tensor]:
    """Return <vcomp_h, onto> of the heads of one layer [H, B, P], and sum_h vcomp_h [B, P, D]."""
    attn, at = bridge.blocks[layer].attn, f"blocks.{layer}"
    q, k, scale = (cache[f"{at}.{name}"] for name in ("attn.hook_q", "attn.hook_k", "ln1.hook_scale"))
    dots, total = v_composition(q, k, writer[None], scale[..., 0], attn.W_V, attn.W_O, onto[None], center=True)
    assert dots is not None
    assert total is not None
    return dots[0, :, 0], total[0]


def _v_patch(bridge: Any, item: Item, tokens: Tensor) -> xr.Dataset:
    """Run again, cached, with what the writer brought into the patched layer taken out of that layer's output."""
    assert isinstance(item.experiment, VPatch)
    cache, context = _cached(bridge, tokens), item.context
    labels, results = item.experiment.patched(context), cache.stack_head_results()
    writer = results[context.heads.index(context.writer)]
    heads = _onto(writer, results[[context.heads.index(label) for label in labels]])
    (layer,) = {head_index(label)[0] for label in labels}  # the paper's erasers are heads of one
    dots, total = _composed(bridge, cache, layer, writer, writer)
    with bridge.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_out", lambda out, hook: out - total)]):
        after = _cached(bridge, tokens)
    runs = {"run": ["clean", "patched"]}
    sites = torch.stack([_onto(writer, each.accumulated_resid(incl_mid=True)) for each in (cache, after)])
    both = torch.stack((heads, heads - dots / writer.square().sum(-1)))
    return xr.Dataset(
        {
            "site_pr": _quantiles(item.experiment, "site_pr", sites, runs | {"site": context.sites}),
            "head_pr": _quantiles(item.experiment, "head_pr", both, runs | {"head": labels}),
        }
    )


def _direction(bridge: Any, cache: Any, first: Tensor, second: Tensor) -> Tensor:
    """Return d with <v, d> = DLA(v) on the logit difference of two tokens at each position: [B, P, D]."""
    u = bridge.W_U.T[first] - bridge.W_U.T[second]
    return (u - u.mean(-1, keepdim=True)) / cache["ln_final.hook_scale"]


def _resampled_dla(bridge: Any, item: Item, tokens: Tensor) -> xr.Dataset:
    """Run each example by itself, and the unrelated texts cut to its length."""
    clean, resampled, difference = [], [], []
    for example in item.context.examples:
        prompt, pair = torch.tensor([example.tokens]), torch.tensor([example.answer, example.other])
        cache, unrelated = _cached(bridge, prompt), _cached(bridge, tokens[:, : prompt.shape[1]])
        direction = _direction(bridge, cache, pair[0], pair[1])[0, -1]
        clean.append(cache.stack_head_results(pos_slice=-1)[:, 0] @ direction)
        resampled.append(unrelated.stack_head_results(pos_slice=-1) @ direction)
        scores = cache["unembed.hook_out"][0, -1]
        difference.append(float(scores[pair[0]] - scores[pair[1]]))
    labels = {"example": [example.label for example in item.context.examples], "head": item.context.heads}
    return xr.Dataset(
        {
            "resampled": _quantiles(item.experiment, "resampled", torch.stack(resampled), labels),
            "clean": xr.DataArray(torch.stack(clean).numpy(), labels, list(labels)),
            "logit_diff": ("example", difference),
        }
    )


def _dla_scatter(bridge: Any, item: Item, tokens: Tensor) -> xr.Dataset:
    cache, roles = _cached(bridge, tokens), item.context.roles
    results, heads = cache.stack_head_results(), item.context.heads
    first, second = cache["unembed.hook_out"].topk(2, dim=-1).indices.unbind(-1)
    direction = _direction(bridge, cache, first, second)
    writer, erasers = (
        results[heads.index(item.context.writer)],
        results[[heads.index(label) for label in roles.erasers]],
    )
    dots, _ = _composed(bridge, cache, roles.layers[0], writer, direction)
    values = {
        "writer_dla": (writer * direction).sum(-1),
        "output": (erasers.sum(0) * direction).sum(-1),
        "v_composition": dots[[head_index(label)[1] for label in roles.erasers]].sum(0),
    }
    dims = ("prompt", "position")
    table = xr.Dataset({name: (dims, value.numpy()) for name, value in values.items()}).to_dataframe().reset_index()
    against = ["output", "v_composition"]
    lines = [np.polyfit(table["writer_dla"].astype(float), table[name].astype(float), 1) for name in against]
    return xr.Dataset(
        {
            "pearson_r": ("against", [table["writer_dla"].corr(table[name]) for name in against]),
            "slope": ("against", [line[0] for line in lines]),
            "intercept": ("against", [line[1] for line in lines]),
        },
        {"against": against},
    )


EXPERIMENTS: dict[str, Callable[[Any, Item, Tensor], xr.Dataset]] = {
    "sites_onto_nodes": _sites_onto_nodes,
    "nodes_onto_writer": _nodes_onto_writer,
    "v_patch": _v_patch,
    "resampled_dla": _resampled_dla,
    "dla_scatter": _dla_scatter,
}


def measure(bridge: Any, item: Item, tokens: Tensor) -> xr.Dataset:
    """Measure one experiment of the default spec, from a cached run to reduced numbers, named as the store's.

    bridge: `library_model`; tokens [B, P] int64, of which the experiment takes its own number of prompts.
    Agreement: tests/bench/test_baseline.py.
    """
    with torch.no_grad():
        return EXPERIMENTS[item.name](bridge, item, tokens[: item.context.n_prompts])


def child(spec: Path, prompts: int) -> dict[str, Any]:
    """Return one process's measurement: seconds of every experiment, and peak memory."""
    started = time.perf_counter()
    workspace = Workspace(Request(spec=spec, subject="shape", prompts=prompts, only=PAPER), lambda line: None)
    plan = workspace.plan(workspace.choose(ask=False))
    bridge = library_model(plan.subject.folder)
    start_up = time.perf_counter() - started
    tokens = torch.from_numpy(plan.subject.tokens[:prompts].astype(np.int64))
    with torch.no_grad():
        bridge(tokens[:1])
    seconds = {}
    for item in plan.items:
        if item.name in EXPERIMENTS:
            started = time.perf_counter()
            measure(bridge, item, tokens)
            seconds[item.name] = time.perf_counter() - started
    return {
        "prompts": prompts,
        "start_up_s": start_up,
        "experiment_s": seconds,
        "left_out": [item.name for item in plan.items if item.name not in EXPERIMENTS],
        "baseline_s": sum(seconds.values()),
        "peak_bytes": peak(),
        "peak_above_weights_bytes": above(plan.subject.folder.weights),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    before = age()
    row = child(Path(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps(row | {"start_up_s": row["start_up_s"] + before}))
