"""The checks of what a recipe tells optimisers, and of positions on the stream: a wrong one is named."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import stackjax as sj
from stackjax import testing
from stackjax.position import Position
from stackjax.recipe import Multiplier, PreNorm
from stackjax.recipe.base import checked_gain
from stackjax.testing import suite


@dataclass(frozen=True, kw_only=True)
class Told(PreNorm):
    """Gain and multipliers as they are given."""

    numbers: Any = 1.0
    factors: Multiplier = field(default_factory=Multiplier)

    def gain(self, role, geometry):
        return jnp.asarray(self.numbers, jnp.float32)

    def multiplier(self, role, geometry):
        return replace(self.factors, learning_rate=jnp.asarray(self.factors.learning_rate, jnp.float32))


@dataclass(frozen=True, kw_only=True)
class Shrinking(PreNorm):
    """Projects towards zero, further every time."""

    def project(self, params, declaration):
        return jax.tree.map(lambda x: 0.9 * x, params)


@dataclass(frozen=True, kw_only=True)
class Wide(Position):
    """Adds float32 numbers to a stream of any dtype."""

    def embed(self, params, position, x):
        return x + jnp.sin(position["index"][..., None].astype(jnp.float32) + jnp.arange(x.shape[-1]))


UNUSABLE = [
    ({"numbers": jnp.nan}, r"gain for the role .* is nan; it must be finite"),
    ({"numbers": (1.0, 1.0, 1.0)}, r"Told's gain for the role .* has the shape \(3,\); .* \(2,\)"),
    ({"factors": Multiplier(learning_rate=jnp.nan)}, "multiplier of learning_rate for the role .* is nan"),
    ({"factors": Multiplier(weight_decay=-1.0)}, r"multiplier of weight_decay .* is -1.0; it must be finite and 0 or"),
    ({"factors": Multiplier(eps=0.0)}, "multiplier of eps .* is 0.0; it must be finite and more than 0"),
    ({"factors": Multiplier(learning_rate=(1.0,))}, r"Told's multiplier of learning_rate .* has the shape \(1,\)"),
]


@pytest.mark.parametrize(("options", "message"), UNUSABLE, ids=lambda value: str(value)[:40])
def test_unusable_factors_are_named(options, message):
    with pytest.raises(AssertionError, match=f"gains and multipliers are usable numbers.*{message}"):
        testing.check_factors(suite.small_decoder(recipe=Told(**options)))


def test_usable_factors_pass():
    testing.check_factors(suite.small_decoder(recipe=Told(numbers=(1.0, -0.5), factors=Multiplier(weight_decay=0.0))))


def test_factors_of_other_shapes_are_refused_where_they_are_read():
    geometry = sj.recipe.Geometry(depth=2, d_model=16)
    for numbers in ((1.0,), (1.0, 1.0, 1.0), ((1.0, 1.0),)):
        with pytest.raises(ValueError, match=r"Told's gain for the role 'query' has the shape .*\(2,\)"):
            checked_gain(Told(numbers=numbers), "query", geometry)
        model = suite.small_decoder(recipe=Told(factors=Multiplier(learning_rate=numbers)))
        params, tx = model.init(jax.random.key(0)), sj.optim.adamw(model, learning_rate=1e-3)
        with pytest.raises(ValueError, match=r"Told's multiplier of learning_rate for the role .*\(2,\)"):
            tx.update(params, tx.init(params), params)


def test_a_projection_that_moves_on_is_named():
    with pytest.raises(AssertionError, match=r"Shrinking.*: applying project twice changes nothing: .* differs by"):
        testing.check_project(suite.small_decoder(recipe=Shrinking()))
    testing.check_project(suite.small_decoder(recipe=sj.recipe.NGPT()))


def test_a_position_that_widens_the_stream_is_named():
    with pytest.raises(AssertionError, match=r"the stream behind the position is float32; .* bfloat16"):
        testing.check_dtype(suite.small_decoder(position=Wide()))


def test_the_embedding_keeps_the_dtype_of_the_stream():
    embedding = sj.Embedding(vocab=5, position=Wide())
    params = sj.parameter.realise(jax.random.key(0), sj.parameter.declare(embedding.spec(8)))
    assert embedding.apply(params, jnp.arange(5), dtype=jnp.bfloat16).dtype == jnp.bfloat16
