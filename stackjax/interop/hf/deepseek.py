"""DeepSeek-V3, GLM-4.5 and MiniCPM 3: latent attention; dense layers first, then experts with sigmoid routing.

DeepSeek-AI 2024, arXiv:2412.19437. GLM-4.5 Team 2025, arXiv:2508.06471. MiniCPM: Hu et al. 2024, arXiv:2404.06395.
"""

import math

from stackjax.attention import Attention
from stackjax.feed_forward import FeedForward
from stackjax.interop.hf import causal, inert
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.mapping import Table, dense, norm, tensor
from stackjax.interop.hf.rope import mscale, parameters, rotary
from stackjax.latent_attention import LatentAttention
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.moe import MixtureOfExperts
from stackjax.norm import NoNorm, RMSNorm
from stackjax.recipe import PreNorm, Weighted
from stackjax.recipe.residual import Pre

EXPERTS: Table = causal.EXPERTS | {
    "mlp.gate.e_score_correction_bias": tensor("experts/bias"),
    "mlp.shared_experts.gate_proj": dense("experts/shared/gate"),
    "mlp.shared_experts.up_proj": dense("experts/shared/up"),
    "mlp.shared_experts.down_proj": dense("experts/shared/down"),
}


NORMS: Table = {
    "input_layernorm": norm("residual/attention/norm"),
    "post_attention_layernorm": (norm("residual/feed_forward/norm"), norm("residual/experts/norm")),
}


def _attention(attention: LatentAttention) -> Table:
    direct = attention.d_query_latent is None
    return {
        "self_attn.q_proj" if direct else "self_attn.q_b_proj": dense("attention/query"),
        "self_attn.q_a_proj": dense("attention/query_latent"),
        "self_attn.q_a_layernorm": norm("attention/query_norm"),
        "self_attn.kv_a_proj_with_mqa": dense("attention/latent", "attention/rotary"),
        "self_attn.kv_a_layernorm": norm("attention/latent_norm"),
        "self_attn.kv_b_proj": dense("attention/key", "attention/value", groups=attention.n_heads),
        "self_attn.o_proj": dense("attention/out"),
    }


def _scale(config: Config, width: int) -> float:
    """1/sqrt(K), times what YaRN adds to it where all features are scaled."""
    rope = parameters(config)
    weight = rope.get("mscale_all_dim") or 0
    return width**-0.5 * (mscale(rope["factor"], weight) ** 2 if weight else 1.0)


def _latent_attention(config: Config, *, interleaved: bool) -> LatentAttention:
    heads, d_rotary = config.take("num_attention_heads"), config.take("qk_rope_head_dim")
    d_head = config.take("qk_nope_head_dim")
    config.only(attention_bias=False, num_key_value_heads=heads)
    config.only(head_dim=(d_rotary, None), qk_head_dim=d_head + d_rotary)
    return LatentAttention(
        n_heads=heads,
        d_head=d_head,
        d_rotary=d_rotary,
        d_latent=config.take("kv_lora_rank"),
        d_query_latent=config.take("q_lora_rank", None),
        d_value=config.take("v_head_dim", None) or config.take("hidden_size") // heads,
        position=rotary(config, interleaved=interleaved),
        scale=_scale(config, d_head + d_rotary),
        norm=RMSNorm(eps=1e-6),
    )


def _model(config: Config, attention: Attention | LatentAttention, norm: RMSNorm, *, dense: int, scale: float) -> Model:
    """Dense layers first, then layers with experts.

    Args:
        config: read for the experts.
        attention: of all layers.
        norm: before every sublayer.
        dense: number of dense layers, where the config does not say.
        scale: of the experts' sum, where the config does not say.
    """
    activation, d_expert = config.activation("hidden_act", "silu"), config.take("moe_intermediate_size")
    n_shared = config.take("n_shared_experts", 1)
    experts = MixtureOfExperts(
        n_experts=config.take("n_routed_experts"),
        top_k=config.take("num_experts_per_tok"),
        d_hidden=d_expert,
        activation=activation,
        shared_expert=FeedForward(d_hidden=n_shared * d_expert, activation=activation, gated=True),
        score="sigmoid",
        normalised=config.take("norm_topk_prob", True),
        scale=config.take("routed_scaling_factor", scale),
        n_groups=config.take("n_group", 1),
        top_groups=config.take("topk_group", 1),
        bias_rate=0.001,
    )
    dense_layer = Layer(sublayers=(attention, causal.feed_forward(config, activation)))
    n_dense, depth = config.take("first_k_dense_replace", dense), config.take("num_hidden_layers")
    layers = [dense_layer] * min(n_dense, depth) + [Layer(sublayers=(attention, experts))] * max(depth - n_dense, 0)
    return causal.decoder(config, *layers, recipe=PreNorm(residual=Pre(norm=norm)))


def deepseek_v3(config: Config) -> tuple[Model, Table]:
    """DeepSeek-V3 from its config."""
    config.only(ep_size=1, moe_layer_freq=1, scoring_func="sigmoid", topk_method="noaux_tc")
    attention = _latent_attention(config, interleaved=config.take("rope_interleave", True))
    table = causal.layers(NORMS, _attention(attention), causal.FORWARD, EXPERTS)
    norm = RMSNorm(eps=config.take("rms_norm_eps", 1e-6))
    return _model(config, attention, norm, dense=3, scale=2.5), table


def glm4_moe(config: Config) -> tuple[Model, Table]:
    """GLM-4.5 and 4.6 from their config: DeepSeek's experts behind grouped heads, of which half of each turns."""
    norm = RMSNorm(eps=config.take("rms_norm_eps", 1e-5))
    attention = causal.attention(
        config,
        bias=causal.QUERY_KEY_VALUE if config.take("attention_bias", False) else (),
        position=rotary(config, d_head=causal.head_width(config), share=0.5),
        qk_norm=norm if config.take("use_qk_norm", False) else NoNorm(),
    )
    table = causal.layers(NORMS, causal.ATTENTION, causal.FORWARD, EXPERTS)
    return _model(config, attention, norm, dense=1, scale=1.0), table


def minicpm3(config: Config) -> tuple[Model, Table]:
    """MiniCPM 3 from its config: latent attention, dense, and a multiplier at each of its places."""
    attention, depth = _latent_attention(config, interleaved=False), config.take("num_hidden_layers")
    bias = config.take("mlp_bias", False)
    forward = causal.feed_forward(config, config.activation("hidden_act", "silu"), bias=bias)
    form = Pre(norm=RMSNorm(eps=config.take("rms_norm_eps", 1e-5)))
    recipe = Weighted(residual=form, beta=config.take("scale_depth", 1.4) / math.sqrt(depth))
    embedding = {"scale": float(config.take("scale_emb", 12))}
    head = {"scale": config.take("dim_model_base", 256) / config.take("hidden_size")}
    layer = Layer(sublayers=(attention, forward))
    table = causal.layers(NORMS, _attention(attention), causal.FORWARD)
    return causal.decoder(config, layer, recipe=recipe, tied=True, embedding=embedding, head=head), table


DEEPSEEK_V3 = causal.architecture(deepseek_v3, "DeepseekV3", inert=inert.DEEPSEEK_V3)
GLM4_MOE = causal.architecture(glm4_moe, "Glm4Moe", inert=inert.DEEPSEEK_V3)
MINICPM3 = causal.architecture(minicpm3, "MiniCPM3")
