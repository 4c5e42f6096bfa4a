"""Tiny random configurations of the causal language models that transformers offers, drawn by number.

A configuration of an architecture that the package lists varies in what its config.json may set: biases, tied
embeddings, activations, norms, scales, kinds of rotary positions, windows, soft caps, clipping, sizes. Of every other
architecture one is drawn, as transformers makes it.
"""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from repro.model.architectures import ARCHITECTURES
from repro.model.native_keys import words

VOCAB, LENGTH = 61, 40
PER_ARCHITECTURE = 10
"""Configurations of each architecture that the package lists."""

# What a size goes by in the configurations of transformers; only keys that an architecture has are set.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCAB),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), LENGTH),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "encoder_attention_heads"), 4),
    **dict.fromkeys(("moe_intermediate_size", "q_lora_rank", "kv_lora_rank", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "v_head_dim", "hidden_size_per_layer_input"), 8),
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "qk_rope_head_dim": 4,
    "rotary_dim": 4,
}
_OWN_SIZES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": LENGTH},
    "glm4": {"attention_bias": False},
}
_ROTARY: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 500.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 10},
    {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 20,
    },
]
_ACTIVATIONS = ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "quick_gelu", "relu2", "gelu_fast", "tanh"]
_SWITCHES = words(
    """
    tie_word_embeddings attention_bias mlp_bias use_bias bias qk_layernorm use_qk_norm use_parallel_residual
    use_qkv_bias alibi multi_query parallel_attn do_layer_norm_before enable_bias layer_norm_elementwise_affine
    scale_attn_weights scale_attn_by_inverse_layer_idx add_cross_attention attention_out_bias
    use_bidirectional_attention _remove_final_layer_norm reorder_and_upcast_attn
    """
)
_SHARED: dict[tuple[str, ...], list[Any]] = {
    tuple(_SWITCHES): [True, False],
    ("hidden_act", "activation_function", "hidden_activation", "activation"): _ACTIVATIONS,
    ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon"): [1e-6, 1e-2],
    ("attn_logit_softcapping", "final_logit_softcapping"): [None, 4.0, 300.0],
    ("residual_multiplier", "embedding_multiplier", "attention_multiplier"): [1.0, 0.3],
    ("logits_scaling", "logit_scale"): [1.0, 4.0],
}
_CHOICES: dict[str, list[Any]] = {
    **{key: values for keys, values in _SHARED.items() for key in keys},
    "clip_qkv": [None, 0.5, 50.0],
    "head_dim": [6, 8, 16],
    "intermediate_size": [32, 48],
    "layer_types": [["full_attention"] * 2, ["sliding_attention", "full_attention"]],
    "max_window_layers": [0, 1],
    "n_inner": [None, 32],
    "no_rope_layers": [[1, 0], [1, 1], [0, 0]],
    "num_key_value_heads": [1, 2, 4],
    "partial_rotary_factor": [0.5, 1.0],
    "query_pre_attn_scalar": [4, 100],
    "rope_parameters": _ROTARY,
    "rotary_dim": [2, 8, None],
    "rotary_pct": [0.25, 1.0],
    "sliding_window": [None, 8, LENGTH, 200],
    "use_sliding_window": [True, False],
    "window_size": [8, 64],
    "word_embed_proj_dim": [16, 32],
}
# Layers with a window and those without may turn by tables of their own.
_BY_LAYER: list[Any] = [
    {"full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}, "sliding_attention": _ROTARY[0]},
    {"full_attention": _ROTARY[3], "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}},
    {"full_attention": _ROTARY[0], "sliding_attention": _ROTARY[2]},
]
_RARELY: dict[str, list[Any]] = {key: [False, False, True] for key in ("attention_bias", "use_bidirectional_attention")}
"""What is refused wherever it is set."""
_OWN_CHOICES: dict[str, dict[str, list[Any]]] = {
    "gemma2": _RARELY,
    "gemma3_text": _RARELY | {"rope_parameters": _BY_LAYER, "attn_logit_softcapping": [None, None, 4.0]},
    "olmo3": {"rope_parameters": _BY_LAYER},
}


@dataclass(frozen=True)
class Drawn:
    """One configuration: its architecture, and what it sets beside sizes."""

    kind: str
    number: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """Its name in the table of results."""
        return f"{self.kind}-{self.number}"


def drawn() -> list[Drawn]:
    """All configurations, the same every time: those of listed architectures, then one of each other."""
    listed = [draw(kind, number) for kind in ARCHITECTURES for number in range(PER_ARCHITECTURE)]
    return listed + [Drawn(kind, 0, {}) for kind in others()]


def others() -> list[str]:
    """Architectures of transformers that the package does not list."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    return [kind for kind in NAMES if kind not in ARCHITECTURES]


def draw(kind: str, number: int) -> Drawn:
    """One configuration of a listed architecture; number 0 is as transformers makes it."""
    rng = random.Random(f"{kind} {number}")
    choices = _CHOICES | _OWN_CHOICES.get(kind, {})
    known = sorted(set(choices) & set(defaults(kind)))
    chosen = rng.sample(known, min(len(known), rng.randint(1, 4))) if number else []
    return Drawn(kind, number, {key: deepcopy(rng.choice(choices[key])) for key in chosen})


def defaults(kind: str) -> dict[str, Any]:
    """What transformers' configuration of an architecture holds, and what it is if nobody sets it."""
    from transformers import AutoConfig

    return dict(AutoConfig.for_model(kind).to_dict())


def build(given: Drawn) -> Any:
    """A model of a configuration, its weights as transformers makes them, on no device: no memory is taken."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    held = defaults(given.kind)
    sizes = {key: value for key, value in _SIZES.items() if key in held}
    if given.kind == "gpt_bigcode":
        sizes.pop("num_key_value_heads", None)
    config = AutoConfig.for_model(given.kind, **deepcopy(sizes | _OWN_SIZES.get(given.kind, {}) | given.settings))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
