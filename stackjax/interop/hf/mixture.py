"""Qwen2-MoE, Qwen3-MoE, Qwen3-Next and OLMoE: mixtures of many small experts whose weights need not add up to 1.

Qwen: Yang et al. 2024, arXiv:2407.10671; Yang et al. 2025, arXiv:2505.09388; Qwen3-Next: Qwen Team 2025, after Yang et
al. 2024, arXiv:2412.06464, and Qiu et al. 2025, arXiv:2505.06708. OLMoE: Muennighoff et al. 2024, arXiv:2409.02060.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from stackjax.delta_rule import GatedDeltaNet
from stackjax.feed_forward import FeedForward
from stackjax.interop.hf import causal, inert, olmo
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.mapping import Table, dense, norm, tensor, within
from stackjax.interop.hf.rope import rotary
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.moe import MixtureOfExperts
from stackjax.norm import RMSNorm, upcast
from stackjax.parameter import FanIn, Spec, linear
from stackjax.recipe import PreNorm
from stackjax.recipe.residual import Pre
from stackjax.sublayer import Aux, Params, SideInputs, Sublayer

NORMS: Table = {
    "input_layernorm": (norm("residual/attention/norm"), norm("residual/delta_net/norm")),
    "post_attention_layernorm": (norm("residual/feed_forward/norm"), norm("residual/experts/norm")),
}
SHARED: Table = {
    "mlp.shared_expert.gate_proj": dense("experts/shared/gate"),
    "mlp.shared_expert.up_proj": dense("experts/shared/up"),
    "mlp.shared_expert.down_proj": dense("experts/shared/down"),
    "mlp.shared_expert_gate": dense("experts/shared/weight"),
}


def _delta_net(delta: GatedDeltaNet) -> Table:
    """The gated delta rule of Qwen3-Next, which stores its projections by head of keys."""
    table: Table = {
        "in_proj_qkvz": dense("query", "key", "value", "gate", groups=delta.groups),
        "in_proj_ba": dense("beta", "decay", groups=delta.groups),
        "conv1d.weight": tensor("convolution", transposed=True, shape=(-1, 1, delta.kernel)),
        "A_log": tensor("log_rate"),
        "dt_bias": tensor("time_step"),
        "norm": norm("norm"),
        "out_proj": dense("out"),
    }
    return within("linear_attn.", "delta_net/", table)


@dataclass(frozen=True, kw_only=True)
class WeightedExpert(FeedForward):
    """sigmoid(x w) times the feed-forward network of x: an expert for all tokens, more for some."""

    def spec(self, d_model: int) -> dict[str, Any]:
        return {**super().spec(d_model), "weight": Spec(shape=(d_model, 1), role="router", init=FanIn())}

    def apply(self, params: Params, x: jax.Array, side_inputs: SideInputs) -> tuple[jax.Array, Aux]:
        y, aux = super().apply(params, x, side_inputs)
        return (jax.nn.sigmoid(upcast(linear(params, "weight", x))) * y).astype(y.dtype), aux


def _experts(config: Config, *, normalised: bool = False, **more: Any) -> MixtureOfExperts:
    return MixtureOfExperts(
        n_experts=config.take("num_experts"),
        top_k=config.take("num_experts_per_tok"),
        activation=config.activation("hidden_act", "silu"),
        normalised=config.take("norm_topk_prob", normalised),
        **more,
    )


def _shared(config: Config) -> WeightedExpert:
    activation = config.activation("hidden_act", "silu")
    return WeightedExpert(d_hidden=config.take("shared_expert_intermediate_size"), activation=activation, gated=True)


def _model(
    config: Config,
    attention: Sequence[Sublayer],
    experts: MixtureOfExperts,
    *tables: Table,
    unit_offset: bool = False,
) -> tuple[Model, Table]:
    """Experts in every decoder_sparse_step-th layer that mlp_only_layers does not name.

    Args:
        config: read for the sizes.
        attention: of each layer, or what stands in its place.
        experts: of the layers that have some.
        *tables: of one layer, beside what all have.
        unit_offset: whether norms store their scales as differences from 1.
    """
    forward = causal.feed_forward(config, config.activation("hidden_act", "silu"))
    every, without = config.take("decoder_sparse_step", 1), config.take("mlp_only_layers", None) or []
    sparse = [(i + 1) % every == 0 and i not in without for i in range(len(attention))]
    layers = [
        Layer(sublayers=(sublayer, experts if many else forward))
        for sublayer, many in zip(attention, sparse, strict=True)
    ]
    norm = RMSNorm(eps=config.take("rms_norm_eps", 1e-6), unit_offset=unit_offset)
    recipe = PreNorm(residual=Pre(norm=norm))
    table = causal.layers(NORMS, causal.ATTENTION, causal.FORWARD, causal.EXPERTS, *tables)
    return causal.decoder(config, *layers, recipe=recipe), table


def qwen2_moe(config: Config) -> tuple[Model, Table]:
    """Qwen2-MoE and Qwen1.5-MoE from their config: a shared expert, weighted by token."""
    bias = causal.QUERY_KEY_VALUE if config.take("qkv_bias", True) else ()
    attention = causal.attention(config, bias=bias, position=rotary(config))
    window, last = config.take("sliding_window", 4096), config.take("max_window_layers", 28)
    window = window if config.take("use_sliding_window", False) else None
    kinds = causal.kinds(
        config, lambda i: "sliding_attention" if window and (i + 1) % 2 and i < last else "full_attention"
    )
    windows = [window if kind == "sliding_attention" else None for kind in kinds]
    experts = _experts(config, d_hidden=config.take("moe_intermediate_size"), shared_expert=_shared(config))
    return _model(config, [replace(attention, window=window) for window in windows], experts, SHARED)


def qwen3_moe(config: Config) -> tuple[Model, Table]:
    """Qwen3-MoE from its config."""
    config.rename(num_experts="num_local_experts")
    bias, norm = config.take("attention_bias", False), RMSNorm(eps=config.take("rms_norm_eps", 1e-6))
    window = config.take("sliding_window", 4096)
    window = window if config.take("use_sliding_window", False) else None
    attention = causal.attention(config, bias=bias, position=rotary(config), qk_norm=norm, window=window)
    experts = _experts(config, d_hidden=config.take("moe_intermediate_size"))
    return _model(config, [attention] * config.take("num_hidden_layers"), experts)


def qwen3_next(config: Config) -> tuple[Model, Table]:
    """Qwen3-Next from its config: gated attention in every fourth layer, in the others the gated delta rule."""
    config.only(hidden_act="silu")  # The delta rule's gate is silu, whatever this is.
    eps, every = config.take("rms_norm_eps", 1e-6), config.take("full_attention_interval", 4)
    attention = causal.attention(
        config,
        bias=(*causal.QUERY_KEY_VALUE, "gate", "out") if config.take("attention_bias", False) else (),
        d_head=256,
        position=rotary(config, d_head=causal.head_width(config, 256), share=0.25),
        qk_norm=RMSNorm(eps=eps, unit_offset=True),
        gate="feature",
    )
    delta = GatedDeltaNet(
        n_heads=config.take("linear_num_value_heads", 32),
        n_key_heads=config.take("linear_num_key_heads", 16),
        d_head=config.take("linear_key_head_dim", 128),
        d_value=config.take("linear_value_head_dim", 128),
        kernel=config.take("linear_conv_kernel_dim", 4),
        norm=RMSNorm(eps=eps),
    )
    kinds = causal.kinds(
        config, lambda i: "linear_attention" if (i + 1) % every else "full_attention", other="linear_attention"
    )
    layers = [attention if kind == "full_attention" else delta for kind in kinds]
    d_expert, shared = config.take("moe_intermediate_size", 512), _shared(config)
    experts = _experts(config, normalised=True, d_hidden=d_expert, shared_expert=shared)
    query: Table = {"self_attn.q_proj": dense("attention/query", "attention/gate", groups=attention.n_heads)}
    return _model(config, layers, experts, SHARED, query, _delta_net(delta), unit_offset=True)


def olmoe(config: Config) -> tuple[Model, Table]:
    """OLMoE from its config."""
    config.only(clip_qkv=None)
    norm = RMSNorm(eps=config.take("rms_norm_eps", 1e-5))
    experts = _experts(config, d_hidden=config.take("intermediate_size"))
    layer = Layer(sublayers=(olmo.attention(config, norm, position=rotary(config)), experts))
    table = causal.layers(NORMS, causal.ATTENTION, causal.EXPERTS)
    return causal.decoder(config, layer, recipe=PreNorm(residual=Pre(norm=norm))), table


QWEN2_MOE = causal.architecture(qwen2_moe, "Qwen2Moe")
QWEN3_NEXT = causal.architecture(qwen3_next, "Qwen3Next", inert=inert.QWEN3_NEXT)
QWEN3_MOE = causal.architecture(qwen3_moe, "Qwen3Moe", inert=inert.QWEN3_MOE)
OLMOE = causal.architecture(olmoe, "Olmoe")
