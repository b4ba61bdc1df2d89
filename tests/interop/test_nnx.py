"""Inside NNX, in tree mode: the same numbers as the pure functions and as a stack written by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import stackjax as sj
from stackjax.interop.nnx import Wrapped, transform
from stackjax.testing import largest_difference, normal, perturbed
from tests.interop.test_linen import DEPTH, MODEL, STACK, D, F, H, T, renamed


class Block(nnx.Module):
    """A pre-norm layer in NNX's own words."""

    def __init__(self, rngs):
        options = {"rngs": rngs, "param_dtype": jnp.float64}
        self.attention_norm = nnx.LayerNorm(D, epsilon=1e-5, **options)
        self.attention = nnx.MultiHeadAttention(H, D, use_bias=False, decode=False, **options)
        self.feed_forward_norm = nnx.LayerNorm(D, epsilon=1e-5, **options)
        self.up = nnx.Linear(D, F, use_bias=False, **options)
        self.down = nnx.Linear(F, D, use_bias=False, **options)

    def __call__(self, x):
        x = x + self.attention(self.attention_norm(x), mask=nnx.make_causal_mask(jnp.zeros(x.shape[:-1])))
        return x + self.down(nnx.gelu(self.up(self.feed_forward_norm(x)), approximate=True))


def twin(blocks, norm, x):
    """NNX modules are pytrees, so the stacked blocks go straight through a scan."""
    x, _ = jax.lax.scan(lambda h, block: (block(h), None), x, blocks)
    return sj.norm.layer_norm(norm, x)


@pytest.mark.thorough
def test_equal_to_an_nnx_twin(x64):
    params, x, weights = perturbed(STACK.init(jax.random.key(0), jnp.float64)), normal(2, T, D), normal(2, T, D, key=1)
    structure, _ = nnx.split(nnx.vmap(Block, graph=False)(nnx.Rngs(0).split(DEPTH)), graph=False)

    def theirs(params, x):
        own = renamed(params)
        blocks = nnx.merge(structure, nnx.State(own["blocks"]))
        return jnp.sum(weights * twin(blocks, own["norm"], x))

    def ours(params, x):
        return jnp.sum(weights * STACK.apply(params, x)[0])

    found, expected = jax.jit(lambda *args: [jax.value_and_grad(f, (0, 1))(*args) for f in (ours, theirs)])(params, x)
    # NNX goes through jax.nn.dot_product_attention, whose softmax is float32 here too.
    assert largest_difference(found, expected) < 1e-5


def test_wrapped_is_the_pure_function():
    module = Wrapped(MODEL, rngs=nnx.Rngs(0))
    params = module.pure()
    assert jax.tree.structure(params) == jax.tree.structure(MODEL.init(jax.random.key(0)))
    tokens = jnp.arange(2 * T).reshape(2, T) % 7

    def loss(y, result):
        return jnp.sum(y[..., 0]), result.measure

    options = {"measure": sj.probe.stream, "remat": "layer"}
    expected = jax.value_and_grad(lambda p: loss(*MODEL.apply(p, tokens, **options)), has_aux=True)
    found = nnx.value_and_grad(lambda module: loss(*module(tokens, **options)), has_aux=True, graph=False)
    (value, measure), gradient = nnx.jit(found, graph=False)(module)
    (value_, measure_), gradient_ = jax.jit(expected)(params)
    assert largest_difference((value, measure), (value_, measure_)) < 1e-5
    assert largest_difference(jax.tree.leaves(gradient), jax.tree.leaves(gradient_)) < 1e-4


def test_split_and_merge():
    module = Wrapped(STACK, rngs=nnx.Rngs(0))
    again = nnx.merge(*nnx.split(module, graph=False))
    x = normal(1, T, D)
    assert np.array_equal(again(x)[0], module(x)[0])


class Net(nnx.Module):
    """A larger model around a stack."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(7, D, rngs=rngs)
        self.body = Wrapped(STACK, rngs=rngs)
        self.head = nnx.Linear(D, 7, rngs=rngs)

    def __call__(self, tokens):
        return self.head(self.body(self.embed(tokens))[0])


TOKENS = jax.random.randint(jax.random.key(1), (4, 8), 0, 7)


def trained(model, tx, logits, steps=10):
    """Losses of a few steps with nnx.Optimizer."""
    optimiser = nnx.Optimizer(model, tx, wrt=nnx.Param, graph=False)

    @nnx.jit(graph=False)
    def step(model, optimiser):
        def loss(model):
            return sj.loss.next_token(logits(model), TOKENS)

        value, gradient = nnx.value_and_grad(loss, graph=False)(model)
        optimiser.update(model, gradient)
        return value

    return [float(step(model, optimiser)) for _ in range(steps)]


def test_optax_trains_a_model_around_a_stack():
    values = trained(Net(nnx.Rngs(0)), optax.adamw(0.01), lambda model: model(TOKENS))
    assert values[-1] < 0.8 * values[0]


@pytest.mark.thorough
def test_our_optimisers_train_it_step_for_step_as_outside():
    """With running statistics among the parameters, which the optimiser must not see."""
    rule = sj.recipe.CompleteP(base_width=8, residual=sj.residual.Pre(norm=sj.BatchNorm()))
    described = sj.decoder(vocab=7, d_model=D, depth=2, n_heads=H, recipe=rule)
    tx = optax.chain(
        sj.optim.clip_by_layer_norm(described, 1.0), sj.optim.muon(described, learning_rate=0.02, weight_decay=0.1)
    )
    module = Wrapped(described, rngs=nnx.Rngs(0))
    params = module.pure()
    values = trained(module, transform(described, tx), lambda model: model(TOKENS)[0], steps=3)

    @jax.jit
    def step(params, state):
        def loss(params):
            return sj.loss.next_token(described.apply(params, TOKENS)[0], TOKENS)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, expected = tx.init(params), []
    for _ in range(3):
        params, state, value = step(params, state)
        expected.append(float(value))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert largest_difference(module.pure(), params) < 1e-3
    leaves = jax.tree.leaves(module.params, is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert {type(leaf) for leaf in leaves} == {nnx.Param, nnx.BatchStat}


def test_running_statistics_are_set_and_nothing_else():
    rule = sj.recipe.PreNorm(residual=sj.residual.Pre(norm=sj.BatchNorm()))
    described = sj.decoder(vocab=7, d_model=D, depth=2, n_heads=H, recipe=rule)
    module = Wrapped(described, rngs=nnx.Rngs(0))
    before = module.pure()

    @nnx.jit
    def step(module):
        _, result = module(TOKENS)
        module.update_statistics(result.state)
        return result.state

    expected = described.update_statistics(before, step(module))
    assert largest_difference(module.pure(), expected) < 1e-6 < largest_difference(before, expected)
    leaves = jax.tree.leaves(module.params, is_leaf=lambda x: isinstance(x, nnx.Variable))
    changed = [leaf for leaf, old in zip(leaves, jax.tree.leaves(before), strict=True) if jnp.any(leaf[...] != old)]
    assert changed and {type(leaf) for leaf in changed} == {nnx.BatchStat}


def part(path, _):
    return "body" if path[0].key == "body" else "rest"


def test_our_optimisers_train_the_stack_in_a_larger_model():
    """One that reads the loss beside the gradient included."""
    body = transform(STACK, optax.chain(sj.optim.adamw(STACK, learning_rate=0.01), optax.contrib.reduce_on_plateau()))
    parts = {"body": body, "rest": optax.adamw(0.01)}
    tx = optax.partition(parts, functools.partial(jax.tree_util.tree_map_with_path, part))
    net = Net(nnx.Rngs(0))
    optimiser = nnx.Optimizer(net, tx, wrt=nnx.Param)
    values = []
    for _ in range(8):
        value, gradient = nnx.value_and_grad(lambda net: sj.loss.next_token(net(TOKENS), TOKENS))(net)
        optimiser.update(net, gradient, value=value)
        values.append(float(value))
    assert values[-1] < 0.8 * values[0]


def test_parameters_beside_those_of_a_stack_are_refused():
    tx = transform(STACK, sj.optim.adamw(STACK, learning_rate=0.01))
    with pytest.raises(ValueError, match=r"for no others; got .*, among them embed/embedding: .*optax\.partition"):
        nnx.Optimizer(Net(nnx.Rngs(0)), tx, wrt=nnx.Param)
