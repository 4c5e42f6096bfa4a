"""Checkpoints in TransformerLens' own format, read into its native model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from repro.errors import ReproError, listing, unavailable
from repro.model.folder import Folder
from repro.model.linear import ACTIVATIONS
from repro.model.native_keys import ONLY
from repro.model.refusals import refuse_misfits, refuse_not_finite

_BUFFERS = (".mask", ".IGNORE", ".rotary_sin", ".rotary_cos")
"""What `HookedTransformer.state_dict()` holds beside weights: IGNORE is -1e5 or, in later versions, minus infinity."""
_BIASES = tuple(f"{part}.bias" for part in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.in", "mlp.out", "unembed"))
_LETTERS = {"q": "Q", "k": "K", "v": "V", "o": "O", "embed": "E", "pos_embed": "pos", "unembed": "U"}


def native_bridge(folder: Folder, dtype: torch.dtype) -> Any:
    """Return TransformerLens' bridge around its native model, with the weights of a folder in `dtype`, unprocessed.

    Raises ReproError (exit 4) naming what the folder sets that the native model does not compute, or a weight that is
    not finite. Agreement: tests/model/test_model.py, tests/model/test_hooked.py.
    """
    from transformer_lens.model_bridge.sources.native import boot
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    cfg = _config(folder)
    raw = _read_weights(folder)
    state = {name: tensor for name, tensor in raw.items() if not name.endswith(_BUFFERS)}
    refuse_not_finite(folder, state)
    bridge = boot(cfg, dtype=dtype)
    _refuse_other_tables(folder, bridge, raw)
    converted = convert_tl_checkpoint({name: tensor.to(dtype) for name, tensor in state.items()}, cfg)
    # Llama-kind checkpoints carry no biases at all.
    wanted = dict(bridge.state_dict())
    wanted.setdefault("unembed.bias", torch.zeros(_outputs(folder), dtype=dtype))
    zeros = {key: torch.zeros_like(value) for key, value in wanted.items() if key.endswith(_BIASES)}
    given = zeros | converted
    kinds = {
        "missing": set(wanted) - set(given),
        "unexpected": set(given) - set(wanted),
        "mismatched": {key for key in set(wanted) & set(given) if wanted[key].shape != given[key].shape},
    }
    # `blocks.0.mlp.in.weight` here is `blocks.0.mlp.W_in` in the file.
    refuse_misfits(folder, {kind: set(map(stored_name, keys)) for kind, keys in kinds.items()})
    bridge.load_state_dict(given, strict=True)
    return bridge.eval()


def stored_name(key: str) -> str:
    """Return what a weight of the native model is called in a file in this format."""
    *path, part, kind = key.split(".")
    if part.startswith("ln"):
        return ".".join([*path, part, kind[0]])
    letter = {"weight": "W", "bias": "b"}.get(kind, kind)
    return ".".join([*(path or [part]), f"{letter}_{_LETTERS.get(part, part)}"])


def _outputs(folder: Folder) -> int:
    """Return the number of tokens that the model predicts, which may be fewer than it reads."""
    return int(folder.config.get("d_vocab_out") or folder.shape.d_vocab)


def _config(folder: Folder) -> Any:
    from transformer_lens.config import TransformerBridgeConfig

    c, s = folder.config, folder.shape
    positions = c.get("positional_embedding_type", "standard")
    if positions == "rotary" and not c.get("rotary_adjacent_pairs", False):
        raise unavailable(
            f"{folder.path}: a rotary model in this format must set rotary_adjacent_pairs = true, the only pairing "
            "that the library's own model computes; use the Hugging Face format for others"
        )
    act, norm = c.get("act_fn", "gelu"), c.get("normalization", c.get("normalization_type", "LN"))
    if act not in ACTIVATIONS:
        raise unavailable(
            f"{folder.path}: not supported: act_fn = {act!r} in config.json; {listing(list(ACTIVATIONS))} are"
        )
    for key, value in (("normalization_type", norm), ("positional_embedding_type", positions)):
        if value not in ONLY[key]:
            known = listing(list(map(str, ONLY[key])))
            raise unavailable(f"{folder.path}: not supported: {key} = {value!r} in config.json; {known} are")
    if c.get("final_rms") and norm.startswith("LN"):
        raise unavailable(f"{folder.path}: not supported: final_rms = True in config.json, another kind of final norm")
    return TransformerBridgeConfig(
        d_model=s.d_model,
        n_layers=s.n_layers,
        d_mlp=s.d_mlp,
        d_head=s.d_head,
        n_heads=s.n_heads,
        n_key_value_heads=None if s.n_kv_heads == s.n_heads else s.n_kv_heads,
        n_ctx=s.n_ctx,
        d_vocab=s.d_vocab,
        d_vocab_out=_outputs(folder),
        act_fn=act,
        gated_mlp=c.get("gated_mlp", False),
        eps=c.get("eps", c.get("layer_norm_eps", 1e-5)),
        final_rms=c.get("final_rms", False),
        normalization_type=norm,
        positional_embedding_type=positions,
        rotary_dim=c.get("rotary_dim"),
        rotary_base=c.get("rotary_base", 10000),
        architecture="TransformerLensNative",
        init_weights=False,
    )


def _read_weights(folder: Folder) -> dict[str, Tensor]:
    if folder.weights[0].suffix == ".safetensors":
        from safetensors.torch import load_file

        return {name: tensor for file in folder.weights for name, tensor in load_file(str(file)).items()}
    from repro.model.checkpoint import read_checkpoint

    try:
        return read_checkpoint(folder.weights[0])
    except ReproError as error:
        raise error.at(str(folder.path)) from None


def _refuse_other_tables(folder: Folder, bridge: Any, raw: Mapping[str, Tensor]) -> None:
    """Refuse rotary tables in a checkpoint that are not those of the native model."""
    tables = getattr(bridge.original_model, "rotary", None)
    for name, stored in raw.items():
        if not name.endswith((".rotary_sin", ".rotary_cos")):
            continue
        own = None if tables is None else tables.sin_cached if name.endswith("sin") else tables.cos_cached
        if own is None or own.shape != stored.shape or not torch.allclose(own.float(), stored.float(), atol=1e-4):
            raise unavailable(
                f"{folder.path}: {name} in the weights is not the table of the rotary settings in config.json "
                "(positional_embedding_type, rotary_dim, rotary_base, rotary_adjacent_pairs, n_ctx)"
            )
