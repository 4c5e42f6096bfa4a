"""The published numbers in the layout of our summaries, so that our own charts draw them beside ours.

Only what `repro/check/published` holds is drawn: a median without published quartiles has none here, and what was not
published is a gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from repro import labels
from repro.check.published import Number, Published, read_published
from repro.spec.types import Figure, Loaded

N_LAYERS, N_HEADS, N_POSITIONS = 4, 8, 1024
"""gelu-4l's; the reference table has a row for each of its nodes and sites (tests/report/test_parts.py)."""
QUANTILES = ["lower", "median", "upper"]
_OBTAINED = {
    "trace": "medians and quartiles read from the traces of the authors' public appendix page",
    "read off": "medians read off the published drawing, without their error bars",
    "stated": "as stated in the text",
}


def published_for(loaded: Loaded, figure: Figure) -> xr.Dataset | None:
    """Return the published numbers that a figure of the paper's subject shows; None where none are kept as data.

    Returns a dataset in the layout of the figure's experiment, attributes of the paper's own subject, NaN where nothing
    was published, and `obtained`: how the numbers came to be here. Agreement: tests/report/test_parts.py.
    """
    makers = {
        "site_heads": _sites_onto_nodes,
        "site_writer": _sites_onto_nodes,
        "resid_onto_nodes": _sites_onto_nodes,
        "nodes_onto_writer": _nodes_onto_writer,
        "patched_sites": _v_patch,
        "patched_heads": _v_patch,
        "resampled_dla": _resampled_dla,
    }
    papers = loaded.spec.run.paper_subject
    maker, subject = makers.get(figure.chart), loaded.spec.subject.get(papers)
    published = read_published()
    base = loaded.spec.experiment[figure.experiment]
    if maker is None or subject is None or papers != published.paper.subject or base.variant_of is not None:
        return None
    numbers = [n for n in published.numbers if n.experiment == figure.experiment]
    if not numbers:
        return None
    found = maker(published, numbers, subject)
    used = dict.fromkeys(n.obtained for n in numbers if n.variable in found)
    writer, erasers = published.paper.writer, list(published.paper.erasers)
    found.attrs = {
        "subject": papers,
        "model": subject.model,
        "writer": writer,
        "erasers": erasers,
        "layer": published.paper.layer,
        "n_layers": N_LAYERS,
        "n_prompts": published.drawn[figure.experiment]["text"].prompts,
        "n_positions": N_POSITIONS,
        "quantiles": list(published.paper.quantiles),
        "found": True,
        "examples": "named",
        "measure": base.model_dump()["measure"],
        "obtained": "; ".join(_OBTAINED[kind] for kind in used if kind in _OBTAINED),
    }
    return found


def stated_for(figure: Figure) -> list[str]:
    """Return published numbers of a figure that no chart of ours can show without its points, each as a line."""
    if figure.chart != "scatter":
        return []
    numbers = [n for n in read_published().numbers if n.experiment == figure.experiment]
    code = " (the authors' code: next token, no attention pattern)"
    return [f"{n.quantity}: {n.value:g}{code if n.variant == 'code' else ''}" for n in numbers]


def _filled(
    sizes: Mapping[str, list[str]], numbers: list[Number], variable: str, places: Mapping[str, str] | None = None
) -> xr.DataArray:
    """Return NaN of these labels with a variable's published values in their places; places: labels renamed."""
    values = np.full([len(labels) for labels in sizes.values()], np.nan)
    for number in numbers:
        if number.variable == variable:
            at = (number.select[dim] for dim in sizes)
            index = zip(sizes.values(), ((places or {}).get(label, label) for label in at), strict=True)
            values[tuple(labels.index(label) for labels, label in index)] = number.value
    return xr.DataArray(values, dict(sizes), list(sizes))


def _sites_onto_nodes(published: Published, numbers: list[Number], subject: Any) -> xr.Dataset:
    sizes = {"quantile": QUANTILES, "node": labels.nodes(N_LAYERS, N_HEADS), "site": labels.sites(N_LAYERS)}
    return xr.Dataset({"pr": _filled(sizes, numbers, "pr")})


def _nodes_onto_writer(published: Published, numbers: list[Number], subject: Any) -> xr.Dataset:
    given = {n.select["component"] for n in numbers}
    nodes = [node for node in labels.nodes(N_LAYERS, N_HEADS) if node in given]
    return xr.Dataset({"pr": _filled({"quantile": QUANTILES, "component": [*nodes, "erasers"]}, numbers, "pr")})


def _v_patch(published: Published, numbers: list[Number], subject: Any) -> xr.Dataset:
    """Return the patched values as read off; the clean ones are those of the other two figures."""
    runs = ["clean", "patched"]
    heads, sites = labels.heads_of(published.paper.layer, N_HEADS), labels.sites(N_LAYERS)
    site_pr = _filled({"quantile": QUANTILES, "run": runs, "site": sites}, numbers, "site_pr")
    head_pr = _filled({"quantile": QUANTILES, "run": runs, "head": heads}, numbers, "head_pr")
    for other in published.numbers:
        clean = {"quantile": other.select.get("quantile"), "run": "clean"}
        if other.experiment == "sites_onto_nodes" and other.select["node"] == published.paper.writer:
            site_pr.loc[{**clean, "site": other.select["site"]}] = other.value
        elif other.experiment == "nodes_onto_writer" and other.select["component"] in heads:
            head_pr.loc[{**clean, "head": other.select["component"]}] = other.value
    return xr.Dataset({"site_pr": site_pr, "head_pr": head_pr.dropna("head", how="all")})


def _resampled_dla(published: Published, numbers: list[Number], subject: Any) -> xr.Dataset:
    """Return the bars of the four prompts; texts and answers are the subject's own, which are the authors'."""
    by_text = {example.text: example for example in subject.examples}
    own = {name: by_text[text] for name, text in published.examples.items() if text in by_text}
    labelled = {name: example.label for name, example in own.items()}
    kept = [n for n in numbers if n.select["example"] in own]
    heads = list(dict.fromkeys([published.paper.writer, *(example.head for example in own.values())]))
    examples = list(labelled.values())
    variables = {
        "clean": _filled({"example": examples, "head": heads}, kept, "clean", labelled),
        "resampled": _filled({"quantile": QUANTILES, "example": examples, "head": heads}, kept, "resampled", labelled),
        "logit_diff": _filled({"example": examples}, kept, "logit_diff", labelled),
    }
    words = {
        "text": [example.text for example in own.values()],
        "answer": [example.answer for example in own.values()],
        "other": [example.other for example in own.values()],
        "first": [example.answer for example in own.values()],
        "second": [example.other for example in own.values()],
        "head_shown": [example.head for example in own.values()],
    }
    return xr.Dataset(variables, {name: ("example", values) for name, values in words.items()})
