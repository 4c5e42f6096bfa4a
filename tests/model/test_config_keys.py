"""Every key of a configuration: read, harmless, or refused by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from repro.errors import Exit
from repro.model.architectures import ARCHITECTURES
from repro.model.config_keys import _ONLY, HARMLESS, READ, refuse_config
from repro.process import quiet
from tests.model.test_folder import LLAMA, TL, refused

HF = LLAMA | {"architectures": ["LlamaForCausalLM"]}
PATH = Path("model/config.json")
# What the paper's own checkpoint and its family say beside sizes, in the words of their training scripts.
NEEL: dict[str, Any] = {
    "lr": 0.001, "batch_size": 36, "batches_per_step": 1, "seed": 42, "use_checkpoint_schedule": True, "debug": False,
    "debug_batch": False, "debug_overfit": False, "normalization": "LN", "max_tokens": 22_000_000_000, "version": 103,
    "use_float16": False, "use_bfloat16": False, "save_checkpoints_to_bfloat16": True, "use_bfloat16_matmul": True,
    "right_multiply_matrices": True, "betas": [0.9, 0.99], "weight_decay": 0.05, "dataset_name": "c4+code",
    "grad_norm_clip": 1.0, "use_attn_result": False, "n_devices": 8, "use_pos_resid": True, "attn_only": False,
    "ln_eps": 1e-5, "lr_schedule": "cosine_warmup", "warmup_tokens": 300_000_000, "factored_embed": False,
    "train_loss_ewma_beta": 0.99, "shuffled_data": True, "W_O_init_scale": True, "use_ET": False, "final_rms": False,
    "tokens_per_step": 294_912, "max_steps": 76_000, "warmup_steps": 1_000, "n_params": 12_582_912, "control": 1.0,
    "tokenizer_name": "NeelNanda/gpt-neox-tokenizer-digits", "shortformer_pos": False, "neuron_scale": 1.0,
    "neuron_temp": 1.0, "initializer_scale_global": 1.0, "initializer_scale_hidden": 0.02, "decay_cycles": 1.5,
    "architecture": "neel", "tokenizer": "tokenizer.json", "weight_init_scheme": "gpt2", "hash": "abc",
}  # fmt: skip


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_key_of_transformers_own_configuration_is_listed(kind: str) -> None:
    """What transformers writes passes as it is; a key that a new version adds is noticed here."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named, own = ARCHITECTURES[kind]
    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind] == named
    with quiet():
        config = AutoConfig.for_model(kind)
    written = config.to_dict()
    assert not set(written) - HARMLESS - READ - set(own.split()) - set(_ONLY)
    refuse_config(PATH, written | {"architectures": [named]})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mystery_scale": 2.0}, "mystery_scale = 2.0"),
        ({"mystery_scale": False}, "mystery_scale = False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"clip_qkv": 8.0}, "clip_qkv = 8.0"),
        ({"rope_parameters": {"rope_type": "dynamic", "x": {}}}, "rope_parameters.rope_type = 'dynamic'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads = {'0': [1]}"),
        ({"_attn_implementation": "flash_attention_2"}, "_attn_implementation = 'flash_attention_2'"),
        ({"rope_scaling": {"rope_type": "yarn", "llama_4_scaling_beta": 0.1}}, "rope_scaling.llama_4_scaling_beta = 0"),
        (
            {"model_type": "mamba"},
            "model_type = 'mamba' in config.json (states in place of attention in some layers); supported are arcee, ",
        ),
        ({"model_type": ["llama"]}, "model_type = ['llama'] in config.json; supported are"),
        ({"use_qk_norm": True}, "use_qk_norm = True"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.type = 'dynamic'"),
        ({"model_type": None}, "model_type is missing; 'LlamaForCausalLM' is of model_type 'llama'"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "a language model is needed, here 'LlamaForCausalLM'"),
        ({"auto_map": {"AutoModelForCausalLM": "mine.MineForCausalLM"}}, "auto_map names code of its own ('mine.Mine"),
    ],
)
def test_a_key_that_nobody_takes_in_is_refused_by_its_name(changes: dict[str, Any], sentence: str) -> None:
    message = refused(lambda: refuse_config(PATH, HF | changes), Exit.UNAVAILABLE)
    assert message.startswith(f"{PATH}: ")
    assert sentence in message


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"architectures": None},
        {"torch_dtype": "bfloat16", "_name_or_path": "x", "transformers_version": "4.30", "use_cache": False},
        {"task_specific_params": {"text-generation": {"do_sample": True}}, "max_length": 50, "temperature": 0.7},
        {"mystery": None, "another": [], "third": {}},
        {"auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"attention_dropout": 0.5, "pad_token_id": 7, "_attn_implementation": "eager"},
    ],
)
def test_what_changes_nothing_passes(changes: dict[str, Any]) -> None:
    refuse_config(PATH, HF | changes)


def test_the_papers_own_configuration_passes() -> None:
    refuse_config(PATH, TL | NEEL)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mystery_scale": 2.0}, "mystery_scale = 2.0"),
        ({"use_pos_resid": False}, "use_pos_resid = False"),
        ({"neuron_temp": 3.0}, "neuron_temp = 3.0"),
        ({"ln_eps": 1e-3}, "ln_eps = 0.001"),
        ({"window_size": 256}, "window_size = 256"),
    ],
)
def test_the_librarys_own_format_is_held_to_the_same(changes: dict[str, Any], sentence: str) -> None:
    message = refused(lambda: refuse_config(PATH, TL | NEEL | changes), Exit.UNAVAILABLE)
    hint = "; mystery_scale can be deleted where nothing depends on it" if "mystery" in sentence else ""
    assert message == f"{PATH}: not supported: {sentence} in config.json{hint}"


def test_sizes_in_another_formats_words_are_told_apart_from_missing_ones() -> None:
    assert refused(lambda: refuse_config(PATH, LLAMA | {"model_type": None}), Exit.UNAVAILABLE) == (
        f"{PATH}: num_attention_heads, num_hidden_layers are keys of Hugging Face's format, whose model_type is "
        "missing; add it"
    )
