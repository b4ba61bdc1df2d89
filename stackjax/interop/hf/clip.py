"""CLIP's text tower: a causal pre-norm encoder whose output at a text's last token stands beside images.

Radford et al. 2021, arXiv:2103.00020.
"""

from stackjax.feed_forward import FeedForward
from stackjax.interop.hf import causal, inert
from stackjax.interop.hf.architecture import Architecture
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.mapping import Table, dense, norm, tensor
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import LayerNorm
from stackjax.position import Learned
from stackjax.recipe import PreNorm
from stackjax.recipe.residual import Pre

TENSORS: Table = causal.layers(
    {
        "layer_norm1": norm("residual/attention/norm"),
        "self_attn.q_proj": dense("attention/query"),
        "self_attn.k_proj": dense("attention/key"),
        "self_attn.v_proj": dense("attention/value"),
        "self_attn.out_proj": dense("attention/out"),
        "layer_norm2": norm("residual/feed_forward/norm"),
        "mlp.fc1": dense("feed_forward/up"),
        "mlp.fc2": dense("feed_forward/down"),
    },
    ends={
        "text_model.embeddings.token_embedding.weight": tensor("embedding/token"),
        "text_model.embeddings.position_embedding.weight": tensor("embedding/position/table"),
        "text_model.final_layer_norm": norm("stack/leave/inner/norm"),
        "text_projection.weight": tensor("head/unembed", transposed=True),
    },
    module="text_model.encoder.layers.{layer}.",
)


def describe(config: Config) -> tuple[Model, Table]:
    """CLIP's text tower from its config. In place of logits every token has the projection; CLIP reads the last's."""
    activation = config.activation("hidden_act", "quick_gelu")
    forward = FeedForward(d_hidden=config.take("intermediate_size"), activation=activation, bias=True)
    layer = Layer(sublayers=(causal.attention(config, bias=True), forward))
    recipe = PreNorm(residual=Pre(norm=LayerNorm(eps=config.take("layer_norm_eps", 1e-5))))
    embedding = {"position": Learned(n_positions=config.take("max_position_embeddings", 77))}
    head = {"n_outputs": config.take("projection_dim", 512)}
    return causal.decoder(config, layer, recipe=recipe, embedding=embedding, head=head), TENSORS


CLIP_TEXT = Architecture(describe=describe, classes=("CLIPTextModelWithProjection",), inert=inert.CLIP_TEXT)
