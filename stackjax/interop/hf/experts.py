"""Mixtral and gpt-oss: decoders whose feed-forward networks are mixtures of experts.

Jiang et al. 2024, arXiv:2401.04088; OpenAI 2025, arXiv:2508.10925.
"""

from dataclasses import replace

from stackjax.feed_forward import ClampedSwish, ShiftedClip
from stackjax.interop.hf import causal, inert
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.mapping import Table, dense, norm, tensor
from stackjax.interop.hf.rope import rotary
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.moe import MixtureOfExperts
from stackjax.norm import RMSNorm
from stackjax.recipe import PreNorm
from stackjax.recipe.residual import Pre

NORMS: Table = {
    "input_layernorm": norm("residual/attention/norm"),
    "post_attention_layernorm": norm("residual/experts/norm"),
}
MIXTRAL_EXPERTS: Table = {
    "block_sparse_moe.gate": dense("experts/router"),
    "block_sparse_moe.experts.{expert}.w1": dense("experts/gate"),
    "block_sparse_moe.experts.{expert}.w2": dense("experts/down"),
    "block_sparse_moe.experts.{expert}.w3": dense("experts/up"),
}
GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def mixtral(config: Config) -> tuple[Model, Table]:
    """Mixtral from its config."""
    norm = RMSNorm(eps=config.take("rms_norm_eps", 1e-5))
    window = config.take("sliding_window", None)
    attention = causal.attention(config, position=rotary(config, base=1e6), window=window)
    experts = MixtureOfExperts(
        n_experts=config.take("num_local_experts", 8),
        top_k=config.take("num_experts_per_tok", 2),
        d_hidden=config.take("intermediate_size"),
        activation=config.activation("hidden_act", "silu"),
    )
    layer, recipe = Layer(sublayers=(attention, experts)), PreNorm(residual=Pre(norm=norm))
    return causal.decoder(config, layer, recipe=recipe), causal.layers(NORMS, causal.ATTENTION, MIXTRAL_EXPERTS)


def _gpt_oss_experts(d_hidden: int) -> Table:
    """The experts of gpt-oss, gate and up column by column."""
    return {
        "self_attn.sinks": tensor("attention/sinks"),
        "mlp.router": dense("experts/router"),
        "mlp.experts.gate_up_proj": tensor("experts/gate", "experts/up", groups=d_hidden),
        "mlp.experts.gate_up_proj_bias": tensor("experts/gate_bias", "experts/up_bias", groups=d_hidden),
        "mlp.experts.down_proj": tensor("experts/down"),
        "mlp.experts.down_proj_bias": tensor("experts/down_bias"),
    }


def gpt_oss(config: Config) -> tuple[Model, Table]:
    """gpt-oss from its config."""
    top_k, d_hidden = config.take("num_experts_per_tok", 4), config.take("intermediate_size")
    config.only(hidden_act="silu", experts_per_token=top_k)
    norm = RMSNorm(eps=config.take("rms_norm_eps", 1e-5))
    attention = causal.attention(
        config,
        bias=config.take("attention_bias", True),
        d_head=64,
        position=rotary(config, base=150_000.0, default=GPT_OSS_ROPE),
        sinks=True,
    )
    limit = config.take("swiglu_limit", 7.0)
    experts = MixtureOfExperts(
        n_experts=config.take("num_local_experts"),
        top_k=top_k,
        d_hidden=d_hidden,
        activation=ClampedSwish(slope=config.take("swiglu_alpha", 1.702), limit=limit),
        up_activation=ShiftedClip(limit=limit),
        bias=True,
    )
    windows = {"full_attention": None, "sliding_attention": config.take("sliding_window", 128)}
    kinds = causal.kinds(config, lambda i: "sliding_attention" if (i + 1) % 2 else "full_attention")
    layers = [Layer(sublayers=(replace(attention, window=windows[kind]), experts)) for kind in kinds]
    table = causal.layers(NORMS, causal.ATTENTION, _gpt_oss_experts(d_hidden))
    return causal.decoder(config, *layers, recipe=PreNorm(residual=Pre(norm=norm))), table


MIXTRAL = causal.architecture(mixtral, "Mixtral")
GPT_OSS = causal.architecture(gpt_oss, "GptOss", inert=inert.GPT_OSS)
