"""A small config.json of each architecture, as `transformers` writes it (what is not of the computation left out)."""

_SIZES = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8}
_ROPE = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}

CONFIGS = {
    "gpt2": {"vocab_size": 11, "n_positions": 32, "n_embd": 16, "n_layer": 3, "n_head": 4},
    "bert": _SIZES,
    "llama": {**_GROUPED, **_ROPE},
    "qwen3": {**_GROUPED, **_ROPE, "use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1},
    "gemma2": {**_GROUPED, **_ROPE, "sliding_window": 2},
    "gemma3_text": {**_GROUPED, "num_hidden_layers": 7, "sliding_window": 2},
    "marian": {
        "vocab_size": 11,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 20,
        "scale_embedding": True,
    },
    "t5": {
        "vocab_size": 11,
        "d_model": 16,
        "d_kv": 6,
        "d_ff": 24,
        "num_heads": 4,
        "num_layers": 2,
        "num_decoder_layers": 3,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "xlnet": {"vocab_size": 11, "d_model": 16, "d_head": 4, "n_head": 4, "d_inner": 24, "n_layer": 3},
    "mixtral": {**_GROUPED, **_ROPE, "num_local_experts": 3},
    "gpt_oss": {**_GROUPED, **_ROPE, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 2},
    "deepseek_v3": {
        **_SIZES,
        **_ROPE,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 6,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 2,
        "v_head_dim": 3,
    },
}
for _kind, _config in CONFIGS.items():
    CONFIGS[_kind] = {"model_type": _kind, **_config}
