"""Tiny random models in the local-folder format, with non-trivial norms and biases, and prompts that start with BOS."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file as save_torch

VOCAB = 61


def write_prompts(folder: Path, n: int = 8, length: int = 40, vocab: int = VOCAB, seed: int = 0) -> None:
    """prompts.safetensors: n prompts of `length` tokens, BOS = 0 first and nowhere else."""
    tokens = np.random.default_rng(seed).integers(1, vocab, (n, length)).astype(np.int32)
    tokens[:, 0] = 0
    save_numpy({"tokens": tokens}, folder / "prompts.safetensors")


def native_config(**changes: Any) -> dict[str, Any]:
    """A configuration in the library's own keys."""
    config = {
        "d_model": 32,
        "n_layers": 3,
        "d_mlp": 48,
        "d_head": 8,
        "n_heads": 4,
        "n_ctx": 64,
        "d_vocab": VOCAB,
        "act_fn": "gelu",
        "attn_only": False,
        "normalization": "LN",
    }
    return config | changes


# RMS norms, rotary in adjacent pairs on some dimensions, one shared key/value head, gated MLP, tied embeddings.
ROTARY: dict[str, Any] = {
    "d_model": 24,
    "n_layers": 2,
    "d_mlp": 20,
    "d_head": 8,
    "n_heads": 3,
    "n_key_value_heads": 1,
    "act_fn": "silu",
    "gated_mlp": True,
    "normalization": "RMS",
    "eps": 1e-4,
    "positional_embedding_type": "rotary",
    "rotary_adjacent_pairs": True,
    "rotary_dim": 6,
    "rotary_base": 100,
    "tied": True,
}
# Heads that do not divide the width, more layers, another activation.
WIDE: dict[str, Any] = {
    "d_model": 20,
    "n_layers": 4,
    "d_mlp": 12,
    "d_head": 6,
    "n_heads": 5,
    "act_fn": "relu",
    "eps": 1e-3,
}


def native_weights(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Raw weights under the library's names."""
    generator = torch.Generator().manual_seed(seed)
    D, K, H, M, V = (config[key] for key in ("d_model", "d_head", "n_heads", "d_mlp", "d_vocab"))
    heads = {"Q": H} | dict.fromkeys("KV", config.get("n_key_value_heads", H))
    parts = "w" if config["normalization"] == "RMS" else "wb"

    def normal(*size: int, scale: float = 0.3, mean: float = 0.0) -> torch.Tensor:
        return torch.randn(*size, generator=generator) * scale + mean

    weights = {"embed.W_E": normal(V, D, scale=1.0)}
    if config.get("positional_embedding_type") != "rotary":
        weights["pos_embed.W_pos"] = normal(config["n_ctx"], D)
    weights |= {f"ln_final.{part}": normal(D, mean=part == "w") for part in parts}
    weights["unembed.W_U"] = weights["embed.W_E"].T.contiguous() if config.get("tied") else normal(D, V)
    weights["unembed.b_U"] = normal(V)
    for layer in range(config["n_layers"]):
        block = {
            **{f"attn.W_{x}": normal(n, D, K) for x, n in heads.items()},
            **{f"attn.b_{x}": normal(n, K) for x, n in heads.items()},
            "attn.W_O": normal(H, K, D),
            "attn.b_O": normal(D),
            "mlp.W_in": normal(D, M),
            "mlp.W_out": normal(M, D),
            **({"mlp.W_gate": normal(D, M)} if config.get("gated_mlp") else {}),
            **({} if config.get("gated_mlp") else {"mlp.b_in": normal(M), "mlp.b_out": normal(D)}),
            **{f"{norm}.{part}": normal(D, mean=part == "w") for norm in ("ln1", "ln2") for part in parts},
        }
        weights |= {f"blocks.{layer}.{name}": tensor for name, tensor in block.items()}
    return weights


def make_native(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A LayerNorm model with learned positions in the library's format."""
    folder.mkdir(parents=True)
    config = native_config(**changes)
    (folder / "config.json").write_text(json.dumps(config))
    save_torch(native_weights(config, seed), folder / "model.safetensors")
    write_prompts(folder)
    return folder


def make_gpt2(folder: Path, **changes: Any) -> Path:
    """A GPT-2 in Hugging Face's format."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 32, "vocab_size": VOCAB, "n_positions": 64}
    sizes |= {"bos_token_id": 0, "eos_token_id": 0}
    return save_hugging_face(GPT2LMHeadModel(GPT2Config(**(sizes | changes))), folder)


LLAMA_SIZES: dict[str, Any] = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
}


def make_llama(folder: Path, **changes: Any) -> Path:
    """A Llama with grouped heads and tied embeddings in Hugging Face's format."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return save_hugging_face(LlamaForCausalLM(LlamaConfig(**LLAMA_SIZES, tie_word_embeddings=True, **changes)), folder)


LLAMA_LIKE: dict[str, Any] = {
    **LLAMA_SIZES,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
EVEN = {key: value for key, value in LLAMA_LIKE.items() if key != "num_key_value_heads"}
GPT2_SIZES: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
    "vocab_size": VOCAB,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "pythia": ("GPTNeoX", EVEN | {"rotary_pct": 0.25, "num_hidden_layers": 3}),
    "gpt-j": ("GPTJ", GPT2_SIZES | {"rotary_dim": 4}),
    "qwen3": ("Qwen3", LLAMA_LIKE | {"head_dim": 6}),
    "gemma": ("Gemma", LLAMA_LIKE | {"head_dim": 12}),
    "gemma2": (
        "Gemma2",
        LLAMA_LIKE
        | {"num_hidden_layers": 3, "head_dim": 12, "query_pre_attn_scalar": 9, "sliding_window": 6}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    ),
    "gemma3": (
        "Gemma3Text",
        LLAMA_LIKE
        | {"num_hidden_layers": 3, "head_dim": 6, "query_pre_attn_scalar": 9, "sliding_window": 5}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "olmo2": ("Olmo2", LLAMA_LIKE | {"num_hidden_layers": 3}),
    "olmo3": ("Olmo3", LLAMA_LIKE | {"sliding_window": 7, "layer_types": ["full_attention", "sliding_attention"]}),
    "exaone4": ("Exaone4", LLAMA_LIKE | {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}),
    "granite": (
        "Granite",
        LLAMA_LIKE
        | {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "logits_scaling": 4.0},
    ),
    "opt": (
        "OPT",
        {key: EVEN[key] for key in EVEN if key != "intermediate_size"} | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    ),
    "phi": ("Phi", LLAMA_LIKE | {"partial_rotary_factor": 0.5}),
    "phi-3": ("Phi3", LLAMA_LIKE | {"sliding_window": 40}),
    "starcoder2": ("Starcoder2", LLAMA_LIKE),
    "gpt2, scores scaled by layer": ("GPT2", GPT2_SIZES | {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2, unscaled scores": ("GPT2", GPT2_SIZES | {"scale_attn_weights": False}),
    "gpt2, square MLP": ("GPT2", GPT2_SIZES | {"n_inner": 32}),
    "llama, square MLP": ("Llama", LLAMA_LIKE | {"intermediate_size": 32}),
    "mistral, window reached": ("Mistral", LLAMA_LIKE | {"sliding_window": 9}),
    "mistral, window not reached": ("Mistral", LLAMA_LIKE | {"sliding_window": 40}),
}
"""By name the kind and the configuration of tiny models in Hugging Face's format; prompts have 40 tokens."""


def make_kind(folder: Path, name: str) -> Path:
    """One of the architectures, seeded, in a folder."""
    import transformers

    kind, config = ARCHITECTURES[name]
    named = kind.removesuffix("Text")
    module = getattr(transformers, f"{named}LMHeadModel" if named == "GPT2" else f"{named}ForCausalLM")
    return save_hugging_face(module(getattr(transformers, f"{kind}Config")(**config)), folder)


def save_hugging_face(model: Any, folder: Path) -> Path:
    """Fills a model with seeded weights, norms and biases far from trivial, and saves it with prompts."""
    from repro.process import quiet

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            mean = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + mean)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    write_prompts(folder)
    return folder
