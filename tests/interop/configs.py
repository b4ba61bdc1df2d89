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

_WITHOUT_WIDTH = {name: value for name, value in _GROUPED.items() if name != "head_dim"}
_QWEN = {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1}
_EXPERTS = {**_QWEN, "max_window_layers": 2, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_SIDES = {
    "vocab_size": 11,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
}
_T5 = {
    "vocab_size": 11,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "feed_forward_proj": "gated-gelu",
}

CONFIGS = {
    "gpt2": {"vocab_size": 11, "n_positions": 32, "n_embd": 16, "n_layer": 3, "n_head": 4},
    "bert": _SIZES,
    "llama": {**_GROUPED, **_ROPE},
    "qwen3": {**_GROUPED, **_ROPE, "use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1},
    "gemma2": {**_GROUPED, **_ROPE, "sliding_window": 2},
    "gemma3_text": {**_GROUPED, "num_hidden_layers": 7, "sliding_window": 2},
    "marian": {**_SIDES, "scale_embedding": True},
    "pegasus": {**_SIDES, "scale_embedding": True},
    "bart": {**_SIDES, "max_position_embeddings": 32},
    "mbart": {**_SIDES, "max_position_embeddings": 32},
    "t5": {**_T5, "tie_word_embeddings": False},
    "mt5": _T5,
    "umt5": _T5,
    "mistral": {**_GROUPED, **_ROPE, "sliding_window": 2},
    "qwen2": {**_WITHOUT_WIDTH, **_ROPE, **_QWEN},
    "qwen2_moe": {**_WITHOUT_WIDTH, **_ROPE, **_EXPERTS, "shared_expert_intermediate_size": 12, "mlp_only_layers": [2]},
    "qwen3_moe": {**_GROUPED, **_ROPE, **_EXPERTS, "decoder_sparse_step": 2},
    "olmo2": {**_WITHOUT_WIDTH, **_ROPE},
    "olmoe": {**_WITHOUT_WIDTH, **_ROPE, "num_experts": 3, "num_experts_per_tok": 2},
    "gemma": {**_GROUPED, **_ROPE},
    "phi3": {
        **_WITHOUT_WIDTH,
        "num_attention_heads": 2,
        "original_max_position_embeddings": 16,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 2.0],
            "long_factor": [3.0, 4.0],
        },
    },
    "glm": {**_GROUPED, **_ROPE},
    "glm4": {**_GROUPED, **_ROPE},
    "smollm3": {
        **_WITHOUT_WIDTH,
        **_ROPE,
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 2,
    },
    "granite": {**_WITHOUT_WIDTH, **_ROPE, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "stablelm": {**_WITHOUT_WIDTH, **_ROPE, "qk_layernorm": True, "partial_rotary_factor": 0.5},
    "starcoder2": {**_WITHOUT_WIDTH, **_ROPE, "sliding_window": 2},
    "gpt_neox": {**_SIZES, "rotary_pct": 0.5},
    "gptj": {"vocab_size": 11, "n_positions": 32, "n_embd": 16, "n_layer": 3, "n_head": 4, "rotary_dim": 2},
    "phi": {**_WITHOUT_WIDTH, **_ROPE, "partial_rotary_factor": 0.5},
    "falcon": {
        **{name: value for name, value in _SIZES.items() if name != "intermediate_size"},
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
    },
    "bloom": {"vocab_size": 11, "hidden_size": 16, "n_layer": 3, "n_head": 4},
    "opt": {**{name: value for name, value in _SIZES.items() if name != "intermediate_size"}, "ffn_dim": 24},
    "roberta": {**_SIZES, "pad_token_id": 0},
    "xlm-roberta": {**_SIZES, "pad_token_id": 0},
    "distilbert": {
        "vocab_size": 11,
        "dim": 16,
        "hidden_dim": 24,
        "n_layers": 3,
        "n_heads": 4,
        "max_position_embeddings": 32,
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
