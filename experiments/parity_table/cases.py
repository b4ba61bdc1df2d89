"""The architectures to compare, each with small random configurations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from stackjax.interop import hf

Random = np.random.Generator
VOCAB = 37


@dataclass(frozen=True, kw_only=True)
class Case:
    """One architecture.

    Args:
        title: as a table names it.
        config: `transformers` class of the configuration.
        model: `transformers` class of the model.
        layers: where its layers are, in the order in which they run; if empty, where there is a list as long as the
            model is deep.
        options: a random small configuration.
        indexed: whether it is told the tokens' indices.
        left: whether sequences may be padded on the left.
        decodes: whether it writes one token after another.
        gradients: whether to compare gradients by parameter.
        time_first: whether its layers return (T, B, D).
        one_by_one: whether to give it one sequence at a time, where its own code cannot pad a batch.
        left_out: pattern of tensors that stackjax does not read, and so does not write.
        spread: of the Gaussian noise that is added to all parameters. Less for T5, which has no 1/sqrt(K): attention
            would be so sharp that float32 itself is off by more than 1e-5.
        head: where the model reads one token alone: the paths of its last norm and of the matrix behind that, so that
            every token's outputs are compared.
        images: whether it reads images, in place of tokens.
        untied: whether published checkpoints have an output matrix of their own, where `transformers` ties it.
    """

    title: str
    config: str
    model: str
    layers: tuple[str, ...] = ("model.layers",)
    options: Callable[[Random], dict[str, Any]]
    indexed: bool = True
    left: bool = True
    decodes: bool = True
    gradients: bool = False
    time_first: bool = False
    one_by_one: bool = False
    left_out: str = "nothing"
    spread: float = 0.25
    head: tuple[str, ...] = ()
    images: bool = False
    untied: bool = False

    @property
    def two_sided(self) -> bool:
        """True for an encoder-decoder."""
        return len(self.layers) == 2


def _sizes(random: Random) -> dict[str, Any]:
    """Sizes that most configurations name alike."""
    heads = int(random.choice([2, 4]))
    return {
        "vocab_size": VOCAB,
        "hidden_size": 8 * heads,
        "intermediate_size": int(random.choice([24, 40])),
        "num_hidden_layers": int(random.integers(2, 5)),
        "num_attention_heads": heads,
        "max_position_embeddings": 96,
    }


def _bert(random: Random) -> dict[str, Any]:
    return {**_sizes(random), "hidden_act": str(random.choice(["gelu", "relu"]))}


def _roberta(random: Random) -> dict[str, Any]:
    return {**_bert(random), "pad_token_id": 0}


def _distilbert(random: Random) -> dict[str, Any]:
    sizes, act = _sizes(random), str(random.choice(["gelu", "relu"]))
    names = {"hidden_size": "dim", "intermediate_size": "hidden_dim", "num_hidden_layers": "n_layers"}
    names["num_attention_heads"] = "n_heads"
    return {"activation": act, **{names.get(name, name): value for name, value in sizes.items()}}


def _grouped(random: Random) -> dict[str, Any]:
    """Sizes that most configurations name alike, with grouped heads of a width of their own."""
    sizes = _sizes(random)
    groups = int(random.choice([g for g in (1, 2, 4) if g <= sizes["num_attention_heads"]]))
    eps = float(random.choice([1e-6, 1e-2]))
    width = int(random.choice([4, 8, 12]))
    return {**sizes, "num_key_value_heads": groups, "head_dim": width, "rms_norm_eps": eps}


def _gpt2(random: Random) -> dict[str, Any]:
    sizes = _sizes(random)
    return {
        "vocab_size": VOCAB,
        "n_positions": 96,
        "n_embd": sizes["hidden_size"],
        "n_inner": [None, 40][random.integers(2)],
        "n_layer": sizes["num_hidden_layers"],
        "n_head": sizes["num_attention_heads"],
        "activation_function": str(random.choice(["gelu_new", "relu"])),
    }


ROPES = (
    {"rope_type": "default", "rope_theta": 500.0},
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    {
        "rope_type": "llama3",
        "rope_theta": 100.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 24,
    },
    {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 24},
)


def _llama(random: Random) -> dict[str, Any]:
    more = {name: bool(random.integers(2)) for name in ("attention_bias", "mlp_bias", "tie_word_embeddings")}
    return {**_grouped(random), **more, "rope_parameters": ROPES[random.integers(len(ROPES))]}


def _qwen3(random: Random) -> dict[str, Any]:
    sliding = {"use_sliding_window": bool(random.integers(2)), "sliding_window": 3, "max_window_layers": 1}
    return {**_grouped(random), **sliding}


def _mistral(random: Random) -> dict[str, Any]:
    return {**_grouped(random), "sliding_window": [None, 3][random.integers(2)]}


def _qwen2(random: Random) -> dict[str, Any]:
    return {name: value for name, value in _qwen3(random).items() if name != "head_dim"}


def _smollm3(random: Random) -> dict[str, Any]:
    sliding = {"use_sliding_window": bool(random.integers(2)), "sliding_window": 3, "no_rope_layer_interval": 2}
    return {**_without_width(random), **sliding, "attention_bias": bool(random.integers(2)), "pad_token_id": 0}


def _granite(random: Random) -> dict[str, Any]:
    multipliers = {"embedding_multiplier": 2.0, "logits_scaling": 4.0, "residual_multiplier": 0.3}
    return {**_without_width(random), **multipliers, "attention_multiplier": 0.2}


def _without_width(random: Random) -> dict[str, Any]:
    """Grouped heads whose width is D / H."""
    return {name: value for name, value in _grouped(random).items() if name != "head_dim"}


def _olmo2(random: Random) -> dict[str, Any]:
    return {**_without_width(random), "attention_bias": bool(random.integers(2)), "pad_token_id": 0}


def _olmoe(random: Random) -> dict[str, Any]:
    return {**_without_width(random), "num_experts": 5, "num_experts_per_tok": 2, "pad_token_id": 0}


def _qwen_experts(random: Random) -> dict[str, Any]:
    return {
        "num_experts": 5,
        "num_experts_per_tok": int(random.choice([2, 3])),
        "moe_intermediate_size": 12,
        "norm_topk_prob": bool(random.integers(2)),
        "decoder_sparse_step": int(random.choice([1, 2])),
        "mlp_only_layers": [[], [1]][random.integers(2)],
    }


def _qwen2_moe(random: Random) -> dict[str, Any]:
    return {**_without_width(random), **_qwen_experts(random), "shared_expert_intermediate_size": 20}


def _qwen3_moe(random: Random) -> dict[str, Any]:
    return {**_grouped(random), **_qwen_experts(random)}


def _phi3(random: Random) -> dict[str, Any]:
    sizes = {**_mistral_like(random), "pad_token_id": 0}
    if random.integers(2):
        return sizes
    width = sizes["hidden_size"] // sizes["num_attention_heads"] // 4
    long = {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.5 * k for k in range(width)],
        "long_factor": [2.0 + k for k in range(width)],
        "rope_theta": 100.0,
        "partial_rotary_factor": 0.5,
    }
    # Never beyond the original length: there transformers turns cached keys again, once for all rows.
    return {**sizes, "rope_parameters": long, "max_position_embeddings": 192, "original_max_position_embeddings": 96}


def _mistral_like(random: Random) -> dict[str, Any]:
    return {**_without_width(random), "sliding_window": [None, 3][random.integers(2)]}


def _glm(random: Random) -> dict[str, Any]:
    return {**_grouped(random), "head_dim": 8, "attention_bias": bool(random.integers(2)), "pad_token_id": 0}


def _stablelm(random: Random) -> dict[str, Any]:
    choices = {name: bool(random.integers(2)) for name in ("use_qkv_bias", "qk_layernorm", "use_parallel_residual")}
    return {**_layer_normed(random), **choices, "partial_rotary_factor": 0.5}


def _layer_normed(random: Random) -> dict[str, Any]:
    """Grouped heads and layer norms."""
    sizes = {name: value for name, value in _without_width(random).items() if name != "rms_norm_eps"}
    return {**sizes, "layer_norm_eps": float(random.choice([1e-5, 1e-2]))}


def _starcoder2(random: Random) -> dict[str, Any]:
    sizes = _mistral_like(random)
    return {"norm_epsilon": sizes.pop("rms_norm_eps"), **sizes, "use_bias": bool(random.integers(2))}


def _nemotron(random: Random) -> dict[str, Any]:
    sizes = _grouped(random)
    biases = {name: bool(random.integers(2)) for name in ("attention_bias", "mlp_bias")}
    return {"norm_eps": sizes.pop("rms_norm_eps"), **sizes, **biases, "partial_rotary_factor": 0.5}


def _gpt_neox(random: Random) -> dict[str, Any]:
    choices = {"use_parallel_residual": bool(random.integers(2)), "attention_bias": bool(random.integers(2))}
    return {**_sizes(random), **choices, "rotary_pct": 0.5, "hidden_act": str(random.choice(["gelu", "relu"]))}


def _gptj(random: Random) -> dict[str, Any]:
    return {**_gpt2(random), "rotary_dim": 4, "activation_function": "gelu_new"}


def _phi(random: Random) -> dict[str, Any]:
    return {**_layer_normed(random), "partial_rotary_factor": 0.5}


def _falcon(random: Random) -> dict[str, Any]:
    sizes = _sizes(random)
    kinds: list[dict[str, Any]] = [
        {"multi_query": True},
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        {"new_decoder_architecture": True, "num_kv_heads": 1, "num_ln_in_parallel_attn": 1, "bias": True},
        {"multi_query": False, "parallel_attn": False, "bias": True},
    ]
    return {"ffn_hidden_size": sizes.pop("intermediate_size"), **sizes, **kinds[random.integers(4)]}


def _bloom(random: Random) -> dict[str, Any]:
    heads = int(random.choice([2, 3, 4]))
    return {"vocab_size": VOCAB, "hidden_size": 8 * heads, "n_layer": int(random.integers(2, 5)), "n_head": heads}


def _opt(random: Random) -> dict[str, Any]:
    sizes = _sizes(random)
    more = {"activation_function": str(random.choice(["relu", "gelu"])), "pad_token_id": 0, "dropout": 0.0}
    return {"ffn_dim": sizes.pop("intermediate_size"), **sizes, **more}


def _gemma(random: Random) -> dict[str, Any]:
    sizes = {**_grouped(random), "num_hidden_layers": 7, "sliding_window": int(random.choice([2, 4]))}
    return {**sizes, "query_pre_attn_scalar": int(random.choice([8, 16]))}


def _gemma2(random: Random) -> dict[str, Any]:
    return {**_gemma(random), "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}


def _marian(random: Random) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "d_model": 32,
        "encoder_layers": int(random.integers(1, 4)),
        "decoder_layers": int(random.integers(1, 4)),
        "encoder_attention_heads": int(random.choice([2, 4])),
        "decoder_attention_heads": int(random.choice([2, 4])),
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 40,
        "activation_function": str(random.choice(["swish", "relu"])),
        "scale_embedding": bool(random.integers(2)),
        "max_position_embeddings": 96,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }


def _t5(random: Random) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "d_model": 32,
        "d_kv": int(random.choice([4, 8])),
        "d_ff": 40,
        "num_heads": 4,
        "num_layers": int(random.integers(1, 4)),
        "num_decoder_layers": int(random.integers(1, 4)),
        "relative_attention_num_buckets": int(random.choice([4, 8])),
        "relative_attention_max_distance": int(random.choice([5, 16])),
        "decoder_start_token_id": 0,
    }


def _t5_1_1(random: Random) -> dict[str, Any]:
    return {**_t5(random), "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def _mt5(random: Random) -> dict[str, Any]:
    return {**_t5(random), "feed_forward_proj": "gated-gelu"}


def _xlnet(random: Random) -> dict[str, Any]:
    heads = int(random.choice([2, 4]))
    return {
        "vocab_size": VOCAB,
        "d_model": 32,
        "n_head": heads,
        "d_inner": 40,
        "n_layer": int(random.integers(2, 5)),
        "attn_type": str(random.choice(["bi", "uni"])),
        "ff_activation": str(random.choice(["gelu", "relu"])),
    }


def _mixtral(random: Random) -> dict[str, Any]:
    window = [None, 3][random.integers(2)]
    return {**_grouped(random), "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": window}


def _gpt_oss(random: Random) -> dict[str, Any]:
    rope = {"rope_type": "yarn", "rope_theta": 150.0, "factor": 4.0, "truncate": False}
    return {
        **_grouped(random),
        "num_local_experts": 5,
        "num_experts_per_tok": int(random.choice([2, 3])),
        "sliding_window": 3,
        "swiglu_limit": 1.0,
        "rope_parameters": {**rope, "original_max_position_embeddings": 24},
    }


def _deepseek(random: Random) -> dict[str, Any]:
    yarn = {**ROPES[3], "mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 16, "beta_slow": 2}
    sizes = _sizes(random)
    return {
        **sizes,
        "num_key_value_heads": sizes["num_attention_heads"],
        "rms_norm_eps": float(random.choice([1e-6, 1e-2])),
        "moe_intermediate_size": 12,
        "n_routed_experts": 8,
        "n_shared_experts": int(random.choice([1, 2])),
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 1,
        "q_lora_rank": [None, 12][random.integers(2)],
        "kv_lora_rank": 10,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 5,
        "rope_parameters": [ROPES[0], yarn][random.integers(2)],
    }


def _olmo(random: Random) -> dict[str, Any]:
    sizes = {name: value for name, value in _without_width(random).items() if name != "rms_norm_eps"}
    return {**sizes, "clip_qkv": [None, 0.5][random.integers(2)], "pad_token_id": 0}


def _qwen3_next(random: Random) -> dict[str, Any]:
    sizes = {**_grouped(random), "head_dim": 8, "partial_rotary_factor": 0.5, "num_hidden_layers": 4}
    key_heads = int(random.choice([1, 2]))
    return {
        **sizes,
        **_qwen_experts(random),
        "attention_bias": bool(random.integers(2)),
        "shared_expert_intermediate_size": 20,
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": key_heads * int(random.choice([1, 3])),
        "linear_key_head_dim": int(random.choice([4, 6])),
        "linear_value_head_dim": 5,
        "linear_conv_kernel_dim": int(random.choice([2, 4])),
        "layer_types": [["linear_attention"] * 2 + ["full_attention"] * 2, None][random.integers(2)],
    }


def _olmo3(random: Random) -> dict[str, Any]:
    ropes = {"sliding_attention": ROPES[0], "full_attention": ROPES[[0, 3][random.integers(2)]]}
    return {**_olmo2(random), "num_hidden_layers": 5, "sliding_window": 3, "rope_parameters": ropes}


def _exaone4(random: Random) -> dict[str, Any]:
    sizes, hybrid = _grouped(random), bool(random.integers(2))
    if hybrid:
        return {**sizes, "num_hidden_layers": 5, "sliding_window": 3}
    return {**sizes, "sliding_window": None, "layer_types": ["full_attention"] * sizes["num_hidden_layers"]}


def _gpt_neo(random: Random) -> dict[str, Any]:
    sizes = _sizes(random)
    return {
        "num_layers": 4,
        "num_heads": sizes["num_attention_heads"],
        "attention_types": [[["global", "local"], 2]],
        "window_size": 3,
        **{name: sizes[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings")},
    }


def _gpt_bigcode(random: Random) -> dict[str, Any]:
    return {**_gpt2(random), "multi_query": bool(random.integers(2)), "pad_token_id": 0}


def _mpt(random: Random) -> dict[str, Any]:
    heads = int(random.choice([2, 3, 4]))
    attention = {"clip_qkv": [None, 0.5][random.integers(2)], "softmax_scale": [None, 0.3][random.integers(2)]}
    sizes = {"d_model": 8 * heads, "n_heads": heads, "n_layers": int(random.integers(2, 5))}
    return {**sizes, "vocab_size": VOCAB, "max_seq_len": 96, "attn_config": attention}


def _cohere(random: Random) -> dict[str, Any]:
    choices = {name: bool(random.integers(2)) for name in ("use_qk_norm", "attention_bias", "tie_word_embeddings")}
    return {**_layer_normed(random), **choices, "logit_scale": 0.3}


def _cohere2(random: Random) -> dict[str, Any]:
    sizes = {**_layer_normed(random), "num_hidden_layers": 5, "sliding_window": 3}
    return {**sizes, "attention_bias": bool(random.integers(2)), "logit_scale": 0.3}


def _glm4_moe(random: Random) -> dict[str, Any]:
    experts = {name: value for name, value in _deepseek(random).items() if name in _EXPERTS_OF_DEEPSEEK}
    choices = {name: bool(random.integers(2)) for name in ("use_qk_norm", "attention_bias")}
    return {**_grouped(random), **experts, **choices, "head_dim": 8}


_EXPERTS_OF_DEEPSEEK = (
    "moe_intermediate_size",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "n_group",
    "topk_group",
    "first_k_dense_replace",
)


def _minicpm3(random: Random) -> dict[str, Any]:
    latent = _deepseek(random)
    names = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rope_parameters")
    sizes = {**_sizes(random), **{name: latent[name] for name in names}}
    sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    return {**sizes, "scale_emb": 2, "scale_depth": 1.1, "dim_model_base": 8}


def _electra(random: Random) -> dict[str, Any]:
    return {**_bert(random), "embedding_size": int(random.choice([6, 12]))}


def _clip(random: Random) -> dict[str, Any]:
    sizes = {**_sizes(random), "projection_dim": VOCAB + 3, "eos_token_id": VOCAB - 1}
    return {**sizes, "hidden_act": str(random.choice(["quick_gelu", "gelu"]))}


def _vit(random: Random) -> dict[str, Any]:
    sizes = {
        name: value for name, value in _bert(random).items() if name not in ("vocab_size", "max_position_embeddings")
    }
    image = {"image_size": 12, "patch_size": 4, "num_channels": int(random.choice([1, 3])), "num_labels": VOCAB}
    return {**sizes, **image, "qkv_bias": bool(random.integers(2))}


def of_architecture(kind: str, architecture: hf.Architecture) -> Case:
    """A case for an architecture from outside: the usual sizes, whatever the format calls them.

    Args:
        kind: its model_type, which `transformers` must know.
        architecture: the description; its first class is compared.

    Raises:
        ValueError: a model_type that `transformers` does not know.
    """
    import transformers  # pyright: ignore[reportMissingImports]

    if kind not in transformers.CONFIG_MAPPING:
        raise ValueError(f"transformers does not know model_type={kind!r}, so there is nothing to compare with")
    plain, model = transformers.CONFIG_MAPPING[kind](), architecture.classes[0]

    def options(random: Random) -> dict[str, Any]:
        return {name: value for name, value in _without_width(random).items() if hasattr(plain, name)}

    return Case(
        title=kind,
        config=type(plain).__name__,
        model=model,
        layers=(),
        options=options,
        indexed=model.endswith("CausalLM"),
        decodes=model.endswith("CausalLM"),
        gradients=True,
    )


CASES = {
    "gpt2": Case(
        title="GPT-2",
        config="GPT2Config",
        model="GPT2LMHeadModel",
        layers=("transformer.h",),
        options=_gpt2,
        gradients=True,
    ),
    "bert": Case(
        title="BERT",
        config="BertConfig",
        model="BertForMaskedLM",
        layers=("bert.encoder.layer",),
        options=_bert,
        decodes=False,
        gradients=True,
    ),
    "marian": Case(
        title="Marian (Vaswani et al.)",
        config="MarianConfig",
        model="MarianMTModel",
        layers=("model.encoder.layers", "model.decoder.layers"),
        options=_marian,
        indexed=False,
        left=False,
        gradients=True,
    ),
    "t5": Case(
        title="T5",
        config="T5Config",
        model="T5ForConditionalGeneration",
        layers=("encoder.block", "decoder.block"),
        options=_t5,
        indexed=False,
        spread=0.12,
        gradients=True,
    ),
    "t5_1_1": Case(
        title="T5 1.1",
        config="T5Config",
        model="T5ForConditionalGeneration",
        layers=("encoder.block", "decoder.block"),
        options=_t5_1_1,
        indexed=False,
        spread=0.12,
        untied=True,
        gradients=True,
    ),
    "xlnet": Case(
        title="XLNet (Transformer-XL)",
        config="XLNetConfig",
        model="XLNetLMHeadModel",
        layers=("transformer.layer",),
        options=_xlnet,
        indexed=False,
        decodes=False,
        time_first=True,
        one_by_one=True,
        left_out=r"transformer\.mask_emb|.*\.(r_s_bias|seg_embed)",
    ),
    "llama": Case(title="Llama 3", config="LlamaConfig", model="LlamaForCausalLM", options=_llama, gradients=True),
    "qwen3": Case(title="Qwen 3", config="Qwen3Config", model="Qwen3ForCausalLM", options=_qwen3),
    "gemma2": Case(title="Gemma 2", config="Gemma2Config", model="Gemma2ForCausalLM", options=_gemma2),
    "gemma3": Case(title="Gemma 3", config="Gemma3TextConfig", model="Gemma3ForCausalLM", options=_gemma),
    "mixtral": Case(title="Mixtral", config="MixtralConfig", model="MixtralForCausalLM", options=_mixtral),
    "gpt_oss": Case(title="gpt-oss", config="GptOssConfig", model="GptOssForCausalLM", options=_gpt_oss),
    "deepseek_v3": Case(
        title="DeepSeek-V3", config="DeepseekV3Config", model="DeepseekV3ForCausalLM", options=_deepseek
    ),
    "mistral": Case(title="Mistral", config="MistralConfig", model="MistralForCausalLM", options=_mistral),
    "qwen2": Case(title="Qwen 2", config="Qwen2Config", model="Qwen2ForCausalLM", options=_qwen2),
    "qwen2_moe": Case(title="Qwen2-MoE", config="Qwen2MoeConfig", model="Qwen2MoeForCausalLM", options=_qwen2_moe),
    "qwen3_moe": Case(title="Qwen3-MoE", config="Qwen3MoeConfig", model="Qwen3MoeForCausalLM", options=_qwen3_moe),
    "qwen3_next": Case(
        title="Qwen3-Next",
        config="Qwen3NextConfig",
        model="Qwen3NextForCausalLM",
        options=_qwen3_next,
        gradients=True,
    ),
    "olmo2": Case(title="OLMo 2", config="Olmo2Config", model="Olmo2ForCausalLM", options=_olmo2, gradients=True),
    "olmoe": Case(title="OLMoE", config="OlmoeConfig", model="OlmoeForCausalLM", options=_olmoe),
    "gemma": Case(title="Gemma", config="GemmaConfig", model="GemmaForCausalLM", options=_grouped, gradients=True),
    "phi3": Case(title="Phi-3", config="Phi3Config", model="Phi3ForCausalLM", options=_phi3, gradients=True),
    "glm": Case(title="GLM", config="GlmConfig", model="GlmForCausalLM", options=_glm, gradients=True),
    "glm4": Case(title="GLM-4", config="Glm4Config", model="Glm4ForCausalLM", options=_glm, gradients=True),
    "smollm3": Case(
        title="SmolLM 3", config="SmolLM3Config", model="SmolLM3ForCausalLM", options=_smollm3, gradients=True
    ),
    "granite": Case(
        title="Granite 3", config="GraniteConfig", model="GraniteForCausalLM", options=_granite, gradients=True
    ),
    "stablelm": Case(
        title="StableLM 2", config="StableLmConfig", model="StableLmForCausalLM", options=_stablelm, gradients=True
    ),
    "starcoder2": Case(
        title="StarCoder 2",
        config="Starcoder2Config",
        model="Starcoder2ForCausalLM",
        options=_starcoder2,
        gradients=True,
    ),
    "nemotron": Case(
        title="Nemotron",
        config="NemotronConfig",
        model="NemotronForCausalLM",
        options=_nemotron,
        gradients=True,
    ),
    "gpt_neox": Case(
        title="GPT-NeoX (Pythia)",
        config="GPTNeoXConfig",
        model="GPTNeoXForCausalLM",
        layers=("gpt_neox.layers",),
        options=_gpt_neox,
        gradients=True,
    ),
    "gptj": Case(
        title="GPT-J",
        config="GPTJConfig",
        model="GPTJForCausalLM",
        layers=("transformer.h",),
        options=_gptj,
        gradients=True,
    ),
    "phi": Case(title="Phi-2", config="PhiConfig", model="PhiForCausalLM", options=_phi, gradients=True),
    "falcon": Case(
        title="Falcon",
        config="FalconConfig",
        model="FalconForCausalLM",
        layers=("transformer.h",),
        options=_falcon,
        gradients=True,
    ),
    "bloom": Case(
        title="BLOOM",
        config="BloomConfig",
        model="BloomForCausalLM",
        layers=("transformer.h",),
        options=_bloom,
        indexed=False,
        gradients=True,
    ),
    "opt": Case(
        title="OPT",
        config="OPTConfig",
        model="OPTForCausalLM",
        layers=("model.decoder.layers",),
        options=_opt,
        gradients=True,
    ),
    "roberta": Case(
        title="RoBERTa",
        config="RobertaConfig",
        model="RobertaForMaskedLM",
        layers=("roberta.encoder.layer",),
        options=_roberta,
        indexed=False,
        decodes=False,
        gradients=True,
    ),
    "xlm_roberta": Case(
        title="XLM-R",
        config="XLMRobertaConfig",
        model="XLMRobertaForMaskedLM",
        layers=("roberta.encoder.layer",),
        options=_roberta,
        indexed=False,
        decodes=False,
        gradients=True,
    ),
    "distilbert": Case(
        title="DistilBERT",
        config="DistilBertConfig",
        model="DistilBertForMaskedLM",
        layers=("distilbert.transformer.layer",),
        options=_distilbert,
        decodes=False,
        gradients=True,
    ),
    "bart": Case(
        title="BART",
        config="BartConfig",
        model="BartForConditionalGeneration",
        layers=("model.encoder.layers", "model.decoder.layers"),
        options=_marian,
        indexed=False,
        left=False,
        gradients=True,
    ),
    "mbart": Case(
        title="mBART",
        config="MBartConfig",
        model="MBartForConditionalGeneration",
        layers=("model.encoder.layers", "model.decoder.layers"),
        options=_marian,
        indexed=False,
        left=False,
        gradients=True,
    ),
    "pegasus": Case(
        title="Pegasus",
        config="PegasusConfig",
        model="PegasusForConditionalGeneration",
        layers=("model.encoder.layers", "model.decoder.layers"),
        options=_marian,
        indexed=False,
        left=False,
        left_out=r"model\.(en|de)coder\.embed_positions\.weight",
        gradients=True,
    ),
    "mt5": Case(
        title="mT5",
        config="MT5Config",
        model="MT5ForConditionalGeneration",
        layers=("encoder.block", "decoder.block"),
        options=_mt5,
        indexed=False,
        spread=0.12,
        gradients=True,
    ),
    "umt5": Case(
        title="umT5",
        config="UMT5Config",
        model="UMT5ForConditionalGeneration",
        layers=("encoder.block", "decoder.block"),
        options=_mt5,
        indexed=False,
        spread=0.12,
        gradients=True,
    ),
    "olmo": Case(
        title="OLMo",
        config="OlmoConfig",
        model="OlmoForCausalLM",
        options=_olmo,
        gradients=True,
    ),
    "olmo3": Case(
        title="OLMo 3",
        config="Olmo3Config",
        model="Olmo3ForCausalLM",
        options=_olmo3,
        gradients=True,
    ),
    "exaone4": Case(
        title="EXAONE 4",
        config="Exaone4Config",
        model="Exaone4ForCausalLM",
        options=_exaone4,
        gradients=True,
    ),
    "gpt_neo": Case(
        title="GPT-Neo",
        config="GPTNeoConfig",
        model="GPTNeoForCausalLM",
        layers=("transformer.h",),
        options=_gpt_neo,
        gradients=True,
    ),
    "gpt_bigcode": Case(
        title="StarCoder",
        config="GPTBigCodeConfig",
        model="GPTBigCodeForCausalLM",
        layers=("transformer.h",),
        options=_gpt_bigcode,
        gradients=True,
    ),
    "mpt": Case(
        title="MPT",
        config="MptConfig",
        model="MptForCausalLM",
        layers=("transformer.blocks",),
        options=_mpt,
        indexed=False,
        gradients=True,
    ),
    "cohere": Case(
        title="Command-R",
        config="CohereConfig",
        model="CohereForCausalLM",
        options=_cohere,
        gradients=True,
    ),
    "cohere2": Case(
        title="Command-A",
        config="Cohere2Config",
        model="Cohere2ForCausalLM",
        options=_cohere2,
        gradients=True,
    ),
    "glm4_moe": Case(title="GLM-4.5", config="Glm4MoeConfig", model="Glm4MoeForCausalLM", options=_glm4_moe),
    "minicpm3": Case(
        title="MiniCPM 3",
        config="MiniCPM3Config",
        model="MiniCPM3ForCausalLM",
        options=_minicpm3,
        gradients=True,
    ),
    "electra": Case(
        title="ELECTRA",
        config="ElectraConfig",
        model="ElectraForMaskedLM",
        layers=("electra.encoder.layer",),
        options=_electra,
        decodes=False,
        gradients=True,
    ),
    "clip_text": Case(
        title="CLIP, text",
        config="CLIPTextConfig",
        model="CLIPTextModelWithProjection",
        layers=("text_model.encoder.layers",),
        options=_clip,
        decodes=False,
        gradients=True,
        head=("text_model.final_layer_norm", "text_projection"),
    ),
    "vit": Case(
        title="ViT",
        config="ViTConfig",
        model="ViTForImageClassification",
        layers=("vit.layers",),
        options=_vit,
        indexed=False,
        decodes=False,
        gradients=True,
        head=("vit.layernorm", "classifier"),
        images=True,
    ),
}
