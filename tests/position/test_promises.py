"""What every encoding that acts inside attention promises: caches, padding, packing and shifts change nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import position
from stackjax.position.base import ATTENTION_HOOKS
from tests.cases import PATHS, POSITIONS
from tests.helpers import normal, perturbed

SCALING = position.rotary_scaling
INSIDE = {name: p for name, p in POSITIONS.items() if p.acts_on(ATTENTION_HOOKS)} | {
    "rotary_partial": position.Rotary(d_rotary=4, interleaved=True, scaling=SCALING.Llama3()),
    "rotary_yarn": position.Rotary(scaling=SCALING.YaRN(factor=4.0, original_length=64)),
    "rotary_dynamic_within": position.Rotary(scaling=SCALING.DynamicNTK(original_length=100)),
    "tree_bias_per_layer": position.TreeBias(max_steps=2, per_layer=True),
}
RELATIVE = ["rotary", "rotary_partial", "rotary_yarn", "shaw", "transformer_xl", "t5", "t5_per_layer", "alibi"]

FIVE = {
    "index": np.arange(5, dtype=np.int32),
    "path": np.array([path + (-1,) * (4 - len(path)) for path in PATHS], np.int32),
}


def setting(name, **options):
    """An attention sublayer with grouped keys, its parameters and what it shares."""
    sublayer = sj.Attention(n_heads=4, n_kv_heads=2, position=INSIDE[name], **options)
    declared = sj.parameter.declare({"own": sublayer.spec(16), "shared": sublayer.shared(16)})
    return sublayer, perturbed(sj.parameter.realise(jax.random.key(0), declared, dtype=float))


@partial(jax.jit, static_argnums=0)
def run(sublayer, params, x, where, cached=None, cache=None):
    side_inputs = sj.SideInputs(position=where, cache=cache)
    side_inputs = side_inputs.replace(prepared=sublayer.prepare(params["shared"], side_inputs, x.shape[-2], 16, cached))
    return sublayer.apply(params["own"], x, side_inputs)


def rows(*chosen):
    """Positions of a batch: for each row the tokens chosen out of five, None for an empty slot."""
    empty = {"index": -1, "path": np.full(4, -1, np.int32)}
    return {
        name: jnp.asarray(np.stack([[empty[name] if t is None else value[t] for t in row] for row in chosen]))
        for name, value in FIVE.items()
    }


@pytest.mark.parametrize("name", INSIDE)
def test_cached_decoding_and_padding_change_nothing(name, x64):
    sublayer, params = setting(name)
    x = normal(2, 5, 16, key=1)
    where = rows(range(5), [None, None, 0, 1, 2])
    full, _ = run(sublayer, params, x, where)
    alone, _ = run(sublayer, params, x[1:, 2:], rows(range(3)))
    np.testing.assert_allclose(full[1:, 2:], alone, rtol=1e-11, atol=1e-13)

    capacity = 6  # token t goes to slot 4 - t: the order of the slots means nothing
    cache = sublayer.cache(2, capacity, 16, float)
    cached = {n: jnp.full((2, capacity, *v.shape[2:]), -1, v.dtype) for n, v in where.items()}
    steps = []
    for first, last in ((0, 3), (3, 4), (4, 5)):
        now = {n: v[:, first:last] for n, v in where.items()}
        y, out = run(sublayer, params, x[:, first:last], now, {capacity: cached}, cache)
        steps.append(y)
        at = (slice(None), slice(5 - last, 5 - first))
        cache = {n: v.at[:, *at].set(out.state["cache"][n][:, :, ::-1]) for n, v in cache.items()}
        cached = {n: v.at[at].set(now[n][:, ::-1]) for n, v in cached.items()}
    stepped = jnp.concatenate(steps, 1)
    np.testing.assert_allclose(stepped[0], full[0], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(stepped[1, 2:], full[1, 2:], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", INSIDE)
def test_packed_documents_do_not_see_each_other(name, x64):
    sublayer, params = setting(name, causal=False)
    first, second = normal(1, 3, 16, key=1), normal(1, 2, 16, key=2)
    separate = [run(sublayer, params, x, rows(range(x.shape[1])))[0] for x in (first, second)]
    where = rows([0, 1, 2, 0, 1]) | {"segment": jnp.array([[0, 0, 0, 1, 1]])}
    packed, _ = run(sublayer, params, jnp.concatenate((first, second), 1), where)
    np.testing.assert_allclose(packed, jnp.concatenate(separate, 1), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", RELATIVE)
def test_only_differences_of_index_matter(name, x64):
    sublayer, params = setting(name)
    x = normal(1, 5, 16, key=1)
    here, _ = run(sublayer, params, x, {"index": jnp.arange(5)[None]})
    there, _ = run(sublayer, params, x, {"index": 1000 + jnp.arange(5)[None]})
    apart, _ = run(sublayer, params, x, {"index": 2 * jnp.arange(5)[None]})
    np.testing.assert_allclose(there, here, rtol=1e-9, atol=1e-11)
    assert np.abs(apart - here).max() > 1e-4


@pytest.mark.parametrize("name", [name for name in INSIDE if name.startswith("tree")])
def test_a_missing_path_is_named(name):
    sublayer, params = setting(name)
    with pytest.raises(ValueError, match="position\\['path'\\]"):
        run(sublayer, params, normal(1, 5, 16), None)
