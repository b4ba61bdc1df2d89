"""An architecture of your own, whole, in one file outside the library: Nemotron, from NVIDIA's folders.

    from experiments.own_architecture import ARCHITECTURES
    from stackjax.interop import hf

    model, params, config = hf.load("path/to/nemotron", architectures={**hf.ARCHITECTURES, **ARCHITECTURES})

    python -m experiments.parity_table --architectures experiments.own_architecture:ARCHITECTURES
    python -m experiments.x_ray path/to/nemotron --architectures experiments.own_architecture:ARCHITECTURES

Nemotron is Llama with three changes: the norm is a layer norm whose scale is stored as its difference from 1, the
feed-forward has a squared ReLU and no gate, and half of each head's features turn. What a description consists of: a
function from config.json to a model in stackjax's own terms, which reads every option that counts (`take`, or `only`
for the values that it can express), and a table that says where each tensor goes. Everything else is refused by name,
and `hf.addresses(model)` lists what the table must name.

Source: Parmar et al. 2024, arXiv:2402.16819, and the released code.
"""

from dataclasses import dataclass

import jax

import stackjax as sj
from stackjax.interop import hf
from stackjax.norm import upcast
from stackjax.recipe import PreNorm
from stackjax.recipe.residual import Pre
from stackjax.sublayer import Params


@dataclass(frozen=True, kw_only=True)
class OffsetLayerNorm(sj.LayerNorm):
    """A layer norm with the scale 1 + w."""

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        return super().apply({**params, "scale": 1 + upcast(params["scale"])}, x)


TENSORS: hf.Table = {
    "model.embed_tokens.weight": hf.tensor("embedding/token"),
    "model.norm": hf.norm("stack/leave/inner/norm"),
    "lm_head.weight": hf.tensor("head/unembed", transposed=True),
    **hf.within(
        "model.layers.{layer}.",
        "stack/{layer}/",
        {
            "input_layernorm": hf.norm("residual/attention/norm"),
            "self_attn.q_proj": hf.dense("attention/query"),
            "self_attn.k_proj": hf.dense("attention/key"),
            "self_attn.v_proj": hf.dense("attention/value"),
            "self_attn.o_proj": hf.dense("attention/out"),
            "post_attention_layernorm": hf.norm("residual/feed_forward/norm"),
            "mlp.up_proj": hf.dense("feed_forward/up"),
            "mlp.down_proj": hf.dense("feed_forward/down"),
        },
    ),
}


def describe(config: hf.Config) -> tuple[sj.Model, hf.Table]:
    """Nemotron from its config."""
    position = hf.rotary(config, d_head=hf.causal.head_width(config), share=0.5)
    attention = hf.causal.attention(config, bias=config.take("attention_bias", False), position=position)
    forward = sj.FeedForward(
        d_hidden=config.take("intermediate_size"),
        activation=config.activation("hidden_act", "relu2"),
        bias=config.take("mlp_bias", False),
    )
    recipe = PreNorm(residual=Pre(norm=OffsetLayerNorm(eps=config.take("norm_eps", 1e-5))))
    return hf.causal.decoder(config, sj.Layer(sublayers=(attention, forward)), recipe=recipe), TENSORS


ARCHITECTURES = {
    "nemotron": hf.Architecture(
        describe=describe,
        classes=("NemotronForCausalLM",),
        aliases=(("lm_head.weight", "model.embed_tokens.weight"),),
    ),
}
