"""Labels of sites and nodes: `resid_mid2`, `L0H2`, `MLP3`. Always strings, in the order of the residual stream."""

from __future__ import annotations

import re

FLOAT32 = "float32"
"""The precision that goes without saying."""
_HEAD = re.compile(r"L(\d{1,6})H(\d{1,6})\Z", re.ASCII)
_MLP = re.compile(r"MLP(\d{1,6})\Z", re.ASCII)


def sites(n_layers: int) -> list[str]:
    """Return the 2L+1 residual-stream states in order: resid_pre0, resid_mid0, resid_post0, resid_mid1, …"""
    return ["resid_pre0", *(f"resid_{kind}{layer}" for layer in range(n_layers) for kind in ("mid", "post"))]


def heads_of(layer: int, n_heads: int) -> list[str]:
    """Return the labels of the heads of one layer."""
    return [f"L{layer}H{head}" for head in range(n_heads)]


def heads(n_layers: int, n_heads: int) -> list[str]:
    """Return the labels of all heads, layer by layer."""
    return [label for layer in range(n_layers) for label in heads_of(layer, n_heads)]


def nodes(n_layers: int, n_heads: int) -> list[str]:
    """Return the labels of all nodes in the order they write: the heads of a layer, then its MLP."""
    return [label for layer in range(n_layers) for label in (*heads_of(layer, n_heads), f"MLP{layer}")]


def writers(n_layers: int, n_heads: int, positional: bool) -> list[str]:
    """Return everything that writes a share of its own: the embeddings, then the nodes. Biases hold no role."""
    return ["embed", *(["pos_embed"] if positional else []), *nodes(n_layers, n_heads)]


def step_of(label: str) -> int:
    """Return when a node writes: embeddings 0, the heads of layer l 2l + 1, its MLP 2l + 2; its site has that index."""
    if label in ("embed", "pos_embed"):
        return 0
    return 2 * layer_of(label) + (1 if is_head(label) else 2)


def is_head(label: str) -> bool:
    """Return whether the label has the form of a head, `L0H2`."""
    return _HEAD.match(label) is not None


def is_node(label: str) -> bool:
    """Return whether the label has the form of a head or an MLP, `L0H2` or `MLP3`."""
    return is_head(label) or _MLP.match(label) is not None


def head_index(label: str) -> tuple[int, int]:
    """Return (layer, head) of a head label; ValueError on anything else."""
    if match := _HEAD.match(label):
        return int(match[1]), int(match[2])
    raise ValueError(f"{label!r} is not a head label such as 'L0H2'")


def layer_of(label: str) -> int:
    """Return the layer of a head or an MLP."""
    if match := _MLP.match(label):
        return int(match[1])
    return head_index(label)[0]


def in_precision(precision: str) -> str:
    """Return ' in bf16', said of whatever was computed in another precision than float32, else the empty string."""
    return "" if precision == FLOAT32 else f" in {precision}"
