"""The scan that keeps one copy of a history: equal to the loop, and linear in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.history_cost import Plain
from stackjax import scan
from stackjax.history import History
from stackjax.recipe import AttentionResiduals, DenseFormer
from stackjax.testing import largest_difference, normal, perturbed
from tests.helpers import daily
from tests.recipe.toy import toy_stack

LAYERS, WIDTH = 6, 3


def run(weight, query, x, *, loop):
    """A scan with all that makes it hard: what is closed over, integers and keys in xs, integers and NaN-prone ys."""
    shift = jnp.arange(WIDTH) * jnp.where(x[0, 0] > -9, 1, 0)

    def body(carry, at):
        history, x = carry["history"], carry["x"]
        logits = jnp.where(history.written(at["slot"])[:, None], jnp.sum(history.slots * at["query"], -1), -jnp.inf)
        read = history.sum(jax.nn.softmax(logits, 0))
        y = jnp.tanh(read @ weight + x) + shift + jax.random.normal(at["key"], (WIDTH,))
        seen = {"slot": at["slot"], "sum": jnp.sum(y), "root": jnp.sqrt(jnp.sum(0 * y))}
        return {"history": history.write(at["slot"], y), "x": 0.9 * x + y}, seen

    xs = {"slot": jnp.arange(1, LAYERS + 1), "query": query, "key": jax.random.split(jax.random.key(2), LAYERS)}
    carry = {"history": History.start(x, LAYERS + 1), "x": x}
    last, ys = scan.run(body, carry, xs, LAYERS, loop=loop)
    return jnp.sum(last["history"].slots ** 2) + jnp.sum(last["x"]) + jnp.sum(ys["sum"] ** 3), ys


ARGUMENTS = (0, 1, 2)


def arguments():
    return normal(WIDTH, WIDTH), normal(LAYERS, WIDTH, key=1), normal(4, WIDTH, key=2)


def loss(*side_inputs, loop):
    return run(*side_inputs, loop=loop)[0]


def pairs(make):
    """A transformation of the loop and of the scan."""
    return make(lambda *side_inputs: loss(*side_inputs, loop=True)), make(
        lambda *side_inputs: loss(*side_inputs, loop=False)
    )


@pytest.mark.parametrize("name", daily(["jit", "jit inside", "vmap", "vmap of jit", "second"], "jit"))
def test_gradients_equal_the_loops(name, x64):
    transformations = {
        "jit": lambda f: jax.jit(jax.value_and_grad(f, ARGUMENTS)),
        "jit inside": lambda f: jax.value_and_grad(jax.jit(f), ARGUMENTS),
        "vmap": lambda f: jax.jit(
            jax.grad(lambda w, q, x: jnp.sum(jax.vmap(lambda s: f(s * w, q, x))(jnp.arange(3.0))))
        ),
        "vmap of jit": lambda f: jax.grad(
            lambda w, q, x: jnp.sum(jax.vmap(jax.jit(f), (None, 0, None))(w, jnp.stack((q, 2 * q)), x)), ARGUMENTS
        ),
        "second": lambda f: jax.jit(jax.grad(lambda w, q, x: jnp.sum(jax.grad(f)(w, q, x) ** 2), ARGUMENTS)),
    }
    reference, ours = (f(*arguments()) for f in pairs(transformations[name]))
    assert largest_difference(ours, reference) < 1e-11


def test_what_is_only_observed_is_not_differentiated(x64):
    """The square root of zero among the ys has an infinite slope; as long as no loss uses it, nobody notices."""
    gradient, ys = jax.grad(run, has_aux=True)(*arguments(), loop=False)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(ys["slot"], np.arange(1, LAYERS + 1))
    np.testing.assert_array_equal(ys["root"], 0)


def test_forward_mode_is_refused_and_the_loop_has_it(x64):
    side_inputs = arguments()
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: loss(*side_inputs[:2], x, loop=False), (side_inputs[2],), (side_inputs[2],))
    _, tangent = jax.jvp(lambda x: loss(*side_inputs[:2], x, loop=True), (side_inputs[2],), (side_inputs[2],))
    reverse = jax.grad(lambda x: loss(*side_inputs[:2], x, loop=False))(side_inputs[2])
    np.testing.assert_allclose(tangent, jnp.sum(reverse * side_inputs[2]), rtol=1e-10)


def test_write():
    history = History.start(jnp.ones((2, 3)), 4)
    history = history.write(jnp.int32(2), 5 * jnp.ones((2, 3))).write(jnp.int32(1), jnp.ones((2, 3)), when=False)
    np.testing.assert_array_equal(history.slots[:, 0, 0], [1, 0, 5, 0])
    np.testing.assert_array_equal(history.written(jnp.int32(2)), [True, True, False, False])
    np.testing.assert_array_equal(history.sum(jnp.array([1.0, 9, 2, 9]))[0], [11, 11, 11])


@pytest.mark.parametrize(
    "recipe", daily([DenseFormer(), AttentionResiduals()], AttentionResiduals()), ids=lambda r: type(r).__name__
)
def test_recipes_equal_a_plain_scan(recipe, x64):
    """The loop, and every rematerialisation, are in the conformance tests."""
    stacks = [toy_stack(r, 4) for r in (recipe, Plain(base=recipe))]
    params = perturbed(stacks[0].init(jax.random.key(0), jnp.float64))
    x = normal(2, 5, 8, key=1)

    def loss(stack):
        return lambda params: jnp.sum(stack.apply(params, x)[0] ** 3)

    ours, plain = jax.jit(lambda params: [jax.value_and_grad(loss(stack))(params) for stack in stacks])(params)
    assert largest_difference(ours, plain) < 1e-10


def temporaries(recipe, depth, remat="none"):
    """Bytes that the gradient of a loss reserves, in units of one (B, T, D)."""
    stack = toy_stack(recipe, depth)
    params, x = stack.init(jax.random.key(0)), normal(2, 32, 8)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(stack.apply(params, x, remat=remat)[0] ** 2)))
    return gradient.lower(params).compile().memory_analysis().temp_size_in_bytes / x.nbytes


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", [DenseFormer(), AttentionResiduals()], ids=lambda r: type(r).__name__)
def test_memory_grows_linearly_with_depth(recipe):
    """From 64 to 128 layers by a factor of 2, where a plain scan that recomputes each layer goes towards 4."""
    small, large = (temporaries(recipe, depth) for depth in (64, 128))
    assert large < 2.1 * small
    plain = [temporaries(Plain(base=recipe), depth, "layer") for depth in (64, 128)]
    assert plain[1] > 3 * plain[0]
    assert large < plain[1] / 5
