"""GPT-2: a pre-norm decoder with learned positions. Radford et al. 2019."""

from stackjax.attention import Attention
from stackjax.embedding import Embedding, Head
from stackjax.feed_forward import FeedForward
from stackjax.interop.hf import inert
from stackjax.interop.hf.architecture import Architecture
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.mapping import Table, norm, stored, tensor, within
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import LayerNorm
from stackjax.position import Learned
from stackjax.recipe import PreNorm
from stackjax.recipe.residual import Pre
from stackjax.stack import Stack

TENSORS: Table = {
    "transformer.wte.weight": tensor("embedding/token"),
    "transformer.wpe.weight": tensor("embedding/position/table"),
    "transformer.ln_f": norm("stack/leave/inner/norm"),
    **within(
        "transformer.h.{layer}.",
        "stack/{layer}/",
        {
            "ln_1": norm("residual/attention/norm"),
            "attn.c_attn": stored("attention/query", "attention/key", "attention/value"),
            "attn.c_proj": stored("attention/out"),
            "ln_2": norm("residual/feed_forward/norm"),
            "mlp.c_fc": stored("feed_forward/up"),
            "mlp.c_proj": stored("feed_forward/down"),
        },
    ),
}


def describe(config: Config) -> tuple[Model, Table]:
    """GPT-2 from its config."""
    config.only(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, reorder_and_upcast_attn=False)
    config.only(add_cross_attention=False, tie_word_embeddings=True)
    attention = Attention(n_heads=config.take("n_head"), bias=("query", "key", "value", "out"))
    activation = config.activation("activation_function", "gelu_new")
    forward = FeedForward(d_hidden=config.take("n_inner", None), activation=activation, bias=True)
    recipe = PreNorm(residual=Pre(norm=LayerNorm(eps=config.take("layer_norm_epsilon", 1e-5))))
    position = Learned(n_positions=config.take("n_positions"))
    model = Model(
        embedding=Embedding(vocab=config.take("vocab_size"), scale=1.0, position=position),
        stack=Stack.of(
            Layer(sublayers=(attention, forward)),
            depth=config.take("n_layer"),
            d_model=config.take("n_embd"),
            recipe=recipe,
        ),
        head=Head(tied=True),
    )
    return model, TENSORS


GPT2 = Architecture(
    describe=describe,
    classes=("GPT2LMHeadModel", "GPT2Model"),
    renames=((r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),),
    aliases=(("lm_head.weight", "transformer.wte.weight"),),
    inert=inert.GPT2,
)
