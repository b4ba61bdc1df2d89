"""The model in stackjax."""

from dataclasses import replace

import jax
import optax

import stackjax as sj
from stackjax.attention import Backend
from stackjax.option import CommonOptions
from stackjax.sublayer import Params, Positions

from .base import ADAM, EPS, POLICIES, STD, JaxPeer, Size, Weights


class Stackjax(JaxPeer):
    """`sj.decoder` with learned positions and `sj.optim.adamw`.

    Args:
        size: of the model.
        remat: one of `remats`.
        backend: of attention.
    """

    remats = ("none", "layer", "nested", "dots")

    def __init__(self, size: Size, remat: str = "none", backend: Backend | None = None):
        super().__init__(size, remat)
        self.unroll = 1
        model = sj.decoder(
            vocab=size.vocab,
            d_model=size.d_model,
            depth=size.depth,
            attention=sj.Attention(n_heads=size.n_heads, backend=backend),
            recipe=sj.recipe.PreNorm(residual=sj.residual.Pre(norm=sj.LayerNorm(eps=EPS))),
            position=sj.position.Learned(n_positions=size.context),
        )
        self.model = replace(model, embedding=replace(model.embedding, scale=1.0, std=STD))

    def init(self, key: jax.Array) -> Params:
        return self.model.init(key)

    def load(self, weights: Weights) -> Params:
        def norm(name: str) -> dict:
            return {kind: weights[f"{name}_norm_{kind}"] for kind in ("scale", "bias")}

        params = jax.eval_shape(self.init, jax.random.key(0))
        params["embedding"] |= {"token": weights["token"], "position": {"table": weights["position"]}}
        layer = params["stack"]["segments"]["0"]["0"]
        layer["attention"] |= {name: weights[name] for name in ("query", "key", "value", "out")}
        layer["feed_forward"] |= {name: weights[name] for name in ("up", "down")}
        layer["residual"] |= {sublayer: {"norm": norm(sublayer)} for sublayer in ("attention", "feed_forward")}
        params["stack"]["leave"]["inner"]["norm"] = norm("final")
        params["head"]["unembed"] = weights["unembed"]
        return params

    def loss(self, params: Params, tokens: jax.Array) -> jax.Array:
        return sj.loss.next_token(self.logits(params, tokens), tokens)

    def logits(self, params: Params, tokens: jax.Array, position: Positions | None = None) -> jax.Array:
        """Logits (B, T, V)."""
        options: CommonOptions = {"remat": POLICIES.get(self.remat, self.remat), "unroll": self.unroll}
        side_inputs = sj.SideInputs(position=position)
        return self.model.apply(params, tokens, side_inputs, dtype=self.size.dtype, **options)[0]

    @property
    def optimiser(self) -> optax.GradientTransformation:
        return sj.optim.adamw(self.model, **ADAM)


class Unrolled(Stackjax):
    """stackjax with its layers one after another in the program, not in a loop."""

    remats = ("none", "layer", "dots")

    def __init__(self, size: Size, remat: str = "none"):
        super().__init__(size, remat)
        self.unroll = size.depth
