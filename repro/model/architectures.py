"""The architectures of transformers that are computed here, and why the better known of the others are not."""

from __future__ import annotations

_GPT2 = "n_ctx n_embd n_head n_inner n_layer n_positions activation_function layer_norm_epsilon"
_GEMMA = "attn_logit_softcapping final_logit_softcapping hidden_activation query_pre_attn_scalar"
# model_type -> the class that transformers loads, and the keys of this architecture that the loader reads.
ARCHITECTURES: dict[str, tuple[str, str]] = {
    "arcee": ("ArceeForCausalLM", ""),
    "cohere": ("CohereForCausalLM", "layer_norm_eps logit_scale"),
    "cohere2": ("Cohere2ForCausalLM", "layer_norm_eps logit_scale sliding_window_pattern"),
    "ernie4_5": ("Ernie4_5ForCausalLM", "use_bias"),
    "exaone4": ("Exaone4ForCausalLM", "sliding_window_pattern"),
    "gemma": ("GemmaForCausalLM", "hidden_activation"),
    "gemma2": ("Gemma2ForCausalLM", _GEMMA),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        f"{_GEMMA} rope_local_base_freq sliding_window_pattern _sliding_window_pattern",
    ),
    "glm": ("GlmForCausalLM", ""),
    "glm4": ("Glm4ForCausalLM", ""),
    "gpt2": ("GPT2LMHeadModel", f"{_GPT2} scale_attn_by_inverse_layer_idx scale_attn_weights"),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", f"{_GPT2} multi_query scale_attn_weights"),
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
    "mistral": ("MistralForCausalLM", ""),
    "nemotron": ("NemotronForCausalLM", "norm_eps"),
    "olmo": ("OlmoForCausalLM", ""),
    "olmo2": ("Olmo2ForCausalLM", ""),
    "olmo3": ("Olmo3ForCausalLM", ""),
    "opt": ("OPTForCausalLM", "activation_function enable_bias ffn_dim word_embed_proj_dim"),
    "phi": ("PhiForCausalLM", "layer_norm_eps"),
    "phi3": ("Phi3ForCausalLM", "original_max_position_embeddings"),
    "qwen2": ("Qwen2ForCausalLM", ""),
    "qwen3": ("Qwen3ForCausalLM", ""),
    "seed_oss": ("SeedOssForCausalLM", "attention_out_bias"),
    "smollm3": ("SmolLM3ForCausalLM", "no_rope_layer_interval no_rope_layers"),
    "stablelm": ("StableLmForCausalLM", "layer_norm_eps use_parallel_residual use_qkv_bias"),
    "starcoder2": ("Starcoder2ForCausalLM", "norm_epsilon use_bias"),
    "vaultgemma": ("VaultGemmaForCausalLM", _GEMMA),
}  # fmt: skip

_REASONS = {
    "a model of images and text around one of text": "gemma3 gemma4",
    "layers with more parts than an attention and an MLP": "gemma3n gemma3n_text gemma4_text",
    "experts in place of an MLP": (
        "cohere2_moe dbrx deepseek_v2 deepseek_v3 ernie4_5_moe flex_olmo glm4_moe gpt_oss granitemoe granitemoeshared "
        "hunyuan_v1_moe llama4 llama4_text minimax mixtral olmoe phimoe qwen2_moe qwen3_moe qwen3_5_moe"
    ),
    "positions by ALiBi": "bloom mpt",
    "states in place of attention in some layers": (
        "bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 lfm2_moe mamba mamba2 nemotron_h "
        "qwen3_next qwen3_5 recurrent_gemma rwkv xlstm zamba zamba2"
    ),
    "norms or keys and values in a layout of its own": "apertus codegen falcon hunyuan_v1_dense nanochat openai-gpt",
    "queries scaled by position": "ministral3",
    "tokens that read later ones, or another text": (
        "bart bert camembert electra marian mbart megatron-bert pegasus roberta whisper xlm xlm-roberta xlnet"
    ),
}
WHY_NOT: dict[str, str] = {kind: reason for reason, kinds in _REASONS.items() for kind in kinds.split()}
"""model_type -> what of it is not computed here."""
