"""Attention residuals against their equations, and at their start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.recipe import AttentionResiduals
from stackjax.testing import normal
from tests.recipe.toy import LAYER, numpy, rms_norm, softmax, toy, toy_run, toy_stack


def average(p, values):
    """Eq. (2) to (4), arXiv:2603.15031: values (n, T, D) to (T, D)."""
    values = np.stack(values)
    weights = softmax(rms_norm(p["key_norm"], values) @ p["query"], 0)
    return np.einsum("nbt,nbtd->btd", weights, values)


def sublayers(layers):
    """(form's parameters, branch) of each sublayer in order."""
    for layer in layers:
        for name in ("one", "two"):
            p = layer["residual"][name]
            yield p, lambda h, layer=layer, name=name, p=p: toy(layer, name, rms_norm(p["norm"], h))


@pytest.mark.thorough
def test_full_forward_is_the_papers(x64):
    layers, leave, x, y = toy_run(AttentionResiduals(), depth=3)
    values = [x]
    for p, f in sublayers(layers):
        values.append(f(average(p, values)))
    np.testing.assert_allclose(y, rms_norm(leave["norm"], average(leave, values)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("blocks", "size"), [(2, 5), (3, 4), (1, 10), (100, 1)])
def test_block_forward_is_the_papers(blocks, size, x64):
    """Eq. (5) and (6), with the last block shorter where the number of blocks does not divide the sublayers."""
    layers, leave, x, y = toy_run(AttentionResiduals(blocks=blocks), depth=5)
    finished, running = [x], None
    for s, (p, f) in enumerate(sublayers(layers), 1):
        out = f(average(p, finished if running is None else [*finished, running]))
        running = out if running is None else running + out
        if s % size == 0 or s == 10:
            finished, running = [*finished, running], None
    np.testing.assert_allclose(y, rms_norm(leave["norm"], average(leave, finished)), rtol=0, atol=1e-12)


def test_starts_as_the_mean_of_what_came_before(x64):
    stack = toy_stack(AttentionResiduals(), 4)
    params = stack.init(jax.random.key(0), jnp.float64)
    x = normal(2, 5, 8, key=1)
    y, result = stack.apply(
        params,
        x,
        measure=lambda trace: {"x": trace.intermediates["one"]["input"], "y": trace.intermediates["one"]["output"]},
    )
    values, plain = [np.asarray(x)], {"query": np.zeros(8), "key_norm": {}}
    for s, (_, f) in enumerate(sublayers(map(numpy, sj.convert.unstack(stack, params)))):
        mean = np.mean(values, 0)
        np.testing.assert_allclose(average(plain, values), mean, atol=1e-12)
        if s % 2 == 0:
            np.testing.assert_allclose(result.measure["x"][s // 2], rms_norm({}, mean), atol=1e-12)
        values.append(f(mean))
    np.testing.assert_allclose(y, rms_norm({}, np.mean(values, 0)), atol=1e-12)


@pytest.mark.parametrize(
    ("depth", "blocks", "expected"),
    [
        (3, None, [1, 2, 3, 4, 5, 6]),
        (27, 9, [1 + s // 6 for s in range(54)]),
        (3, 4, [1, 1, 2, 2, 3, 3]),
    ],
)
def test_blocks_divide_the_depth(depth, blocks, expected):
    """27 layers in 9 blocks of 6 sublayers is the paper's own model."""
    sublayer = toy_stack(AttentionResiduals(blocks=blocks), depth).coefficients()["sublayer"]
    np.testing.assert_array_equal(sublayer["block"].reshape(-1), expected)
    opens, closes = (np.asarray(sublayer[name]).reshape(-1) for name in ("opens", "closes"))
    assert opens.sum() == closes.sum() == expected[-1]
    np.testing.assert_array_equal(opens[1:], closes[:-1])


def test_uneven_layers_are_refused():
    short = sj.Layer(sublayers=LAYER.sublayers[:1])
    with pytest.raises(ValueError, match="same number of sublayers"):
        sj.Stack.of(LAYER, short, depth=4, d_model=8, recipe=AttentionResiduals())
    with pytest.raises(ValueError, match="at least 1"):
        AttentionResiduals(blocks=0)
