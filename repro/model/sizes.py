"""Sizes of the weights in a file against those of the configuration, told from the file's header alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repro.errors import listing, plain, unavailable
from repro.model.contents import read_header

# TransformerLens' names in a layer, and the sizes along which each weight lies.
_LAYER = {
    "attn.W_Q": ("n_heads", "d_model", "d_head"),
    "attn.W_K": ("n_kv_heads", "d_model", "d_head"),
    "attn.W_V": ("n_kv_heads", "d_model", "d_head"),
    "attn.W_O": ("n_heads", "d_head", "d_model"),
    "mlp.W_in": ("d_model", "d_mlp"),
    "mlp.W_out": ("d_mlp", "d_model"),
}
_WHOLE = {"embed.W_E": ("d_vocab", "d_model"), "pos_embed.W_pos": ("n_ctx", "d_model")}


def refuse_other_sizes(path: Path, sizes: Mapping[str, int], files: Sequence[Path]) -> None:
    """Raise ReproError (exit 4) where weights under TransformerLens' names have other sizes than config.json says.

    sizes: by TransformerLens' words. Agreement: tests/model/test_folder_files.py.
    """
    tensors: dict[str, Any] = {}
    for file in files:
        if file.suffix == ".safetensors":
            tensors |= read_header(file)
    for name, entry in tensors.items():
        along = _WHOLE.get(name) or _LAYER.get(".".join(name.split(".")[2:]) if name.startswith("blocks.") else "")
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if along is None or shape == [sizes[size] for size in along]:
            continue
        said = [f"{size} = {sizes[size]}" for size in along]
        raise unavailable(
            f"{path}: config.json says {listing(said)}, and {plain(name, 80)} in the weights is "
            f"{plain(repr(shape), 80)}"
        )
