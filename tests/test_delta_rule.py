"""The gated delta rule against a loop over tokens in NumPy, in padded and packed rows, decoded, and in a stack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import delta_rule, testing
from stackjax.testing import largest_difference, normal, perturbed

SUB = sj.GatedDeltaNet(n_heads=4, n_key_heads=2, d_head=3, d_value=5, kernel=3, chunk=4)
D, T = 8, 11


def parameters(sublayer=SUB):
    declaration = sj.parameter.declare(sublayer.spec(D))
    return perturbed(sj.parameter.realise(jax.random.key(0), declaration, dtype=jnp.float64))


def run(params, x, sublayer=SUB, **position):
    where = {name: jnp.asarray(value) for name, value in position.items()} or None
    return jax.jit(lambda params, x: sublayer.apply(params, x, sj.SideInputs(position=where))[0])(params, x)


def silu(x):
    return x / (1 + np.exp(-x))


def by_hand(p, x, sublayer=SUB):
    """The equations of the docstring, for one row, one token and one head at a time."""
    p = jax.tree.map(np.asarray, p)
    groups, width, n_heads = sublayer.groups, sublayer.d_head, sublayer.n_heads
    plain = np.concatenate([x @ p[name] for name in ("query", "key", "value")], -1)
    mixed = np.zeros_like(plain)
    for t in range(len(x)):
        for back in range(min(sublayer.kernel, t + 1)):
            mixed[t] += p["convolution"][-1 - back] * plain[t - back]
    mixed, y = silu(mixed), np.zeros((len(x), n_heads, sublayer.value_width))
    for h in range(n_heads):
        state, g = np.zeros((width, sublayer.value_width)), h // (n_heads // groups)
        for t in range(len(x)):
            q, k = (mixed[t, (i + g) * width :][:width] for i in (0, groups))
            v = mixed[t, 2 * groups * width + h * sublayer.value_width :][: sublayer.value_width]
            q, k = q / np.sqrt(q @ q + 1e-6) / np.sqrt(width), k / np.sqrt(k @ k + 1e-6)
            step = np.log1p(np.exp(x[t] @ p["decay"][:, h] + p["time_step"][h]))
            state = np.exp(-np.exp(p["log_rate"][h]) * step) * state
            beta = 1 / (1 + np.exp(-x[t] @ p["beta"][:, h]))
            state = state + np.outer(k, beta * (v - state.T @ k))
            o = state.T @ q
            y[t, h] = o / np.sqrt((o * o).mean() + 1e-6) * p["norm"]["scale"]
    return (y.reshape(len(x), -1) * silu(x @ p["gate"])) @ p["out"]


def test_against_numpy(x64):
    params, x = parameters(), normal(2, T, D, key=1)
    y = run(params, x)
    assert largest_difference(y, np.stack([by_hand(params, np.asarray(row)) for row in x])) < 1e-12
    slower = params | {"log_rate": params["log_rate"] - 4}
    wanted = np.stack([by_hand(slower, np.asarray(row)) for row in x])
    assert largest_difference(run(slower, x), wanted) < 1e-12 and largest_difference(y, wanted) > 1e-2


@pytest.mark.thorough
def test_any_chunk_gives_the_same_values_and_gradients(x64):
    """A chunk of one token is the rule as it is written; documents begin inside and at the edge of chunks."""
    sizes = {"query": (3,), "key": (3,), "value": (5,), "decay": (), "beta": ()}
    inputs = {name: normal(2, T, 4, *more, key=i) for i, (name, more) in enumerate(sizes.items())}
    inputs["key"] /= 1 + jnp.linalg.norm(inputs["key"], axis=-1, keepdims=True)
    inputs |= {"decay": -jnp.square(inputs["decay"]), "beta": jax.nn.sigmoid(inputs["beta"])}
    inputs["state"] = normal(2, 4, 3, 5, key=9)
    begins = jnp.zeros((2, T), bool).at[0, jnp.array([4, 6])].set(True)

    def outcome(chunk):
        def loss(inputs):
            y, state = delta_rule.gated_delta_rule(**inputs, begins=begins, chunk=chunk)
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(state)), (y, state)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)

    one = outcome(1)
    for chunk in (3, 4, 64):
        assert largest_difference(outcome(chunk), one) < 1e-12
    assert largest_difference(outcome(4)[0][1][0][0, :4], one[0][1][0][0, 4:8]) > 1e-2


@pytest.mark.parametrize(
    "index",
    [
        pytest.param([-1, -1, 0, 1, 2, 3], marks=pytest.mark.thorough),
        pytest.param([0, 1, 2, 3, -1, -1], marks=pytest.mark.thorough),
        [-1, 0, 1, -1, 2, 3],
    ],
)
def test_padding_changes_nothing_wherever_it_is(x64, index):
    params, x = parameters(), normal(2, 6, D, key=1)
    real = np.array(index) >= 0
    y = run(params, x, index=[index] * 2)
    assert largest_difference(y[:, real], run(params, x[:, real])) < 1e-12
    shared = run(params, x, index=[index])
    assert largest_difference(shared, y) == 0


def test_packed_documents_do_not_meet(x64):
    params, x = parameters(), normal(2, 8, D, key=1)
    index, segment = [[0, 1, 2, 0, -1, 1, 2, 3]] * 2, [[4, 4, 4, 1, 1, 1, 1, 1]] * 2
    y = run(params, x, index=index, segment=segment)
    second = np.array([3, 5, 6, 7])
    assert largest_difference(y[:, :3], run(params, x[:, :3])) < 1e-12
    assert largest_difference(y[:, second], run(params, x[:, second])) < 1e-12
    assert largest_difference(y[:, second], run(params, x)[:, second]) > 1e-2


@pytest.mark.parametrize(
    "position",
    [
        {"index": [[0, 1, 0, 1]]},
        {"index": [[1, 0, 2, 3]]},
        {"index": [[0, 0, 1, 1]], "segment": [[0, 1, 0, 1]]},
        {"index": [[0, 1, 1, 2]], "segment": [[0, 0, 0, 0]]},
    ],
)
def test_tokens_out_of_order_are_refused(position):
    params = jax.tree.map(lambda spec: jnp.zeros(spec.shape), SUB.spec(D), is_leaf=sj.parameter.is_spec)
    with pytest.raises(ValueError, match="in the order in which they stand"):
        SUB.apply(
            params, jnp.ones((1, 4, D)), sj.SideInputs(position={name: jnp.array(x) for name, x in position.items()})
        )


@pytest.mark.slow
def test_the_suite():
    testing.check_sublayer(SUB)


def decoder():
    layers = (sj.Layer(sublayers=(SUB, sj.FeedForward(d_hidden=8))), sj.Layer(sublayers=(sj.Attention(n_heads=2),)))
    stack = sj.Stack.of(*layers, depth=4, d_model=D, recipe=sj.recipe.PreNorm())
    return sj.Model(embedding=sj.Embedding(vocab=7), stack=stack)


@pytest.mark.thorough
def test_decoding_keeps_one_state_and_goes_on_behind_padding(x64):
    """A second call whose row begins with padding reads the state and the convolution of the first."""
    model, tokens = decoder(), jax.random.randint(jax.random.key(1), (2, 7), 0, 7)
    params = perturbed(model.init(jax.random.key(0), jnp.float64))
    index = [[[0, 1, 2, -1], [-1, -1, 0, 1]], [[-1, 3, -1, 4], [2, 3, 4, -1]], [[5], [5]]]
    calls = [sj.SideInputs(position={"index": jnp.array(one)}) for one in index]
    wanted = model.apply(params, tokens, dtype=jnp.float64)[0]
    cache = sj.cache.empty(model.stack, params["stack"], calls[0], 7, dtype=jnp.float64)
    kept = cache.segments["0"]["0"]["delta_net"]
    assert {name: leaf.shape for name, leaf in kept.items()} == {"inputs": (2, 2, 1, 64), "state": (2, 2, 4, 1, 15)}
    for call in calls:
        where = call.position["index"]
        now = jnp.take_along_axis(tokens, jnp.maximum(where, 0), 1)
        x, cache = sj.decode.extend(model, params, now, call, cache, dtype=jnp.float64)
        real, expected = where >= 0, jnp.take_along_axis(wanted, jnp.maximum(where, 0)[..., None], 1)
        assert largest_difference(model.logits(params, x)[real], expected[real]) < 1e-12


@pytest.mark.thorough
def test_the_state_is_in_float32_where_the_stream_is_not():
    model = decoder()
    params, prompt = model.init(jax.random.key(0)), jnp.array([[3, 1, 4]])
    side_inputs = sj.SideInputs(position={"index": jnp.arange(3)[None]})
    kept = sj.cache.empty(model.stack, params["stack"], side_inputs, 7, dtype=jnp.bfloat16).segments["0"]["0"]
    assert {str(leaf.dtype) for leaf in kept["delta_net"].values()} == {"bfloat16", "float32"}
    assert sj.decode.generate(model, params, prompt, n_tokens=3, dtype=jnp.bfloat16).tokens.shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n_heads": 3, "n_key_heads": 2}, "must divide"), ({"n_heads": 2, "kernel": 0}, "kernel must be positive")],
)
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        sj.GatedDeltaNet(d_head=4, **options)
