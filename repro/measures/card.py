"""The card of every writer: what DLA credits to it, how much of that is taken back, and which attribution is right.

    taken back   minus the slope of sum over claimed erasers of DLA(path_{w->c}) on DLA(w), over prompts and targets
    DLA*         DLA(w) + sum over all later c of DLA(path_{w->c}), the first order of what is made of w

Every interval is 95 % by bootstrap over prompts. The subject's roles say which components count as erasers of a writer;
where they do not, those count whose shares meet what the scan asks of shares: over the card's prompts the medians
of path share, of path share less that of the other writers through the component, and of clean share lie below -0.02.
That is neither tested nor held against decoys, and the card says which it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from repro.labels import is_head
from repro.measures.agreement import STATISTICS, compare, over_prompts
from repro.measures.statistics import fit_line

FORMS = ("held", "halves", "gradient")
ATTRIBUTIONS = ("dla", "dla_star", *FORMS)
ABLATIONS = ("zero", "mean", "resampled")
KINDS = ("heads", "MLPs", "all")
BOUNDS = ("lower", "estimate", "upper")
VERDICTS = (
    "reliable",
    "partly indirect",
    "mostly indirect",
    "partly taken back",
    "mostly taken back",
    "too small to say",
)
DRAWS = 200
D = 0.02
"""Least share that an eraser takes back."""
FEW = 5
"""With fewer writers through a component there is no usual share to be held against."""
MOSTLY, PARTLY, RELIABLE = 0.5, 0.1, 0.25
PARTLY_AT = (0.25, 0.5)
"""Shares from which a single number, without an interval, is partly and mostly taken back."""
SMALL = 0.02
"""Mean |DLA| in logits below which nothing is said."""


def verdict(taken: Sequence[float], credited: Sequence[float], indirect: Sequence[float]) -> str:
    """Return one of VERDICTS, from intervals [lower, estimate, upper] of what is taken back, mean |DLA| and indirect.

    too small to say: mean |DLA| may be below 0.02 logits, or the interval allows both the next and the last; mostly
    taken back: at least 0.5 with all of the interval; partly: at least 0.1; else at most 0.25 is, and what goes other
    ways decides. indirect: mean |net effect - DLA| over mean |DLA|: with all of its interval at most 0.25 it is
    reliable, above 1 mostly indirect, between them partly indirect.
    """
    low, high = taken[0], taken[2]
    if not credited[0] >= SMALL:
        return "too small to say"
    if low >= MOSTLY:
        return "mostly taken back"
    if low >= PARTLY:
        return "partly taken back"
    if not high <= RELIABLE:
        return "too small to say"
    if indirect[2] <= RELIABLE:
        return "reliable"
    return "mostly indirect" if indirect[0] > 1 else "partly indirect"


def likely_erasers(path: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Return which components take a writer back, as far as shares alone tell: [W, C].

    path, clean: shares [W, C, prompt], NaN where a component does not read the writer.
    """
    reads = np.isfinite(path).any(-1)
    p, k = _median(path), _median(clean)
    enough = reads.sum(0) >= FEW
    usual = np.where(enough, _median(np.moveaxis(np.where(reads, p, np.nan), 0, -1)), 0.0)
    with np.errstate(invalid="ignore"):
        return (p < -D) & (p - usual < -D) & (k < -D)


def _median(values: np.ndarray) -> np.ndarray:
    """Return the median over the last axis without NaN; NaN where nothing is defined."""
    defined = np.isfinite(values).any(-1)
    out = np.full(values.shape[:-1], np.nan)
    out[defined] = np.nanmedian(values[defined], -1)
    return out


def card(
    raw: Mapping[str, np.ndarray],
    writers: Sequence[str],
    nodes: Sequence[str],
    components: Sequence[str],
    claims: Mapping[str, Sequence[str]] | None = None,
    draws: int = DRAWS,
) -> xr.Dataset:
    """Return the card of W writers, from the raw arrays of `dla_card`, prompts last.

    raw: dla [N, T, B], net [F, N, T, B], rest [F, T, B], logit_diff [T, B], path_dla [W, C, T, B], path_share and
    clean_share [W, C, B], total [A, W, T, B]; writers, nodes, components: labels of W, N and C. claims: erasers by
    writer, as roles name them; a writer that is no key is judged by `likely_erasers`, one with an empty list has none.
    Agreement: tests/measures/test_dla_card.py.
    """
    rows = [list(nodes).index(w) for w in writers]
    found = _attributed(raw, rows)
    erasers, source = _erasers(raw, writers, components, claims or {})
    total, n_prompts = raw["total"], raw["total"].shape[-1]
    answer = np.where(erasers[..., None, None], np.nan_to_num(raw["path_dla"]), 0).sum(1)  # [W, T, B]

    def taken(prompts: np.ndarray) -> np.ndarray:
        lines = [fit_line(x[:, prompts], y[:, prompts]) for x, y in zip(found[0], answer, strict=True)]
        return np.array([[0.0 - line.slope, line.r] for line in lines]).T

    taken_back = over_prompts(taken, n_prompts, draws)
    sizes = over_prompts(lambda prompts: np.abs(found[..., prompts]).mean((-2, -1)), n_prompts, draws)
    effects = over_prompts(lambda prompts: np.abs(total[..., prompts]).mean((-2, -1)), n_prompts, draws)
    by = ("attribution", "ablation", "writer")

    def beside(prompts: np.ndarray) -> np.ndarray:
        dla, held = found[0][..., prompts], found[2][..., prompts]
        return np.abs(held - dla).mean((-2, -1)) / np.abs(dla).mean((-2, -1))

    indirect = over_prompts(beside, n_prompts, draws)
    said = [verdict(*one) for one in zip(taken_back[:, 0].T, sizes[:, 0].T, indirect.T, strict=True)]
    variables: dict[str, tuple[Any, Any]] = {
        "taken_back": (("bound", "writer"), taken_back[:, 0]),
        "taken_abs": (("bound", "writer"), taken_back[:, 0] * sizes[1, 0]),
        "taken_back_r": (("bound", "writer"), taken_back[:, 1]),
        "mean_abs": (("bound", "attribution", "writer"), sizes),
        "total_abs": (("bound", "ablation", "writer"), effects),
        "erases": (("writer", "component"), erasers.astype(np.int8)),
        "erasers_from": ("writer", np.array(source, dtype=object)),
        "component_slope": (("writer", "component"), _slopes(found[0], raw["path_dla"])),
        "path_share": (("writer", "component"), _median(raw["path_share"])),
        "verdict": ("writer", np.array(said, dtype=object)),
        "indirect": (("bound", "writer"), indirect),
        "values": (("attribution", "writer", "target", "prompt"), found),
        "total": (("ablation", "writer", "target", "prompt"), total),
        "incomplete": ("form", _incomplete(raw, nodes)),
    }
    variables |= _by_kind(found, total, writers, draws)
    each = [compare(found[:, w].reshape(len(found), -1), total[:, w].reshape(len(total), -1)) for w in range(len(rows))]
    variables |= {f"writer_{name}": (by, np.stack([one[name] for one in each], -1)) for name in STATISTICS}
    coords = {
        "writer": list(writers), "component": list(components), "attribution": list(ATTRIBUTIONS),
        "ablation": list(ABLATIONS), "kind": list(KINDS), "bound": list(BOUNDS), "form": list(FORMS),
    }  # fmt: skip
    return xr.Dataset(variables, coords)


def _attributed(raw: Mapping[str, np.ndarray], rows: Sequence[int]) -> np.ndarray:
    """Return every attribution of the writers: [attribution, W, T, B]."""
    dla = raw["dla"][rows]
    star = dla + np.nan_to_num(raw["path_dla"]).sum(1)
    return np.stack((dla, star, *raw["net"][:, rows])).astype(np.float64)


def _erasers(
    raw: Mapping[str, np.ndarray],
    writers: Sequence[str],
    components: Sequence[str],
    claims: Mapping[str, Sequence[str]],
) -> tuple[np.ndarray, list[str]]:
    """Return which components count as erasers [W, C], and for each writer who says so."""
    likely = likely_erasers(raw["path_share"], raw["clean_share"])
    claimed = np.array([[c in claims.get(w, ()) for c in components] for w in writers])
    known = np.array([w in claims for w in writers])
    return np.where(known[:, None], claimed, likely), ["roles" if one else "shares" for one in known]


def _slopes(dla: np.ndarray, path_dla: np.ndarray) -> np.ndarray:
    """Return the slope of DLA(path_{w->c}) on DLA(w) of every pair: [W, C], NaN where c does not read w."""
    x = dla - dla.mean((-2, -1), keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("wtb,wctb->wc", x, path_dla) / np.square(x).sum((-2, -1))[:, None]


def _incomplete(raw: Mapping[str, np.ndarray], nodes: Sequence[str]) -> np.ndarray:
    """Return by form the largest |embeddings + rest - logit difference|, in logits: how far it is from complete."""
    embeddings = [i for i, label in enumerate(nodes) if "embed" in label]
    whole = np.nan_to_num(raw["net"][:, embeddings]).sum(1) + raw["rest"]
    return np.abs(whole - raw["logit_diff"]).max((-2, -1))


def _by_kind(found: np.ndarray, total: np.ndarray, writers: Sequence[str], draws: int) -> dict[str, tuple[Any, Any]]:
    """Return how well every attribution agrees with every ablation, for heads, MLPs and both."""
    of_kind = {
        "heads": [i for i, w in enumerate(writers) if is_head(w)],
        "MLPs": [i for i, w in enumerate(writers) if w.startswith("MLP")],
        "all": list(range(len(writers))),
    }
    names = (*STATISTICS, "pairs", "signed")
    out = np.full((3, len(names), len(found), len(total), len(KINDS)), np.nan)
    for place, kind in enumerate(KINDS):
        rows = of_kind[kind]
        if not rows:
            continue

        def agree(prompts: np.ndarray, of: tuple[np.ndarray, ...] = (found[:, rows], total[:, rows])) -> np.ndarray:
            x, y = (part[..., prompts].reshape(len(part), -1) for part in of)
            one = compare(x, y)
            return np.stack([one[name] for name in names])

        out[..., place] = over_prompts(agree, total.shape[-1], draws)
    dims = ("attribution", "ablation", "kind")
    variables: dict[str, tuple[Any, Any]] = {name: (("bound", *dims), out[:, i]) for i, name in enumerate(STATISTICS)}
    return variables | {name: (dims, out[1, len(STATISTICS) + i]) for i, name in enumerate(("pairs", "signed"))}
