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
}
for _kind, _config in CONFIGS.items():
    CONFIGS[_kind] = {"model_type": _kind, **_config}
