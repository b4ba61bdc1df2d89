"""OLMo 2: norms behind the branches, and queries and keys normalised over all heads. OLMo 2 2024, arXiv:2501.00656."""

from stackjax.attention import Attention
from stackjax.interop.hf import causal
from stackjax.interop.hf.config import Config
from stackjax.interop.hf.heads import NormedOverHeads, OverHeads
from stackjax.interop.hf.mapping import Table, norm
from stackjax.interop.hf.rope import rotary
from stackjax.layer import Layer
from stackjax.model import Model
from stackjax.norm import RMSNorm
from stackjax.recipe import ResPostNorm
from stackjax.recipe.residual import BranchNormed

NORMS: Table = {
    "post_attention_layernorm": norm("residual/attention/norm"),
    "post_feedforward_layernorm": norm("residual/feed_forward/norm"),
}
TENSORS: Table = causal.layers(NORMS, causal.ATTENTION, causal.FORWARD)


def attention(config: Config, norm: RMSNorm) -> Attention:
    """OLMo 2's and OLMoE's attention."""
    bias, qk_norm = config.take("attention_bias", False), OverHeads(norm=norm)
    return causal.attention(config, kind=NormedOverHeads, bias=bias, position=rotary(config), qk_norm=qk_norm)


def olmo2(config: Config) -> tuple[Model, Table]:
    """OLMo 2 from its config."""
    norm = RMSNorm(eps=config.take("rms_norm_eps", 1e-5))
    forward = causal.feed_forward(config, config.activation("hidden_act", "silu"))
    layer, recipe = Layer(sublayers=(attention(config, norm), forward)), ResPostNorm(residual=BranchNormed(norm=norm))
    return causal.decoder(config, layer, recipe=recipe), TENSORS


OLMO2 = causal.architecture(olmo2, "Olmo2")
