"""Direct logit attribution of one answer, and what of it later components take back: one call, nothing stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import xarray as xr

from repro.errors import ReproError, plain
from repro.labels import nodes, step_of, writers
from repro.measures.card import FORMS, PARTLY_AT, RELIABLE, SMALL, likely_erasers
from repro.measures.describe import mark_capped
from repro.scan.verdict import Scan

if TYPE_CHECKING:
    from torch import Tensor

    from repro.model.decoder import Model
    from repro.model.forward import Trace
    from repro.scan.in_memory import ScanResult

TOGETHER = 32
"""Writers whose paths are followed together."""
MOST_POSITIONS = 64
"""Positions of a prompt at which shares are looked at."""
Claims = Mapping[str, Iterable[str]]


def corrected_dla(
    model: Any,
    tokens: Any,
    answer: Any,
    other: Any,
    *,
    position: int = -1,
    erasers: Claims | Scan | ScanResult | None = None,
    ablate: bool = False,
    precision: str = "float32",
) -> xr.Dataset:
    """Return how much DLA credits to every node for one answer over another, and what later components take back.

        DLA(v) = <LN_f(v)[t], W_U[:, answer] - W_U[:, other]>
        taken_back = -sum over erasers c of DLA(path_{w->c})        remainder = DLA - taken_back
        net_effect, gradient: through all paths (repro/model/net_effect.py)

    model: a model directory, a Hugging Face causal language model, an unprocessed native TransformerLens bridge, or
    what `repro.load` returned. tokens: ids [position] or [prompt, position], BOS first. answer, other: token ids, one
    or one for each prompt. position: where the logits are read. erasers: by node the labels of its erasers, or a scan
    of the model; nothing: those whose shares in these prompts look like erasure, untested. ablate: whether the total
    effect of zero ablation is computed, too, a forward for every node.

    Returns by node [node] or [node, prompt], in logits: `dla`, `taken_back`, `remainder`, `net_effect`, `halves`,
    `gradient`, and `total_effect` if asked for; `verdict` in words; `erases` [node, component]; `logit_diff`; and
    `rest`, what biases add: embed + pos_embed + rest of `net_effect` is the logit difference. Logits are those before a
    cap, if the model has one, which the attribute `logits` then says. Raises ReproError: exit 2 for tokens that do not
    fit, exit 4 for a model that cannot be had. Agreement: tests/scan/test_corrected.py.
    """
    import torch

    from repro.model.given import as_tokens, loaded

    ids = as_tokens(tokens)
    one = np.ndim(tokens) == 1
    pairs = _pairs(answer, other, len(ids))
    made = loaded(model, ids, precision)
    at = _position(position, ids.shape[1])
    if pairs.max() >= made.W_U.shape[1] or pairs.min() < 0:
        raise ReproError(f"answer, other: token ids below {made.W_U.shape[1]} are expected, not {pairs.tolist()}")
    labels = writers(made.shape.n_layers, made.shape.n_heads, made.W_pos is not None)
    with torch.inference_mode():
        rows = [_row(made, torch.from_numpy(row[None]), at, pair, ablate) for row, pair in zip(ids, pairs, strict=True)]
    found = {name: np.stack([row[name] for row in rows], -1) for name in rows[0]}
    components = nodes(made.shape.n_layers, made.shape.n_heads)
    claimed = _claimed(erasers, found, labels, components)
    taken = -np.where(claimed[..., None], np.nan_to_num(found["path_dla"]), 0).sum(1)
    values = {"dla": found["dla"], "taken_back": taken, "remainder": found["dla"] - taken}
    values |= {name: found[form] for name, form in zip(("net_effect", *FORMS[1:]), FORMS, strict=True)}
    values |= {"total_effect": found["total"]} if ablate else {}
    dims = ("node", "prompt")
    dataset = xr.Dataset(
        {name: (dims, value, {"units": "logits"}) for name, value in values.items()}
        | {
            "verdict": (dims, _verdicts(values)),
            "erases": (("node", "component"), claimed),
            "logit_diff": ("prompt", found["logit_diff"], {"units": "logits"}),
            "rest": ("prompt", found["rest"], {"units": "logits"}),
        },
        {"node": labels, "component": components},
        {"position": at, "erasers_from": "shares" if erasers is None else "given"},
    )
    mark_capped(dataset, made.logit_cap)
    return dataset.isel(prompt=0) if one else dataset


def _pairs(answer: Any, other: Any, n_prompts: int) -> np.ndarray:
    """Return the pairs of token ids: [prompt, 2]."""
    try:
        both = [np.broadcast_to(np.asarray(part, dtype=np.int64), n_prompts) for part in (answer, other)]
    except (TypeError, ValueError):
        raise ReproError(
            f"answer, other: one token id each, or one for each of {n_prompts} prompts, not {answer!r}, {other!r}"
        ) from None
    return np.stack(both, 1)


def _position(position: int, length: int) -> int:
    if not -length <= position < length:
        raise ReproError(f"position {position}: the prompts have positions 0 to {length - 1}; -1 is the last")
    return position % length


def _row(model: Model, ids: Tensor, position: int, pair: np.ndarray, ablate: bool) -> dict[str, np.ndarray]:
    """Return what is attributed to every node of one prompt."""
    import torch

    from repro.model.attributions import attributions, targets
    from repro.model.forward import trace

    run = trace(model, ids)
    labels = writers(model.shape.n_layers, model.shape.n_heads, model.W_pos is not None)
    at = targets(model, run, 0, torch.tensor([position]), torch.from_numpy(pair[None]))
    zero = [torch.zeros_like(run.final[0])] if ablate else []
    parts = [
        attributions(model, run, ids, 0, at, some, dict.fromkeys(some, zero), FORMS if first == 0 else ())
        for first, some in ((i, labels[i : i + TOGETHER]) for i in range(0, len(labels), TOGETHER))
    ]
    shares = _shares(model, run, ids, labels)
    out = {form: parts[0].net[i, :, 0] for i, form in enumerate(FORMS)}
    out |= {"dla": parts[0].dla[:, 0], "logit_diff": parts[0].logit_diff[0], "rest": parts[0].rest[0, 0]}
    out |= {"path_dla": torch.cat([part.path_dla[..., 0] for part in parts]), "path": shares[0], "clean": shares[1]}
    if ablate:
        out["total"] = torch.cat([part.total[0, :, 0] for part in parts])
    return {name: value.double().numpy() for name, value in out.items()}


def _shares(model: Model, run: Trace, ids: Tensor, labels: list[str]) -> tuple[Tensor, Tensor]:
    """Return path and clean shares of every node through every component, over positions of one prompt: [N, C] each."""
    import torch

    from repro.model.ablate import output_of
    from repro.model.path_dla import onto_paths
    from repro.model.paths import written

    length = ids.shape[1]
    places = np.unique(np.linspace(min(1, length - 1), length - 1, min(MOST_POSITIONS, length)).astype(int))
    positions = torch.from_numpy(places)
    at = written(model, run, ids, 0, positions).at
    norm2 = at.square().sum((1, 2))[:, None]
    dots = []
    for first in range(0, len(labels), TOGETHER):
        some = labels[first : first + TOGETHER]
        h = torch.stack([output_of(model, run, ids, 0, label) for label in some])
        steps = torch.tensor([step_of(label) for label in some])
        dots.append(onto_paths(model, run, 0, positions, h, steps, at[first : first + TOGETHER]).sum(-1))
    path = torch.cat(dots) / norm2
    clean = torch.einsum("ntd,ctd->nc", at, at[-path.shape[1] :]) / norm2
    return path, torch.where(path.isnan(), torch.nan, clean)


def claims_of(scan: Scan) -> dict[str, tuple[str, ...]]:
    """Return the claimed erasers of every writer that was scanned; an empty tuple where it has none.

    Writers with claimed erasers that are "taken back, not cleared" or lie "in few positions" are there with them: what
    is taken back of a logit does not depend on whether the stream is cleared. Raises ReproError (exit 2) for a scan of
    too few prompts to claim anything.
    """
    if not scan.enough_prompts:
        pairs = scan.pairs
        raise ReproError(
            f"erasers: the scan has {pairs.n_prompts} prompts, of which nothing can be claimed; at least "
            f"{pairs.least_prompts} are needed. Scan more, or leave erasers out to go by shares alone"
        )
    claimed = {writer.label: tuple(e.component for e in writer.erasers) for writer in scan.writers}
    return {label: claimed.get(label, ()) for label in scan.pairs.writers}


def _claimed(
    erasers: Claims | Scan | ScanResult | None,
    found: Mapping[str, np.ndarray],
    labels: list[str],
    components: list[str],
) -> np.ndarray:
    """Return which components count as erasers of which node: [N, C]."""
    if erasers is None:
        return likely_erasers(found["path"], found["clean"])
    if not isinstance(erasers, Mapping):
        scanned = erasers if isinstance(erasers, Scan) else getattr(erasers, "rest", None)
        erasers = claims_of(scanned) if isinstance(scanned, Scan) else _not_erasers(erasers)
    if any(isinstance(named, str) for named in erasers.values()):
        _not_erasers(erasers)
    unknown = [label for label in erasers if label not in (*labels, "pos_embed")]
    unknown += [label for named in erasers.values() for label in named if label not in components]
    if unknown:
        raise ReproError(f"erasers: the model has no node {unknown[0]!r}; its nodes are {labels[0]} to {labels[-1]}")
    return np.array([[c in tuple(erasers.get(label, ())) for c in components] for label in labels])


def _not_erasers(given: object) -> NoReturn:
    """Raise ReproError (exit 2) for what says nothing of erasers."""
    what = 'a scan is expected, or a list for each writer such as {"L0H2": ["L2H4"]}'
    raise ReproError(f"erasers: {what}, not {plain(repr(given), 80)}")


def _verdicts(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the verdict on every node and prompt: of one number each, without an interval."""
    dla, size = values["dla"], np.abs(values["dla"])
    with np.errstate(invalid="ignore", divide="ignore"):
        share = values["taken_back"] / dla
    beside = np.abs(values["net_effect"] - dla)
    words = np.where(beside > size, "mostly indirect", "partly indirect").astype(object)
    words[beside <= RELIABLE * size] = "reliable"
    words[share >= PARTLY_AT[0]] = "partly taken back"
    words[share >= PARTLY_AT[1]] = "mostly taken back"
    words[size < SMALL] = "too small to say"
    return words
