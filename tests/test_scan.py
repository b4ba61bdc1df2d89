"""The drivers: how n layers are run and rematerialised."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stackjax as sj
from stackjax import scan
from stackjax.testing import largest_difference, normal
from tests.helpers import daily


@settings(max_examples=300)
@given(st.integers(1, 5000))
def test_chunks_cover_n_in_about_the_root_of_n(n):
    count, length, tail = scan.chunks(n)
    assert count * length + tail == n and 0 <= tail < length
    assert max(count, length) <= 2 * math.ceil(math.sqrt(n)) + 1


@pytest.mark.parametrize(
    ("n", "expected"), [(1, (1, 1, 0)), (6, (3, 2, 0)), (7, (2, 3, 1)), (1000, (40, 25, 0)), (127, (10, 12, 7))]
)
def test_chunks(n, expected):
    assert scan.chunks(n) == expected


def body(carry, x):
    carry = jnp.tanh(carry @ x)
    return carry, jnp.sum(carry)


@pytest.mark.parametrize("n", daily([0, 1, 2, 3, 5, 7, 12], 0, 1, 7))
def test_every_driver_gives_the_same(x64, n):
    xs, carry = normal(n, 3, 3), normal(2, 3, key=1)

    def run(options, carry, xs):
        one = scan.rematerialise(body, options.get("remat", "none"), inlined=options.get("loop", False))
        options = {name: value for name, value in options.items() if name != "remat"}
        last, ys = scan.run(one, carry, xs, n, **options)
        return jnp.sum(last**2) + jnp.sum(ys * jnp.arange(n)), (last, ys)

    ways = (
        {"loop": True},
        {},
        {"unroll": 2},
        {"nested": True},
        {"nested": True, "loop": True},
        {"remat": "layer"},
        {"remat": jax.checkpoint_policies.dots_saveable, "nested": True},
    )
    every = jax.jit(lambda *inputs: [jax.value_and_grad(run, (1, 2), has_aux=True)(way, *inputs) for way in ways])
    reference, *others = every(carry, xs)
    assert reference[0][1][1].shape == (n,)
    for way, other in zip(ways[1:], others, strict=True):
        assert largest_difference(other, reference) < 1e-12, way


@pytest.mark.thorough
def test_offload_keeps_what_is_named_in_the_memory_of_the_host():
    """For every layer, and nothing else; the gradients stay what they are."""
    model = sj.decoder(vocab=16, d_model=32, depth=4, n_heads=2, feed_forward=sj.FeedForward(d_hidden=48))
    params, tokens = model.init(jax.random.key(0)), jnp.arange(16).reshape(2, 8)

    def gradient(remat):
        return jax.grad(lambda params: sj.loss.next_token(model.apply(params, tokens, remat=remat)[0], tokens))

    program = str(jax.make_jaxpr(gradient("offload"))(params))
    assert set(re.findall(r"f32<host>\[4,([\d,]+)\]", program)) == {"2,8,32", "2,8,48"}
    assert "<host>" not in str(jax.make_jaxpr(gradient("layer"))(params))
    offloaded, plain = (jax.jit(gradient(remat))(params) for remat in ("offload", "none"))
    assert largest_difference(offloaded, plain) < 1e-5


def test_unknown_remat():
    with pytest.raises(ValueError, match="remat must be"):
        scan.rematerialise(body, "every", inlined=False)  # pyright: ignore[reportArgumentType]


def test_tap_is_the_identity_and_its_gradient_the_squared_norm(x64):
    stream, weights = {"a": normal(2, 3), "b": normal(4, key=1)}, {"a": normal(2, 3, key=2), "b": normal(4, key=3)}

    def loss(stream, t):
        tapped = scan.tap(stream, t)
        return sum(jnp.sum(w * x) for w, x in zip(jax.tree.leaves(weights), jax.tree.leaves(tapped), strict=True))

    through, square = jax.grad(loss, (0, 1))(stream, 0.0)
    assert all(map(np.array_equal, jax.tree.leaves(through), jax.tree.leaves(weights)))
    np.testing.assert_allclose(square, sum(np.sum(np.square(w)) for w in jax.tree.leaves(weights)), rtol=1e-12)
