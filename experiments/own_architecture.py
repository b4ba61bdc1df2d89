"""An architecture of your own, whole, in one file outside the library: Arcee's AFM-4.5B, which is not built in.

    from experiments.own_architecture import ARCHITECTURES
    from stackjax.interop import hf

    model, params, config = hf.load("path/to/arcee", architectures={**hf.ARCHITECTURES, **ARCHITECTURES})

    python -m experiments.parity_table --architectures experiments.own_architecture:ARCHITECTURES
    python -m experiments.x_ray path/to/arcee --architectures experiments.own_architecture:ARCHITECTURES

It is Llama with one change: the feed-forward has a squared ReLU and no gate. What a description consists of: a function
from config.json to a model in stackjax's own terms, which reads every option that counts (`take`, or `only` for the
values that it can express), and a table that says where each tensor goes. Everything else is refused by name, and
`hf.addresses(model)` lists what the table must name.

Source: the released code, `ArceeForCausalLM` of transformers, 2025.
"""

import stackjax as sj
from stackjax.interop import hf
from stackjax.recipe import PreNorm
from stackjax.recipe.residual import Pre

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
    """Arcee from its config."""
    position = hf.rotary(config, d_head=hf.causal.head_width(config))
    attention = hf.causal.attention(config, bias=config.take("attention_bias", False), position=position)
    forward = sj.FeedForward(
        d_hidden=config.take("intermediate_size"),
        activation=config.activation("hidden_act", "relu2"),
        bias=config.take("mlp_bias", False),
    )
    recipe = PreNorm(residual=Pre(norm=sj.RMSNorm(eps=config.take("rms_norm_eps", 1e-5))))
    return hf.causal.decoder(config, sj.Layer(sublayers=(attention, forward)), recipe=recipe), TENSORS


ARCHITECTURES = {
    "arcee": hf.Architecture(
        describe=describe,
        classes=("ArceeForCausalLM",),
        aliases=(("lm_head.weight", "model.embed_tokens.weight"),),
    ),
}
