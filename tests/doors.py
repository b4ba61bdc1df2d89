"""The models, parameters and tokens with which the doors are tried."""

import jax
import jax.numpy as jnp

import stackjax as sj
from stackjax.testing import perturbed

V, D, T = 11, 8, 5
SIZES = {"vocab": V, "d_model": D, "n_heads": 2, "feed_forward": sj.FeedForward(d_hidden=12)}
MODEL = sj.decoder(**SIZES, depth=2)
PARAMS = perturbed(MODEL.init(jax.random.key(0)))
BOTH = sj.encoder_decoder(**SIZES, depth=1, recipe=sj.recipe.DeepNorm())
BOTH_PARAMS = BOTH.init(jax.random.key(0))
TOKENS = jnp.arange(2 * T).reshape(2, T) % V


def apply(model=MODEL, params=PARAMS, tokens=TOKENS, side_inputs=None, **options):
    return model.apply(params, tokens, side_inputs, **options)[0]


def at(**position):
    return sj.SideInputs(position={name: jnp.asarray(x) for name, x in position.items()})
