"""Keys of a configuration in TransformerLens' own format: read, a note of its training, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


# Our name of a size -> its names in TransformerLens' and in Hugging Face's configurations.
SIZES: dict[str, tuple[str, ...]] = {
    "n_layers": ("n_layers", "num_hidden_layers", "n_layer", "num_layers"),
    "n_heads": ("n_heads", "num_attention_heads", "n_head", "num_heads"),
    "n_kv_heads": ("n_key_value_heads", "num_key_value_heads"),
    "d_head": ("d_head", "head_dim"),
    "d_model": ("d_model", "hidden_size", "n_embd"),
    "d_mlp": ("d_mlp", "intermediate_size", "n_inner", "ffn_dim"),
    "n_ctx": ("n_ctx", "max_position_embeddings", "n_positions"),
    "d_vocab": ("d_vocab", "vocab_size"),
}
SIZE_KEYS = frozenset(name for names in SIZES.values() for name in names)
READ = SIZE_KEYS | words(
    """
    d_vocab_out act_fn normalization normalization_type positional_embedding_type eps layer_norm_eps rotary_base
    rotary_dim rotary_adjacent_pairs gated_mlp final_rms attn_only
    """
)
# Keys that the library's native model does not read, or not all values of: others would silently be another model.
ONLY: dict[str, tuple[object, ...]] = {
    "attention_dir": ("causal",),
    "attn_scale": (-1.0,),
    "attn_scores_soft_cap": (-1.0,),
    "attn_types": (),
    "experts_per_token": (),
    "factored_embed": (False,),
    "ln_eps": (1e-5,),
    "normalization": ("LN", "LNPre", "RMS", "RMSPre"),
    "normalization_type": ("LN", "LNPre", "RMS", "RMSPre"),
    "neuron_scale": (1,),
    "neuron_temp": (1,),
    "num_experts": (),
    "output_logits_soft_cap": (-1.0,),
    "parallel_attn_mlp": (False,),
    "positional_embedding_type": ("standard", "rotary"),
    "post_embedding_ln": (False,),
    "relative_attention_num_buckets": (),
    "rope_scaling": (),
    "scale_attn_by_inverse_layer_idx": (False,),
    "shortformer_pos": (False,),
    "ungroup_grouped_query_attention": (False,),
    "use_attn_scale": (True,),
    "use_ET": (False,),
    "use_local_attn": (False,),
    "use_normalization_before_and_after": (False,),
    "use_NTK_by_parts_rope": (False,),
    "use_pos_resid": (True,),
    "use_qk_norm": (False,),
    "window_size": (),
}
# Training scripts write what they like: words of a key, or its beginning, that tell of training and of bookkeeping.
_NOTES = words(
    """
    architecture batch batches beta betas bfloat16 bos branch checkpoint checkpoints clip code commit control data
    dataset date debug decay description device devices dtype epoch epochs every ewma fixed float16 from grad hash id
    init initializer label learning log loss lr matmul matrices max min model name norm_clip note optimizer origin
    original params parallel_devices path prepend project revision run save scheduler scheme schedule seed shuffle
    shuffled source step steps store subset time tl tokenizer tokens train trust url version wandb warmup weight weights
    tied hook result results split input
    """
)


def unread(
    keys: Mapping[str, Any], only: Mapping[str, Collection[object]], unknown: Callable[[str, Any], bool]
) -> list[tuple[str, Any]]:
    """Return the keys that are set to another value than the only ones, or that are unknown. None is always allowed."""
    return [
        (key, value)
        for key, value in keys.items()
        if value is not None and (value not in only[key] if key in only else unknown(key, value))
    ]


def unknown(key: str, value: object) -> bool:
    """Return whether a key is neither read nor a note, and is switched on: zero and one scale and switch nothing."""
    noted = any(word in _NOTES for word in key.lower().split("_"))
    return key not in READ and not noted and value not in (False, 0, 1, "", [], {})
