"""Every key of a Hugging Face configuration is read, harmless, or refused by its name.

A check on some tokens cannot see a setting that binds elsewhere: on large activations, or at late positions. So a key
that is not listed here, or a value that is not, is refused, unless it is what transformers itself takes for default.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from repro.errors import listing, plain, unavailable
from repro.model.architectures import ARCHITECTURES, WHY_NOT
from repro.model.native_keys import ONLY, unknown, unread, words

# What no forward pass depends on: tokens, training, generation, other tasks, where the file came from.
HARMLESS = words(
    """
    _name_or_path _model_name_or_path _commit_hash auto_map
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
    cache_implementation
    """
)
# What the loader takes from transformers' own model of the configuration, or checks: sizes, activations, norms, rotary.
READ = words(
    """
    hidden_size num_hidden_layers num_attention_heads vocab_size max_position_embeddings intermediate_size head_dim
    num_key_value_heads hidden_act rms_norm_eps tie_word_embeddings rope_parameters rope_theta rope_scaling
    partial_rotary_factor sliding_window use_sliding_window max_window_layers layer_types attention_bias mlp_bias
    """
)
# Keys that make another computation of it than is done here under any value but these. None is always allowed.
_ONLY: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "alibi": (False,),
    "attn_implementation": ("eager", "sdpa"),
    "_attn_implementation": ("eager", "sdpa"),
    "_remove_final_layer_norm": (False,),
    "clip_qkv": (),
    "do_layer_norm_before": (True,),
    "is_encoder_decoder": (False,),
    "layer_norm_elementwise_affine": (True,),
    "mlp_type": ("default",),
    "norm_type": ("layer_norm",),
    "pruned_heads": ({},),
    "quantization_config": (),
    "qk_layernorm": (False,),
    "use_qk_norm": (False,),
    "use_bidirectional_attention": (False,),
}
_ROTARY = words(
    """
    rope_theta factor partial_rotary_factor low_freq_factor high_freq_factor attention_factor beta_fast
    beta_slow mscale mscale_all_dim original_max_position_embeddings max_position_embeddings truncate finetuned
    """
)
_ROTARY_KEYS = ("rope_parameters", "rope_scaling")
_ROTARY_KINDS = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose frequencies do not depend on the length of the prompt."""


def refuse_unread_keys(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration of an architecture that is not listed, or with a key or value that nobody takes in.

    path: of config.json. Raises ReproError (exit 4) with every such key. Agreement: tests/model/test_config_keys.py.
    """
    kind = _kind(path, config)
    named, own = ARCHITECTURES[kind]
    _refuse_other_class(path, config, named)
    known = HARMLESS | READ | set(own.split())
    refused = unread(config, _ONLY, lambda key, value: key not in known and value not in ("", [], {}))
    projected = config.get("word_embed_proj_dim")
    if projected is not None and projected != config.get("hidden_size"):
        refused.append(("word_embed_proj_dim", projected))
    rotary = [(f"{key}.{inner}", value) for key in _ROTARY_KEYS for inner, value in _strange(config.get(key))]
    _refuse(path, refused + rotary, {*_ONLY, "word_embed_proj_dim", *(key for key, _ in rotary)})


def _kind(path: Path, config: Mapping[str, Any]) -> str:
    kind, classes = config.get("model_type"), config.get("architectures")
    if kind is None:
        first = classes[0] if isinstance(classes, list) and classes else None
        fitting = [name for name, (named, _) in ARCHITECTURES.items() if named == first]
        hint = (
            f"{first!r} is of model_type {fitting[0]!r}" if fitting else f"architectures is {plain(repr(classes), 80)}"
        )
        raise unavailable(f"{path}: model_type is missing; {hint}")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        why = f" ({WHY_NOT[str(kind)]})" if str(kind) in WHY_NOT else ""
        raise unavailable(
            f"{path}: not supported: model_type = {plain(repr(kind), 80)} in config.json{why}; supported are "
            f"{listing(list(ARCHITECTURES), 40)}"
        )
    return kind


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


def _strange(rotary: object) -> list[tuple[str, object]]:
    """Return the entries of rotary settings, of all layers or by their kind, that nobody reads or computes."""
    if not isinstance(rotary, Mapping):
        return []
    kinds_of_layers = [value for value in rotary.values() if isinstance(value, Mapping)]
    shared = {key: value for key, value in rotary.items() if not isinstance(value, Mapping)}
    tables = [shared, *kinds_of_layers]
    kinds = dict.fromkeys(("rope_type", "type"), _ROTARY_KINDS)
    return [entry for table in tables for entry in unread(table, kinds, lambda key, _: key not in _ROTARY)]


def is_hugging_face(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is in Hugging Face's format rather than in TransformerLens'."""
    return config.get("architectures") is not None or config.get("model_type") is not None


def refuse_config(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse whatever of a configuration nobody takes in; `refuse_unread_keys`, and the same for TransformerLens' keys.

    path: of config.json. Raises ReproError (exit 4). Agreement: tests/model/test_config_keys.py.
    """
    if is_hugging_face(config):
        refuse_unread_keys(path, config)
        return
    foreign = sorted({"num_hidden_layers", "n_layer", "num_attention_heads", "n_head"} & set(config))
    if foreign and "n_layers" not in config:
        raise unavailable(
            f"{path}: {listing(foreign)} are keys of Hugging Face's format, whose model_type is missing; add it"
        )
    _refuse(path, unread(config, ONLY, unknown), set(ONLY))


def _refuse(path: Path, keys: Sequence[tuple[str, object]], known: Collection[str]) -> None:
    """Refuse keys by name. known: those of which it is known that they make another model of it."""
    if keys:
        shown = [f"{plain(key, 60)} = {plain(repr(value), 60)}" for key, value in keys]
        strange = [plain(key, 60) for key, _ in keys if key not in known]
        hint = f"; {listing(strange, 6)} can be deleted where nothing depends on it" if strange else ""
        raise unavailable(f"{path}: not supported: {listing(shown, 6)} in config.json{hint}")
