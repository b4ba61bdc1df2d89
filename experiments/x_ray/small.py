"""A small config.json of some architectures, for a look without weights."""

from typing import Any

SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 256, "n_positions": 512, "n_embd": 64, "n_layer": 12, "n_head": 4},
    "bert": SIZES,
    "llama": GROUPED,
    "qwen3": GROUPED,
    "gemma2": {**GROUPED, "sliding_window": 32},
    "mixtral": {**GROUPED, "intermediate_size": 64, "num_local_experts": 8},
    "gpt_oss": {**GROUPED, "intermediate_size": 64, "num_local_experts": 8, "sliding_window": 32},
    "t5": {"vocab_size": 256, "d_model": 64, "d_kv": 16, "d_ff": 256, "num_heads": 4, "num_layers": 6},
}
for _kind, _config in CONFIGS.items():
    CONFIGS[_kind] = {"model_type": _kind, **_config}
