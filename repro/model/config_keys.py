"""Every key of a Hugging Face configuration is read, harmless, or refused by its name.

A check on some tokens cannot see a setting that binds elsewhere: on large activations, or at late positions. So a key
that is not listed here, or a value that is not, is refused, unless it is what transformers itself takes for default.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repro.errors import did_you_mean, listing, plain, unavailable


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What no forward pass depends on: tokens, training, generation, other tasks, where the file came from.
HARMLESS = _words(
    """
    architectures model_type transformers_version torch_dtype dtype use_cache return_dict return_dict_in_generate
    output_attentions output_hidden_states output_scores id2label label2id num_labels problem_type finetuning_task
    task_specific_params tokenizer_class prefix bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id
    decoder_start_token_id eod_token_id forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens
    bad_words_ids max_length max_new_tokens min_length do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size num_return_sequences exponential_decay_length_penalty remove_invalid_values
    attention_dropout attn_pdrop embd_pdrop resid_pdrop hidden_dropout classifier_dropout classifier_dropout_prob
    dropout activation_dropout embedding_dropout residual_dropout embed_dropout resid_dropout layerdrop
    initializer_range init_std gradient_checkpointing scale_grad_by_freq pretraining_tp chunk_size_feed_forward
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    reorder_and_upcast_attn attention_softmax_in_fp32 scale_attention_softmax_in_fp32 torchscript tf_legacy_loss
    use_bfloat16 cross_attention_hidden_size tie_encoder_decoder unsloth_version unsloth_fixed is_decoder
    """
)
# What the loader takes from transformers' own model of the configuration, or checks: sizes, activations, norms, rotary.
READ = _words(
    """
    hidden_size num_hidden_layers num_attention_heads vocab_size max_position_embeddings intermediate_size head_dim
    num_key_value_heads hidden_act rms_norm_eps tie_word_embeddings rope_parameters rope_theta rope_scaling
    partial_rotary_factor sliding_window use_sliding_window max_window_layers layer_types attention_bias mlp_bias
    """
)
_GPT2 = "n_ctx n_embd n_head n_inner n_layer n_positions activation_function layer_norm_epsilon"
# model_type -> the class that transformers loads, and the keys of this architecture that the loader reads or checks.
ARCHITECTURES: dict[str, tuple[str, str]] = {
    "arcee": ("ArceeForCausalLM", ""),
    "cohere": ("CohereForCausalLM", "layer_norm_eps logit_scale use_qk_norm"),
    "cohere2": ("Cohere2ForCausalLM", "layer_norm_eps logit_scale sliding_window_pattern"),
    "ernie4_5": ("Ernie4_5ForCausalLM", "use_bias"),
    "falcon": (
        "FalconForCausalLM",
        "alibi bias ffn_hidden_size layer_norm_epsilon multi_query new_decoder_architecture num_kv_heads "
        "num_ln_in_parallel_attn parallel_attn activation",
    ),
    "gemma": ("GemmaForCausalLM", "hidden_activation use_bidirectional_attention"),
    "gemma2": (
        "Gemma2ForCausalLM",
        "attn_logit_softcapping final_logit_softcapping hidden_activation query_pre_attn_scalar "
        "use_bidirectional_attention",
    ),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        "attn_logit_softcapping final_logit_softcapping hidden_activation query_pre_attn_scalar rope_local_base_freq "
        "sliding_window_pattern _sliding_window_pattern use_bidirectional_attention",
    ),
    "glm": ("GlmForCausalLM", ""),
    "glm4": ("Glm4ForCausalLM", ""),
    "gpt2": ("GPT2LMHeadModel", f"{_GPT2} add_cross_attention scale_attn_by_inverse_layer_idx scale_attn_weights"),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", f"{_GPT2} add_cross_attention multi_query scale_attn_weights"),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        "num_heads num_layers attention_layers attention_types window_size activation_function layer_norm_epsilon",
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "layer_norm_eps rotary_emb_base rotary_pct use_parallel_residual"),
    "gptj": ("GPTJForCausalLM", f"{_GPT2} rotary_dim"),
    "granite": (
        "GraniteForCausalLM",
        "attention_multiplier embedding_multiplier logits_scaling residual_multiplier",
    ),
    "llama": ("LlamaForCausalLM", ""),
    "ministral3": ("Ministral3ForCausalLM", ""),
    "mistral": ("MistralForCausalLM", ""),
    "mixtral": ("MixtralForCausalLM", "num_local_experts num_experts_per_tok router_jitter_noise router_aux_loss_coef "
                "output_router_logits"),
    "nemotron": ("NemotronForCausalLM", "norm_eps"),
    "olmo": ("OlmoForCausalLM", "clip_qkv"),
    "olmo2": ("Olmo2ForCausalLM", ""),
    "opt": (
        "OPTForCausalLM",
        "_remove_final_layer_norm activation_function do_layer_norm_before enable_bias ffn_dim "
        "layer_norm_elementwise_affine word_embed_proj_dim",
    ),
    "phi": ("PhiForCausalLM", "layer_norm_eps qk_layernorm"),
    "phi3": ("Phi3ForCausalLM", "original_max_position_embeddings"),
    "qwen2": ("Qwen2ForCausalLM", ""),
    "qwen3": ("Qwen3ForCausalLM", ""),
    "seed_oss": ("SeedOssForCausalLM", "attention_out_bias"),
    "smollm3": ("SmolLM3ForCausalLM", "no_rope_layer_interval no_rope_layers"),
    "stablelm": ("StableLmForCausalLM", "layer_norm_eps qk_layernorm use_parallel_residual use_qkv_bias"),
    "starcoder2": ("Starcoder2ForCausalLM", "norm_epsilon use_bias mlp_type norm_type"),
}  # fmt: skip
# Keys that make another computation of it than is done here under any value but these. None is always allowed.
_ONLY: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "alibi": (False,),
    "attn_implementation": ("eager", "sdpa"),
    "_attn_implementation": ("eager", "sdpa"),
    "clip_qkv": (),
    "is_encoder_decoder": (False,),
    "layer_norm_elementwise_affine": (True,),
    "mlp_type": ("default",),
    "norm_type": ("layer_norm",),
    "pruned_heads": ({},),
    "quantization_config": (),
    "qk_layernorm": (False,),
    "residual_multiplier": (1,),
    "use_bidirectional_attention": (False,),
}
_ROTARY = _words(
    """
    rope_type type rope_theta factor partial_rotary_factor low_freq_factor high_freq_factor attention_factor beta_fast
    beta_slow mscale mscale_all_dim original_max_position_embeddings max_position_embeddings truncate finetuned
    """
)
_ROTARY_KEYS = ("rope_parameters", "rope_scaling")


def refuse_unread_keys(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration of an architecture that is not listed, or with a key or value that nobody takes in.

    path: of config.json. Raises ReproError (exit 4) with every such key. Agreement: tests/model/test_config_keys.py.
    """
    kind = _kind(path, config)
    named, own = ARCHITECTURES[kind]
    _refuse_other_class(path, config, named)
    known = HARMLESS | READ | set(own.split())
    refused = [
        _shown(key, value)
        for key, value in config.items()
        if value is not None
        and (value not in _ONLY[key] if key in _ONLY else key not in known and _matters(key, value))
    ]
    refused += [_shown(f"{key}.{inner}", value) for key in _ROTARY_KEYS for inner, value in _strange(config.get(key))]
    if refused:
        raise unavailable(
            f"{path}: not supported: {listing(refused, 6)} in config.json; a key that changes nothing can be deleted"
        )


def _kind(path: Path, config: Mapping[str, Any]) -> str:
    kind, classes = config.get("model_type"), config.get("architectures")
    if kind is None:
        first = classes[0] if isinstance(classes, list) and classes else None
        fitting = [name for name, (named, _) in ARCHITECTURES.items() if named == first]
        hint = (
            f"{first!r} is of model_type {fitting[0]!r}" if fitting else f"architectures is {plain(repr(classes), 80)}"
        )
        raise unavailable(f"{path}: model_type is missing; {hint}")
    if kind not in ARCHITECTURES:
        raise unavailable(
            f"{path}: not supported: model_type = {plain(repr(kind), 80)} in config.json."
            f"{did_you_mean(str(kind), ARCHITECTURES)} Supported are {listing(list(ARCHITECTURES), 40)}"
        )
    return str(kind)


def _refuse_other_class(path: Path, config: Mapping[str, Any], named: str) -> None:
    """Refuse a model of another task, whose head would be made up, and code that comes with the model."""
    classes = config.get("architectures")
    if classes is not None and not isinstance(classes, list):
        raise unavailable(f"{path}: architectures is {plain(repr(classes), 80)}; an array is expected")
    stem = named.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    if classes and classes[0] not in (named, f"{stem}Model", f"{stem}DoubleHeadsModel"):
        raise unavailable(
            f"{path}: architectures is {plain(repr(classes), 80)}; a language model is needed, here {named!r}"
        )
    code = config.get("auto_map")
    module = code.get("AutoModelForCausalLM") if isinstance(code, dict) else code
    if code and not str(module).endswith(f".{named}"):
        raise unavailable(
            f"{path}: auto_map names code of its own ({plain(repr(module), 80)}), which is never run; delete the key "
            f"if transformers' own {named} computes the same"
        )


def _matters(key: str, value: object) -> bool:
    """Return whether an unknown key can change the model: not a note about the file, nor empty."""
    return key not in ("auto_map", "_name_or_path", "_model_name_or_path", "_commit_hash") and value not in ("", [], {})


def _strange(rotary: object) -> list[tuple[str, object]]:
    """Return the entries of rotary settings, of all layers or by their kind, that nobody reads."""
    if not isinstance(rotary, Mapping):
        return []
    tables = [value for value in rotary.values() if isinstance(value, Mapping)] or [rotary]
    return [
        (key, value) for table in tables for key, value in table.items() if key not in _ROTARY and value is not None
    ]


def _shown(key: str, value: object) -> str:
    return f"{plain(key, 60)} = {plain(repr(value), 60)}"


# ------------------------------------------------------------------------------------------ TransformerLens' own format

_NATIVE_READ = _words(
    """
    n_layers n_heads d_model n_ctx d_vocab n_key_value_heads d_head d_mlp d_vocab_out act_fn normalization
    normalization_type positional_embedding_type eps layer_norm_eps rotary_base rotary_dim rotary_adjacent_pairs
    gated_mlp final_rms attn_only attention_dir attn_scale attn_scores_soft_cap num_experts output_logits_soft_cap
    parallel_attn_mlp post_embedding_ln rope_scaling scale_attn_by_inverse_layer_idx shortformer_pos
    use_NTK_by_parts_rope use_attn_scale use_local_attn use_normalization_before_and_after use_qk_norm
    num_hidden_layers n_layer num_attention_heads n_head hidden_size n_embd max_position_embeddings n_positions
    vocab_size num_key_value_heads head_dim intermediate_size n_inner
    """
)
_NATIVE_ONLY: dict[str, tuple[object, ...]] = {
    "attn_types": (),
    "experts_per_token": (),
    "factored_embed": (False,),
    "ln_eps": (1e-5,),
    "neuron_scale": (1,),
    "neuron_temp": (1,),
    "relative_attention_num_buckets": (),
    "ungroup_grouped_query_attention": (False,),
    "use_ET": (False,),
    "use_pos_resid": (True,),
    "window_size": (),
}
# Training scripts write what they like: words of a key, or its beginning, that tell of training and of bookkeeping.
_NOTES = _words(
    """
    architecture batch batches beta betas bfloat16 bos branch checkpoint checkpoints clip code commit control data
    dataset date debug decay description device devices dtype epoch epochs every ewma fixed float16 from grad hash id
    init initializer label learning log loss lr matmul matrices max min model name norm_clip note optimizer origin
    original params parallel_devices path prepend project revision run save scheduler scheme schedule seed shuffle
    shuffled source step steps store subset time tl tokenizer tokens train trust url version wandb warmup weight weights
    tied hook result results split input
    """
)


def refuse_config(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse whatever of a configuration nobody takes in; `refuse_unread_keys`, and the same for TransformerLens' keys.

    path: of config.json. Raises ReproError (exit 4). Agreement: tests/model/test_config_keys.py.
    """
    if config.get("architectures") is not None or config.get("model_type") is not None:
        refuse_unread_keys(path, config)
        return
    foreign = sorted({"num_hidden_layers", "n_layer", "num_attention_heads", "n_head"} & set(config))
    if foreign and "n_layers" not in config:
        raise unavailable(
            f"{path}: {listing(foreign)} are keys of Hugging Face's format, whose model_type is missing; add it"
        )
    refused = [
        _shown(key, value)
        for key, value in config.items()
        if value is not None and (value not in _NATIVE_ONLY[key] if key in _NATIVE_ONLY else _unknown(key, value))
    ]
    if refused:
        raise unavailable(
            f"{path}: not supported: {listing(refused, 6)} in config.json; a key that changes nothing can be deleted"
        )


def _unknown(key: str, value: object) -> bool:
    """Return whether a key is neither read nor a note, and is switched on: zero and one scale and switch nothing."""
    noted = any(word in _NOTES for word in key.lower().split("_"))
    return key not in _NATIVE_READ and not noted and value not in (False, 0, 1, "", [], {})
