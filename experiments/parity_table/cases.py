"""The architectures to compare, each with small random configurations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Random = np.random.Generator
VOCAB = 37


@dataclass(frozen=True, kw_only=True)
class Case:
    """One architecture.

    Args:
        title: as a table names it.
        config: `transformers` class of the configuration.
        model: `transformers` class of the model.
        layers: where its layers are, in the order in which they run.
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
}
