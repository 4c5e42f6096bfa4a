"""The model boundary: a folder becomes a `Model` with processed weights. Only this module knows TransformerLens."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from repro.errors import Exit, ReproError, listing
from repro.model.casting import DTYPES, cast, rounded
from repro.model.folder import Folder
from repro.model.forward import Block, Model, Rotary
from repro.model.linear import ACTIVATIONS
from repro.process import quiet

# Keys of the library's configuration that its native model ignores: any other value would silently be another model.
_NATIVE_DEFAULTS: dict[str, object] = {
    "attention_dir": "causal",
    "attn_scale": -1.0,
    "num_experts": None,
    "parallel_attn_mlp": False,
    "post_embedding_ln": False,
    "rope_scaling": None,
    "scale_attn_by_inverse_layer_idx": False,
    "shortformer_pos": False,
    "use_NTK_by_parts_rope": False,
    "use_attn_scale": True,
    "use_local_attn": False,
    "use_normalization_before_and_after": False,
    "use_qk_norm": False,
}


def load(folder: Folder, precision: str = "float32", device: str = "cpu") -> Model:
    """Return the model of a folder, its weights processed by the library, and checked against it.

    Processing is `enable_compatibility_mode()`: norms folded, writing weights centred (LayerNorm only), unembedding
    centred, value biases folded into b_O. precision: float32 or float64, the type of weights and activations; or bf16,
    to which all weights, and inputs and outputs of every product but the unembedding, are rounded, while the stream,
    norms and sums stay float32 (the check is of the unrounded model). Returns a `Model` on `device`.
    Raises ReproError (exit 4) naming what is unreadable, not finite, unsupported, or computed differently from the
    library's own model. Agreement: tests/model/test_model.py.
    """
    try:
        model = _checked(folder, torch.float64 if precision == "float64" else torch.float32)
    except ReproError:
        raise
    except Exception as error:  # the library raises many kinds; all mean that this model cannot be had
        said = " ".join(str(error).split())[:300]
        raise ReproError(
            f"{folder.path}: the model cannot be loaded ({type(error).__name__}: {said})", Exit.UNAVAILABLE
        ) from error
    model = cast(model, DTYPES[precision], device)
    return rounded(model) if precision == "bf16" else model


def _checked(folder: Folder, dtype: torch.dtype) -> Model:
    """Return the model as the library processes it, after the start-up check."""
    from repro.model.selfcheck import check_against_library

    probe = _probe(folder)
    with torch.no_grad(), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge, rotary, raw_logits = _bridge(folder, dtype, probe)
        _refuse(folder, bridge)
        bridge.enable_compatibility_mode(disable_warnings=True)
        model = _extract(folder, bridge, rotary)
        check_against_library(folder, bridge, model, probe, raw_logits)
    return model


def _bridge(folder: Folder, dtype: torch.dtype, probe: Tensor) -> tuple[Any, Rotary | None, Tensor]:
    """Return the library's bridge around the model, unprocessed; its rotary tables; the model's logits on a probe."""
    if folder.is_hugging_face:
        return _hugging_face(folder, dtype, probe)
    bridge, rotary = _native(folder, dtype)
    return bridge, rotary, bridge(probe)


def _hugging_face(folder: Folder, dtype: torch.dtype, probe: Tensor) -> tuple[Any, Rotary | None, Tensor]:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(folder.path),
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    module, report = loaded
    module.eval()
    _refuse_incomplete(folder, report)
    _refuse_not_finite(folder, dict(module.named_parameters()))
    window = getattr(module.config, "sliding_window", None)
    if window is not None and window < folder.shape.n_ctx and getattr(module.config, "use_sliding_window", True):
        raise ReproError(f"{folder.path}: sliding-window attention is not supported", Exit.UNAVAILABLE)
    rotary = _rotary_tables(folder, module)
    # Before the bridge takes the module apart: its own attention need not be the module's.
    raw_logits = module(probe).logits
    name = module.config.architectures[0]
    bridge = build_bridge_from_module(module, architecture=name, hf_config=module.config, dtype=dtype, model_name=name)
    return bridge.eval(), rotary, raw_logits


def _refuse_incomplete(folder: Folder, report: dict[str, Any]) -> None:
    """Refuse a checkpoint that does not fit its configuration: the library fills gaps with random numbers."""
    for kind in ("missing", "unexpected", "mismatched"):
        names = sorted(str(key if isinstance(key, str) else key[0]) for key in report[f"{kind}_keys"])
        if names:
            raise ReproError(
                f"{folder.path}: the weights do not fit config.json: {kind} {listing(names, 4)}", Exit.UNAVAILABLE
            )


def _rotary_tables(folder: Folder, module: torch.nn.Module) -> Rotary | None:
    found: Any = next((part for part in module.modules() if hasattr(part, "inv_freq")), None)
    if found is None:
        return None
    kind = getattr(found, "rope_type", "default")
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise ReproError(f"{folder.path}: rotary positions of kind {kind!r} are not supported", Exit.UNAVAILABLE)
    angles = torch.arange(folder.shape.n_ctx, dtype=torch.float32)[:, None] * found.inv_freq.float()[None, :]
    strength = float(getattr(found, "attention_scaling", 1.0))
    return Rotary(angles.cos() * strength, angles.sin() * strength, adjacent=False)


def _native(folder: Folder, dtype: torch.dtype) -> tuple[Any, Rotary | None]:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources.native import boot
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    c, s = folder.config, folder.shape
    positions = c.get("positional_embedding_type", "standard")
    if positions == "rotary" and not c.get("rotary_adjacent_pairs", False):
        raise ReproError(
            f"{folder.path}: a rotary model in this format must set rotary_adjacent_pairs = true, the only pairing "
            "that the library's own model computes; use the Hugging Face format for others",
            Exit.UNAVAILABLE,
        )
    unread = [key for key, default in _NATIVE_DEFAULTS.items() if c.get(key) not in (None, default)]
    if unread:
        named = listing([f"{key} = {c[key]!r}" for key in unread])
        raise ReproError(f"{folder.path}: not supported: {named} in config.json", Exit.UNAVAILABLE)
    cfg = TransformerBridgeConfig(
        d_model=s.d_model,
        n_layers=s.n_layers,
        d_mlp=s.d_mlp,
        d_head=s.d_head,
        n_heads=s.n_heads,
        n_key_value_heads=None if s.n_kv_heads == s.n_heads else s.n_kv_heads,
        n_ctx=s.n_ctx,
        d_vocab=s.d_vocab,
        act_fn=c.get("act_fn", "gelu"),
        gated_mlp=c.get("gated_mlp", False),
        eps=c.get("eps", c.get("layer_norm_eps", 1e-5)),
        final_rms=c.get("final_rms", False),
        normalization_type=c.get("normalization", c.get("normalization_type", "LN")),
        positional_embedding_type=positions,
        rotary_dim=c.get("rotary_dim"),
        rotary_base=c.get("rotary_base", 10000),
        attn_scores_soft_cap=c.get("attn_scores_soft_cap", -1.0),
        output_logits_soft_cap=c.get("output_logits_soft_cap", -1.0),
        architecture="TransformerLensNative",
        init_weights=False,
    )
    raw = _read_weights(folder)
    _refuse_not_finite(folder, raw)
    state = {name: tensor.to(dtype) for name, tensor in raw.items()}
    bridge = boot(cfg, dtype=dtype)
    converted = convert_tl_checkpoint(state, cfg)
    converted.setdefault("unembed.bias", torch.zeros(s.d_vocab, dtype=dtype))
    bridge.load_state_dict(_complete(converted, bridge.state_dict()), strict=True)
    tables = getattr(bridge.original_model, "rotary", None)
    if tables is None:
        return bridge.eval(), None
    return bridge.eval(), Rotary(tables.cos_cached[:, 0::2], tables.sin_cached[:, 0::2], adjacent=True)


def _complete(given: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with zero biases where the checkpoint has none (Llama-kind checkpoints carry none at all)."""
    missing = {key: torch.zeros_like(value) for key, value in expected.items() if key not in given and _is_bias(key)}
    return given | missing


def _is_bias(key: str) -> bool:
    return key.endswith(("attn.q.bias", "attn.k.bias", "attn.v.bias", "attn.o.bias", "mlp.in.bias", "mlp.out.bias"))


def _read_weights(folder: Folder) -> dict[str, Tensor]:
    if folder.weights[0].suffix == ".safetensors":
        from safetensors.torch import load_file

        return {name: tensor for file in folder.weights for name, tensor in load_file(str(file)).items()}
    from repro.model.checkpoint import read_checkpoint

    try:
        return read_checkpoint(folder.weights[0])
    except ReproError as error:
        raise error.at(str(folder.path)) from None


def _refuse_not_finite(folder: Folder, state: dict[str, Any]) -> None:
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ReproError(f"{folder.path}: {name} is not a tensor", Exit.UNAVAILABLE)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ReproError(f"{folder.path}: weights of {name} are not finite (NaN or infinite)", Exit.UNAVAILABLE)


def _refuse(folder: Folder, bridge: Any) -> None:
    """Refuse by name what the forward pass here does not compute."""
    cfg = bridge.cfg
    norm = str(cfg.normalization_type or "").upper()
    first = bridge.blocks[0]
    unsupported = {
        "parallel attention and MLP blocks": bool(getattr(cfg, "parallel_attn_mlp", False)),
        "norms after attention or MLP": bool(getattr(cfg, "use_normalization_before_and_after", False))
        or hasattr(first, "ln1_post"),
        "a soft-cap on attention scores": float(getattr(cfg, "attn_scores_soft_cap", -1) or -1) > 0,
        "a soft-cap on logits": float(getattr(cfg, "output_logits_soft_cap", -1) or -1) > 0,
        "query/key norms": bool(getattr(cfg, "use_qk_norm", False)),
        "mixtures of experts": bool(getattr(cfg, "num_experts", None)),
        "local attention": bool(getattr(cfg, "use_local_attn", False)),
        f"normalisation {cfg.normalization_type!r}": not norm.startswith(("LN", "RMS")),
        f"positions of kind {cfg.positional_embedding_type!r}": cfg.positional_embedding_type
        not in ("standard", "rotary"),
        f"activation {cfg.act_fn!r}": cfg.act_fn not in ACTIVATIONS,
        "a final norm of another kind": norm.startswith("LN") and bool(cfg.final_rms),
    }
    named = [name for name, present in unsupported.items() if present]
    if named:
        raise ReproError(f"{folder.path}: not supported: {', '.join(named)}", Exit.UNAVAILABLE)


def _probe(folder: Folder) -> Tensor:
    """Return a few token ids from the whole vocabulary, for the start-up check."""
    generator = torch.Generator().manual_seed(0)
    length = min(folder.shape.n_ctx, 24)
    return torch.randint(0, folder.shape.d_vocab, (2, length), generator=generator)


def _extract(folder: Folder, bridge: Any, rotary: Rotary | None) -> Model:
    cfg, s = bridge.cfg, folder.shape

    def zeros(bias: Tensor | None, size: tuple[int, ...]) -> Tensor:
        return torch.zeros(size, dtype=bridge.W_U.dtype) if bias is None else bias.detach().reshape(size)

    def block(index: int) -> Block:
        attn, ff = bridge.blocks[index].attn, bridge.blocks[index].mlp
        heads = (("Q", s.n_heads), ("K", s.n_kv_heads), ("V", s.n_kv_heads))
        wide = [getattr(attn, f"W_{x}").detach().transpose(0, 1).reshape(s.d_model, n * s.d_head) for x, n in heads]
        bias = [zeros(getattr(attn, f"b_{x}", None), (n * s.d_head,)) for x, n in heads]
        gate = getattr(ff, "W_gate", None)
        return Block(
            W_QKV=torch.cat(wide, 1),
            b_QKV=torch.cat(bias),
            W_V=attn.W_V.detach().contiguous(),
            W_O=attn.W_O.detach().contiguous(),
            b_O=zeros(getattr(attn, "b_O", None), (s.d_model,)),
            W_in=ff.W_in.detach().contiguous(),
            b_in=zeros(getattr(ff, "b_in", None), (ff.W_in.shape[1],)),
            W_gate=None if gate is None else gate.detach().contiguous(),
            b_gate=None if gate is None else zeros(getattr(ff, "b_gate", None), (gate.shape[1],)),
            W_out=ff.W_out.detach().contiguous(),
            b_out=zeros(getattr(ff, "b_out", None), (s.d_model,)),
        )

    positional = getattr(bridge, "pos_embed", None) if rotary is None else None
    scale = float(getattr(cfg, "attn_scale", -1) or -1)
    return Model(
        shape=s,
        center=str(cfg.normalization_type).upper().startswith("LN"),
        eps=float(cfg.eps),
        act=cfg.act_fn,
        softmax_scale=1 / scale if scale > 0 and cfg.use_attn_scale else s.d_head**-0.5,
        W_E=bridge.W_E.detach().contiguous(),
        W_pos=None if positional is None else bridge.W_pos.detach().contiguous(),
        rotary=rotary,
        blocks=tuple(block(index) for index in range(s.n_layers)),
        W_U=bridge.W_U.detach(),
        b_U=zeros(getattr(bridge, "b_U", None), (s.d_vocab,)),
    )
