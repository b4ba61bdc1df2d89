"""The parts that decoders since Llama share: rotary positions, grouped heads, gated feed-forward, and their names."""

from collections.abc import Callable
from typing import Any

from stackjax.attention import Attention
from stackjax.embedding import Embedding, Head
from stackjax.feed_forward import Activation, FeedForward
from stackjax.interop.hf.architecture import Architecture
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.inert import Inert
from stackjax.interop.hf.mapping import Table, dense, norm, tensor, within
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.recipe.base import Recipe
from stackjax.stack import Stack

ENDS: Table = {
    "model.embed_tokens.weight": tensor("embedding/token"),
    "model.norm": norm("stack/leave/inner/norm"),
    "lm_head.weight": tensor("head/unembed", transposed=True),
}
ATTENTION: Table = {
    "self_attn.q_proj": dense("attention/query"),
    "self_attn.k_proj": dense("attention/key"),
    "self_attn.v_proj": dense("attention/value"),
    "self_attn.o_proj": dense("attention/out"),
    "self_attn.q_norm": norm("attention/query_norm"),
    "self_attn.k_norm": norm("attention/key_norm"),
}
FORWARD: Table = {
    "mlp.gate_proj": dense("feed_forward/gate"),
    "mlp.up_proj": dense("feed_forward/up"),
    "mlp.down_proj": dense("feed_forward/down"),
}
PRE_NORM: Table = {
    "input_layernorm": norm("residual/attention/norm"),
    "post_attention_layernorm": norm("residual/feed_forward/norm"),
}
ALIASES = (("lm_head.weight", "model.embed_tokens.weight"),)


def layers(*tables: Table) -> Table:
    """The ends, and these tables for every layer."""
    merged = {name: rule for table in tables for name, rule in table.items()}
    return ENDS | within("model.layers.{layer}.", "stack/{layer}/", merged)


def attention(config: Config, *, bias: bool = False, d_head: int | None = None, **more: Any) -> Attention:
    """Attention with grouped heads.

    Args:
        config: read for the sizes.
        bias: on all four projections.
        d_head: what the format means where the config gives no head_dim.
        **more: other fields of `Attention`.
    """
    return Attention(
        n_heads=config.take("num_attention_heads"),
        n_kv_heads=config.take("num_key_value_heads", None),
        d_head=config.take("head_dim", d_head),
        bias=("query", "key", "value", "out") if bias else (),
        **more,
    )


def feed_forward(config: Config, activation: Activation, *, bias: bool = False) -> FeedForward:
    """The gated feed-forward."""
    return FeedForward(d_hidden=config.take("intermediate_size"), activation=activation, gated=True, bias=bias)


def kinds(config: Config, default: Callable[[int], str]) -> list[str]:
    """The kind of each layer's attention, sliding_attention or full_attention; `default` says it for layer i."""
    depth = config.take("num_hidden_layers")
    found = config.take("layer_types", None) or [default(i) for i in range(depth)]
    if len(found) != depth or not set(found) <= {"sliding_attention", "full_attention"}:
        raise ValueError(
            f"config.json needs a layer_types of sliding_attention or full_attention for each of {depth} layers; "
            f"got {found}"
        )
    return found


def decoder(
    config: Config,
    *layers: Layer,
    recipe: Recipe,
    scale: float | None = 1.0,
    tied: bool = False,
    soft_cap: float | None = None,
) -> Model:
    """The stack between its embedding and its head.

    Args:
        config: read for the sizes.
        *layers: one, or one for each layer.
        recipe: the depth treatment.
        scale: of the embedding; None means sqrt(D).
        tied: whether the output uses the embedding's matrix, where the config does not say.
        soft_cap: of the logits.
    """
    config.take("max_position_embeddings", None)
    depth, d_model = config.take("num_hidden_layers"), config.take("hidden_size")
    return Model(
        embedding=Embedding(vocab=config.take("vocab_size"), scale=scale),
        stack=Stack.of(*layers, depth=depth, d_model=d_model, recipe=recipe),
        head=Head(tied=config.take("tie_word_embeddings", tied), soft_cap=soft_cap),
    )


def architecture(
    describe: Callable[[Config], tuple[Model, Table]], name: str, *, inert: Inert = Inert()
) -> Architecture:
    """The architecture of the checkpoints of `transformers`' class NameForCausalLM.

    Args:
        describe: config -> the model and its table.
        name: of the class, before `ForCausalLM`.
        inert: options and tensors that change nothing.
    """
    return Architecture(describe=describe, classes=(f"{name}ForCausalLM",), aliases=ALIASES, inert=inert)
