"""Writing the cache: which slot, who wins, and what is left alone."""

import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj

D, WIDTH = 8, 4


def built(capacity, **options):
    layer = sj.Layer(sublayers=(sj.Attention(n_heads=2, window=3), sj.Attention(name="far", n_heads=2)))
    stack = sj.Stack.of(layer, depth=2, d_model=D, recipe=sj.recipe.PreNorm(), **options)
    params = stack.init(jax.random.key(0))
    return (
        stack,
        params,
        sj.cache.empty(stack, params, sj.SideInputs(position={"index": jnp.zeros((2, 1), jnp.int32)}), capacity),
    )


def written(cache, index):
    """Entries that say their row and index, so that slots can be read off."""
    index = jnp.asarray(index)
    said = index + 100 * jnp.arange(len(index))[:, None] + 0.5
    entry = jnp.broadcast_to(said[None, :, None, :, None], (2, 2, 2, index.shape[1], WIDTH))
    state = {"0": {"0": {name: {"cache": {"key": entry, "value": -entry}} for name in ("attention", "far")}}}
    return sj.cache.write(cache, state, {"index": index})


def held(cache, name, capacity):
    """Indices in the slots, after checking that every leaf and position agrees with them."""
    index = np.asarray(cache.position[capacity]["index"])
    said = index + 100 * np.arange(len(index))[:, None] + 0.5
    leaves = cache.segments["0"]["0"][name]
    for sign, leaf in ((1, leaves["key"]), (-1, leaves["value"])):
        wanted = np.broadcast_to(said[None, :, None, :, None], leaf.shape)
        np.testing.assert_array_equal(leaf, np.where(index[None, :, None, :, None] < 0, 0, sign * wanted))
    return index.tolist()


def test_newest_win_in_whatever_order_they_come():
    _, _, cache = built(6)
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [3, 0, 4, 2, 1]):
        full = written(cache, [order, order])
        assert held(full, "attention", 3) == [[3, 4, 2]] * 2
        assert held(full, "far", 6) == [[0, 1, 2, 3, 4, -1]] * 2


def test_padding_changes_nothing():
    _, _, cache = built(4)
    full = written(cache, [[0, 1, 2, 3], [-1, -1, 0, 1]])
    assert held(full, "far", 4) == [[0, 1, 2, 3], [0, 1, -1, -1]]
    after = written(full, [[-1, -1], [2, -1]])
    assert held(after, "attention", 3) == [[3, 1, 2], [0, 1, 2]]
    assert held(after, "far", 4) == [[0, 1, 2, 3], [0, 1, 2, -1]]


def test_every_kind_of_position_is_kept():
    stack, params, _ = built(4)
    position = {"index": jnp.array([[0, 1]]), "path": jnp.arange(6).reshape(1, 2, 3)}
    cache = sj.cache.empty(stack, params, sj.SideInputs(position=position), 4)
    assert cache.position[4]["path"].shape == (1, 4, 3)
    entry = jnp.zeros((2, 1, 2, 2, WIDTH))
    state = {"0": {"0": {"far": {"cache": {"key": entry, "value": entry}}}}}
    path = sj.cache.write(cache, state, position).position[4]["path"]
    assert path[0].tolist() == [[0, 1, 2], [3, 4, 5], [-1] * 3, [-1] * 3]


def test_a_looped_stack_keeps_a_cache_for_each_turn_and_one_memory():
    layer = sj.Layer(sublayers=(sj.Attention(n_heads=2), sj.Attention(name="cross", n_heads=2, cross=True)))
    stack = sj.Stack.of(layer, depth=3, d_model=D, recipe=sj.recipe.PreNorm(), looped=True)
    position = {"index": jnp.zeros((2, 1), jnp.int32)}
    params, memory = stack.init(jax.random.key(0)), jnp.ones((2, 5, D))
    cache = sj.cache.empty(stack, params, sj.SideInputs(position=position, memory=memory), 4)
    own = cache.segments["0"]["0"]
    assert own["attention"]["key"].shape == (3, 2, 2, 4, WIDTH) and own["cross"]["key"].shape == (3, 2, 2, 5, WIDTH)
    assert cache.memory_position["index"].tolist() == [[0, 1, 2, 3, 4]] * 2
    np.testing.assert_array_equal(own["cross"]["key"][0], own["cross"]["key"][2])
