"""Inside Linen: the same numbers as the pure functions and as a stack written by hand with nn.scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.training.train_state import TrainState

import stackjax as sj
from stackjax.interop.linen import Wrapped
from stackjax.testing import largest_difference, normal, perturbed

D, H, F, T, DEPTH = 16, 2, 24, 5, 3
LAYER = sj.Layer(sublayers=(sj.Attention(n_heads=H), sj.FeedForward(d_hidden=F)))
STACK = sj.Stack.of(LAYER, depth=DEPTH, d_model=D, recipe=sj.recipe.PreNorm())
MODEL = sj.decoder(vocab=7, d_model=D, depth=2, n_heads=H, dropout=0.5)


class Block(nn.Module):
    """A pre-norm layer in Linen's own words."""

    @nn.compact
    def __call__(self, x, _):
        h = nn.LayerNorm(epsilon=1e-5, name="attention_norm")(x)
        mask = nn.make_causal_mask(jnp.zeros(x.shape[:-1]))
        x = x + nn.MultiHeadDotProductAttention(num_heads=H, use_bias=False, name="attention")(h, mask=mask)
        h = nn.LayerNorm(epsilon=1e-5, name="feed_forward_norm")(x)
        h = nn.gelu(nn.Dense(F, use_bias=False, name="up")(h), approximate=True)
        return x + nn.Dense(D, use_bias=False, name="down")(h), None


class Twin(nn.Module):
    """Those layers under nn.scan."""

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=DEPTH)
        x, _ = scan(name="blocks")(x, None)
        return nn.LayerNorm(epsilon=1e-5, name="norm")(x)


def renamed(params):
    """Our stacked parameters under Linen's names: no transposition, heads get an axis of their own."""
    own = params["segments"]["0"]["0"]
    attention, heads = own["attention"], (DEPTH, D, H, D // H)
    blocks = {
        "attention_norm": own["residual"]["attention"]["norm"],
        "feed_forward_norm": own["residual"]["feed_forward"]["norm"],
        "attention": {
            **{name: {"kernel": attention[name].reshape(heads)} for name in ("query", "key", "value")},
            "out": {"kernel": attention["out"].reshape(DEPTH, H, D // H, D)},
        },
        "up": {"kernel": own["feed_forward"]["up"]},
        "down": {"kernel": own["feed_forward"]["down"]},
    }
    return {"blocks": blocks, "norm": params["leave"]["inner"]["norm"]}


@pytest.mark.thorough
def test_equal_to_a_linen_twin(x64):
    params, x, weights = perturbed(STACK.init(jax.random.key(0), jnp.float64)), normal(2, T, D), normal(2, T, D, key=1)
    shapes = jax.tree.map(jnp.shape, Twin().init(jax.random.key(0), x)["params"])
    assert shapes == jax.tree.map(jnp.shape, renamed(params))

    def ours(params, x):
        return jnp.sum(weights * STACK.apply(params, x)[0])

    def theirs(params, x):
        return jnp.sum(weights * Twin().apply({"params": renamed(params)}, x))

    found, expected = jax.jit(lambda *args: [jax.value_and_grad(f, (0, 1))(*args) for f in (ours, theirs)])(params, x)
    assert largest_difference(found, expected) < 1e-10


@pytest.mark.thorough
@pytest.mark.parametrize("described", [STACK, MODEL], ids=["stack", "model"])
def test_wrapped_is_the_pure_function(x64, described):
    module = Wrapped(described=described, param_dtype=jnp.float64)
    x = normal(2, T, D) if described is STACK else jnp.arange(2 * T).reshape(2, T) % 7
    variables = module.init(jax.random.key(0), x)
    assert jax.tree.structure(variables["params"]) == jax.tree.structure(described.init(jax.random.key(0)))
    params = perturbed(variables["params"])

    def loss(apply, params):
        y, result = apply(params)
        return jnp.sum(y[..., 0]), result.measure

    def both(params):
        options = {"measure": sj.probe.stream, "remat": "layer"}
        ways = lambda p: module.apply({"params": p}, x, **options), lambda p: described.apply(p, x, **options)
        return [jax.value_and_grad(loss, 1, has_aux=True)(way, params) for way in ways]

    found, expected = jax.jit(both)(params)
    assert largest_difference(found, expected) == 0


def test_inside_a_larger_module():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            y, result = Wrapped(described=STACK, name="body")(nn.Dense(D)(x), measure=sj.probe.stream)
            return nn.Dense(3)(y), result.measure["stream_rms"]

    x = normal(2, T, 4)
    variables = Net().init(jax.random.key(0), x)
    y, rms = Net().apply(variables, x)
    assert y.shape == (2, T, 3) and rms.shape == (DEPTH,)
    assert jax.tree.structure(variables["params"]["body"]) == jax.tree.structure(STACK.init(jax.random.key(0)))


@pytest.mark.thorough
def test_dropout_draws_from_its_own_stream():
    module, tokens = Wrapped(described=MODEL), jnp.zeros((1, T), int)
    variables = module.init(jax.random.key(0), tokens)
    clean = module.apply(variables, tokens)[0]
    noisy = [module.apply(variables, tokens, rngs={"dropout": jax.random.key(i)})[0] for i in (1, 1, 2)]
    assert np.array_equal(clean, module.apply(variables, tokens)[0])
    assert np.array_equal(noisy[0], noisy[1]) and not np.allclose(noisy[0], noisy[2])
    assert not np.allclose(noisy[0], clean)


@pytest.mark.thorough
def test_a_train_state_trains_it():
    module, tokens = Wrapped(described=MODEL), jax.random.randint(jax.random.key(1), (4, 8), 0, 7)
    params = module.init(jax.random.key(0), tokens)["params"]
    tx = sj.optim.adamw(MODEL, learning_rate=0.01, weight_decay=0.1)
    state = TrainState.create(apply_fn=module.apply, params=params, tx=tx)

    @jax.jit
    def step(state):
        def loss(params):
            return sj.loss.next_token(state.apply_fn({"params": params}, tokens)[0], tokens)

        value, gradient = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=gradient), value

    values = []
    for _ in range(10):
        state, value = step(state)
        values.append(float(value))
    assert values[-1] < 0.8 * values[0] and state.step == 10
