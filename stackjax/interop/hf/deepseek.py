"""DeepSeek-V3: latent attention; dense layers first, then experts with a shared one and sigmoid routing.

DeepSeek-AI 2024, arXiv:2412.19437.
"""

from stackjax.feed_forward import FeedForward
from stackjax.interop.hf import causal, inert
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.mapping import Table, dense, norm, tensor
from stackjax.interop.hf.rope import mscale, parameters, rotary
from stackjax.latent_attention import LatentAttention
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.moe import MixtureOfExperts
from stackjax.norm import RMSNorm
from stackjax.recipe import PreNorm
from stackjax.recipe.residual import Pre

EXPERTS: Table = causal.EXPERTS | {
    "mlp.gate.e_score_correction_bias": tensor("experts/bias"),
    "mlp.shared_experts.gate_proj": dense("experts/shared/gate"),
    "mlp.shared_experts.up_proj": dense("experts/shared/up"),
    "mlp.shared_experts.down_proj": dense("experts/shared/down"),
}


def _attention(heads: int, direct: bool) -> Table:
    return {
        "self_attn.q_proj" if direct else "self_attn.q_b_proj": dense("attention/query"),
        "self_attn.q_a_proj": dense("attention/query_latent"),
        "self_attn.q_a_layernorm": norm("attention/query_norm"),
        "self_attn.kv_a_proj_with_mqa": dense("attention/latent", "attention/rotary"),
        "self_attn.kv_a_layernorm": norm("attention/latent_norm"),
        "self_attn.kv_b_proj": dense("attention/key", "attention/value", groups=heads),
        "self_attn.o_proj": dense("attention/out"),
    }


def _scale(config: Config, width: int) -> float:
    """1/sqrt(K), times what YaRN adds to it where all features are scaled."""
    rope = parameters(config)
    weight = rope.get("mscale_all_dim") or 0
    return width**-0.5 * (mscale(rope["factor"], weight) ** 2 if weight else 1.0)


def describe(config: Config) -> tuple[Model, Table]:
    """DeepSeek-V3 from its config."""
    config.only(attention_bias=False, ep_size=1, moe_layer_freq=1, scoring_func="sigmoid", topk_method="noaux_tc")
    heads, d_rotary = config.take("num_attention_heads"), config.take("qk_rope_head_dim")
    d_head, latent = config.take("qk_nope_head_dim"), config.take("q_lora_rank", None)
    config.only(num_key_value_heads=heads, head_dim=d_rotary, qk_head_dim=d_head + d_rotary)
    attention = LatentAttention(
        n_heads=heads,
        d_head=d_head,
        d_rotary=d_rotary,
        d_latent=config.take("kv_lora_rank"),
        d_query_latent=latent,
        d_value=config.take("v_head_dim"),
        position=rotary(config, interleaved=config.take("rope_interleave", True)),
        scale=_scale(config, d_head + d_rotary),
        norm=RMSNorm(eps=1e-6),
    )
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
        scale=config.take("routed_scaling_factor", 2.5),
        n_groups=config.take("n_group"),
        top_groups=config.take("topk_group"),
        bias_rate=0.001,
    )
    dense_layer = Layer(sublayers=(attention, causal.feed_forward(config, activation)))
    n_dense, depth = config.take("first_k_dense_replace", 3), config.take("num_hidden_layers")
    layers = [dense_layer] * min(n_dense, depth) + [Layer(sublayers=(attention, experts))] * max(depth - n_dense, 0)
    recipe = PreNorm(residual=Pre(norm=RMSNorm(eps=config.take("rms_norm_eps", 1e-6))))
    norms: Table = {
        "input_layernorm": norm("residual/attention/norm"),
        "post_attention_layernorm": (norm("residual/feed_forward/norm"), norm("residual/experts/norm")),
    }
    table = causal.layers(norms, _attention(heads, latent is None), causal.FORWARD, EXPERTS)
    return causal.decoder(config, *layers, recipe=recipe), table


DEEPSEEK_V3 = causal.architecture(describe, "DeepseekV3", inert=inert.DEEPSEEK_V3)
