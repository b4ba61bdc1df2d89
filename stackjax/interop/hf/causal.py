"""The parts that decoders since Llama share: rotary positions, grouped heads, gated feed-forward, and their names."""

from collections.abc import Callable, Mapping
from typing import Any

from stackjax.attention import Attention
from stackjax.embedding import Embedding, Head
from stackjax.feed_forward import Activation, FeedForward
from stackjax.interop.hf.architecture import Architecture
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.inert import Inert
from stackjax.interop.hf.mapping import Table, dense, norm, rules, tensor, within
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.recipe.base import Recipe
from stackjax.stack import Stack

ENDS: Table = {
    "model.embed_tokens.weight": tensor("embedding/token"),
    "model.norm": norm("stack/leave/inner/norm"),
    "lm_head.weight": tensor("head/unembed", transposed=True),
}
PROJECTIONS: Table = {
    "self_attn.q_proj": dense("attention/query"),
    "self_attn.k_proj": dense("attention/key"),
    "self_attn.v_proj": dense("attention/value"),
    "self_attn.o_proj": dense("attention/out"),
}
ATTENTION: Table = PROJECTIONS | {
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
UP_AND_DOWN: Table = {"mlp.c_fc": dense("feed_forward/up"), "mlp.c_proj": dense("feed_forward/down")}
GATE_AND_UP: Table = {
    "mlp.gate_up_proj": dense("feed_forward/gate", "feed_forward/up"),
    "mlp.down_proj": dense("feed_forward/down"),
}
EXPERTS: Table = {
    "mlp.gate.weight": tensor("experts/router", transposed=True),
    "mlp.experts.{expert}.gate_proj": dense("experts/gate"),
    "mlp.experts.{expert}.up_proj": dense("experts/up"),
    "mlp.experts.{expert}.down_proj": dense("experts/down"),
}
QUERY_KEY_VALUE = ("query", "key", "value")


def layers(*tables: Table, ends: Table = ENDS, module: str = "model.layers.{layer}.") -> Table:
    """The ends, and these tables for every layer.

    Args:
        *tables: of one layer.
        ends: of the model.
        module: what the names of a layer begin with.
    """
    merged = {name: rule for table in tables for name, rule in table.items()}
    return ends | within(module, "stack/{layer}/", merged)


def side_by_side(table: Table) -> Table:
    """Rows of sublayers that stand one after another or, in `Parallel`, side by side."""
    parallel = within("", "parallel/", table)
    return {name: (*rules(table[name]), *rules(parallel[name])) for name in table}


def head_width(config: Config, default: int | None = None) -> int:
    """K: head_dim, or what the format means without it; None means D / H."""
    width = config.take("head_dim", default) or default
    return width or config.take("hidden_size") // config.take("num_attention_heads")


def attention(
    config: Config,
    *,
    kind: type[Attention] = Attention,
    bias: bool | tuple[str, ...] = False,
    d_head: int | None = None,
    **more: Any,
) -> Attention:
    """Attention with grouped heads.

    Args:
        config: read for the sizes.
        kind: `Attention`, or a subclass.
        bias: whether all four projections have one, or which of them.
        d_head: what the format means where the config gives no head_dim.
        **more: other fields of `Attention`.
    """
    if isinstance(bias, bool):
        bias = (*QUERY_KEY_VALUE, "out") if bias else ()
    return kind(
        n_heads=config.take("num_attention_heads"),
        n_kv_heads=config.take("num_key_value_heads", None),
        d_head=head_width(config, d_head),
        bias=bias,
        **more,
    )


def feed_forward(config: Config, activation: Activation, *, bias: bool = False) -> FeedForward:
    """The gated feed-forward."""
    return FeedForward(d_hidden=config.take("intermediate_size"), activation=activation, gated=True, bias=bias)


def kinds(config: Config, default: Callable[[int], str], *, other: str = "sliding_attention") -> list[str]:
    """The kind of each layer's attention.

    Args:
        config: read for layer_types.
        default: the kind of layer i, where the config does not say.
        other: the kind beside full_attention.

    Raises:
        ValueError: layer_types of other kinds, or of another depth.
    """
    depth = config.take("num_hidden_layers")
    kinds_of_layers = config.take("layer_types", None) or [default(i) for i in range(depth)]
    if len(kinds_of_layers) != depth or not set(kinds_of_layers) <= {other, "full_attention"}:
        raise ValueError(
            f"config.json needs a layer_types of {other} or full_attention for each of {depth} layers; "
            f"got {kinds_of_layers}"
        )
    return kinds_of_layers


def decoder(
    config: Config,
    *layers: Layer,
    recipe: Recipe,
    tied: bool = False,
    embedding: Mapping[str, Any] | None = None,
    head: Mapping[str, Any] | None = None,
) -> Model:
    """The stack between its embedding and its head.

    Args:
        config: read for the sizes.
        *layers: one, or one for each layer.
        recipe: the depth treatment.
        tied: whether the output uses the embedding's matrix, where the config does not say.
        embedding: fields of `Embedding` beside its size; its scale is 1 unless they say another.
        head: fields of `Head`.
    """
    config.take("max_position_embeddings", None)
    depth, d_model = config.take("num_hidden_layers"), config.take("hidden_size")
    return Model(
        embedding=Embedding(vocab=config.take("vocab_size"), **{"scale": 1.0, **(embedding or {})}),
        stack=Stack.of(*layers, depth=depth, d_model=d_model, recipe=recipe),
        head=Head(tied=config.take("tie_word_embeddings", tied), **(head or {})),
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
