"""GPT-NeoX, GPT-J, Phi and Falcon: decoders whose attention and feed-forward stand side by side.

GPT-NeoX: Black et al. 2022, arXiv:2204.06745. Phi-2: Microsoft 2023. Falcon: Almazrouei et al. 2023, arXiv:2311.16867.
"""

from stackjax.attention import Attention
from stackjax.feed_forward import FeedForward
from stackjax.interop.hf import causal, inert
from stackjax.interop.hf.architecture import Architecture
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.mapping import Table, dense, norm, tensor
from stackjax.interop.hf.rope import rotary
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import LayerNorm
from stackjax.parallel import Parallel
from stackjax.position import Rotary
from stackjax.recipe import PlainResidual, PreNorm, Recipe
from stackjax.recipe.residual import Plain, Pre

QUERY_KEY_VALUE = ("attention/query", "attention/key", "attention/value")
PARALLEL_NORM: Table = {"input_layernorm": norm("residual/parallel/norm")}


def _layer(attention: Attention, forward: FeedForward, norm: LayerNorm, *, norms: int) -> tuple[Layer, Recipe]:
    """The two side by side, with one norm before both or one before each; or, with no norms, one after another."""
    sublayers = (attention, forward)
    if not norms:
        return Layer(sublayers=sublayers), PreNorm(residual=Pre(norm=norm))
    if norms == 1:
        return Layer(sublayers=(Parallel(sublayers=sublayers),)), PreNorm(residual=Pre(norm=norm))
    return Layer(sublayers=(Parallel(sublayers=sublayers, norm=norm),)), PlainResidual(residual=Plain(final=norm))


def gpt_neox(config: Config) -> tuple[Model, Table]:
    """GPT-NeoX and Pythia from their config: a norm for each of the two."""
    heads = config.take("num_attention_heads")
    older = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    position = rotary(config, d_head=causal.head_width(config), share=0.25, older=older)
    attention = causal.attention(config, bias=config.take("attention_bias", True), position=position)
    activation = config.activation("hidden_act", "gelu")
    forward = FeedForward(d_hidden=config.take("intermediate_size"), activation=activation, bias=True)
    norms = 2 if config.take("use_parallel_residual", True) else 0
    layer, recipe = _layer(attention, forward, LayerNorm(eps=config.take("layer_norm_eps", 1e-5)), norms=norms)
    return causal.decoder(config, layer, recipe=recipe), _gpt_neox_tensors(heads)


def _gpt_neox_tensors(heads: int) -> Table:
    sublayers: Table = {
        "attention.query_key_value": dense(*QUERY_KEY_VALUE, groups=heads),
        "attention.dense": dense("attention/out"),
        "mlp.dense_h_to_4h": dense("feed_forward/up"),
        "mlp.dense_4h_to_h": dense("feed_forward/down"),
    }
    norms: Table = {
        "input_layernorm": (norm("residual/attention/norm"), norm("parallel/norm/attention")),
        "post_attention_layernorm": (norm("residual/feed_forward/norm"), norm("parallel/norm/feed_forward")),
    }
    ends: Table = {
        "gpt_neox.embed_in.weight": tensor("embedding/token"),
        "gpt_neox.final_layer_norm": norm("stack/leave/inner/norm"),
        "embed_out.weight": tensor("head/unembed", transposed=True),
    }
    return causal.layers(causal.side_by_side(sublayers), norms, ends=ends, module="gpt_neox.layers.{layer}.")


GPTJ_TENSORS: Table = causal.layers(
    {
        "ln_1": norm("residual/parallel/norm"),
        "attn.q_proj": dense("parallel/attention/query"),
        "attn.k_proj": dense("parallel/attention/key"),
        "attn.v_proj": dense("parallel/attention/value"),
        "attn.out_proj": dense("parallel/attention/out"),
        "mlp.fc_in": dense("parallel/feed_forward/up"),
        "mlp.fc_out": dense("parallel/feed_forward/down"),
    },
    ends={
        "transformer.wte.weight": tensor("embedding/token"),
        "transformer.ln_f": norm("stack/leave/inner/norm"),
        "lm_head.weight": tensor("head/unembed", transposed=True),
        "lm_head.bias": tensor("head/bias"),
    },
    module="transformer.h.{layer}.",
)


def gptj(config: Config) -> tuple[Model, Table]:
    """GPT-J from its config: one norm for both, and a head with a bias."""
    config.only(scale_attn_weights=True)
    config.rename(hidden_size="n_embd", num_hidden_layers="n_layer", num_attention_heads="n_head")
    config.rename(max_position_embeddings="n_positions", intermediate_size="n_inner")
    position = Rotary(d_rotary=config.take("rotary_dim", 64), interleaved=True)
    forward = FeedForward(
        d_hidden=config.take("intermediate_size", None),
        activation=config.activation("activation_function", "gelu_new"),
        bias=True,
    )
    norm = LayerNorm(eps=config.take("layer_norm_epsilon", 1e-5))
    layer, recipe = _layer(causal.attention(config, position=position), forward, norm, norms=1)
    return causal.decoder(config, layer, recipe=recipe, head={"bias": True}), GPTJ_TENSORS


PHI_TENSORS: Table = causal.layers(
    PARALLEL_NORM,
    causal.side_by_side(
        {
            "self_attn.q_proj": dense("attention/query"),
            "self_attn.k_proj": dense("attention/key"),
            "self_attn.v_proj": dense("attention/value"),
            "self_attn.dense": dense("attention/out"),
            "mlp.fc1": dense("feed_forward/up"),
            "mlp.fc2": dense("feed_forward/down"),
        }
    ),
    ends={
        "model.embed_tokens.weight": tensor("embedding/token"),
        "model.final_layernorm": norm("stack/leave/inner/norm"),
        "lm_head.weight": tensor("head/unembed", transposed=True),
        "lm_head.bias": tensor("head/bias"),
    },
)


def phi(config: Config) -> tuple[Model, Table]:
    """Phi-1, 1.5 and 2 from their config: as GPT-J, with biases everywhere."""
    config.only(qk_layernorm=False)
    position = rotary(config, d_head=causal.head_width(config), share=0.5)
    activation = config.activation("hidden_act", "gelu_new")
    forward = FeedForward(d_hidden=config.take("intermediate_size"), activation=activation, bias=True)
    norm = LayerNorm(eps=config.take("layer_norm_eps", 1e-5))
    layer, recipe = _layer(causal.attention(config, bias=True, position=position), forward, norm, norms=1)
    return causal.decoder(config, layer, recipe=recipe, head={"bias": True}), PHI_TENSORS


def falcon(config: Config) -> tuple[Model, Table]:
    """Falcon from its config: one norm for both in the 7B, one for each since the 40B."""
    config.only(alibi=False)
    config.rename(hidden_size="n_embed", num_hidden_layers="n_layer", num_attention_heads="n_head")
    heads, bias = config.take("num_attention_heads"), config.take("bias", False)
    newer = config.take("new_decoder_architecture", False)
    one, groups = config.take("multi_query", True), config.take("num_kv_heads", None) or heads
    groups = 1 if one and not newer else groups
    norms = config.take("num_ln_in_parallel_attn", None) or 2 if newer else 1
    norms = norms if config.take("parallel_attn", True) else 0
    if newer and not norms:
        raise ValueError("config.json has parallel_attn=False beside new_decoder_architecture=True, which never met")
    attention = Attention(
        n_heads=heads, n_kv_heads=groups, bias=(*causal.QUERY_KEY_VALUE, "out") if bias else (), position=rotary(config)
    )
    width = config.take("ffn_hidden_size", None) or 4 * config.take("hidden_size")
    forward = FeedForward(d_hidden=width, activation=config.activation("activation", "gelu"), bias=bias)
    norm = LayerNorm(eps=config.take("layer_norm_epsilon", 1e-5))
    layer, recipe = _layer(attention, forward, norm, norms=norms)
    return causal.decoder(config, layer, recipe=recipe, tied=True), _falcon_tensors(groups)


def _falcon_tensors(groups: int) -> Table:
    sublayers: Table = {
        "self_attention.query_key_value": dense(*QUERY_KEY_VALUE, groups=groups),
        "self_attention.dense": dense("attention/out"),
        "mlp.dense_h_to_4h": dense("feed_forward/up"),
        "mlp.dense_4h_to_h": dense("feed_forward/down"),
    }
    norms: Table = {
        "input_layernorm": (norm("residual/attention/norm"), norm("residual/parallel/norm")),
        "post_attention_layernorm": norm("residual/feed_forward/norm"),
        "ln_attn": norm("parallel/norm/attention"),
        "ln_mlp": norm("parallel/norm/feed_forward"),
    }
    ends: Table = {
        "transformer.word_embeddings.weight": tensor("embedding/token"),
        "transformer.ln_f": norm("stack/leave/inner/norm"),
        "lm_head.weight": tensor("head/unembed", transposed=True),
    }
    return causal.layers(causal.side_by_side(sublayers), norms, ends=ends, module="transformer.h.{layer}.")


GPT_NEOX = Architecture(
    describe=gpt_neox,
    classes=("GPTNeoXForCausalLM",),
    renames=((r"^lm_head\.", "embed_out."),),
    aliases=(("embed_out.weight", "gpt_neox.embed_in.weight"),),
    inert=inert.GPT_NEOX,
)
GPTJ = Architecture(
    describe=gptj,
    classes=("GPTJForCausalLM",),
    aliases=(("lm_head.weight", "transformer.wte.weight"),),
    inert=inert.GPTJ,
)
PHI = causal.architecture(phi, "Phi")
FALCON = Architecture(
    describe=falcon,
    classes=("FalconForCausalLM",),
    aliases=(("lm_head.weight", "transformer.word_embeddings.weight"),),
    inert=inert.FALCON,
)
