"""Tree positions: their definitions, and the invariances they are made for, exactly."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import position
from stackjax.position import tree
from stackjax.testing import normal, perturbed
from tests.position.helpers import logits, paths, prepared

SUBTREE = ((), (0,), (0, 0), (0, 1), (1,), (1, 2, 0))
"""Paths of six nodes from the top of a subtree."""


def under(top, nodes=SUBTREE):
    """The subtree's paths when it hangs at `top`."""
    return tuple(top + node for node in nodes)


def random_paths(n, seed):
    draw = random.Random(seed)
    return tuple(tuple(draw.randrange(3) for _ in range(draw.randrange(6))) for _ in range(n))


def bias_params(encoding):
    specs = sj.parameter.declare({"shared": encoding.shared(2, 8)})
    return perturbed(sj.parameter.realise(jax.random.key(0), specs, dtype=float))["shared"]


def bias_of(encoding, where, params):
    zero = jnp.zeros((1, where["path"].shape[1], 2, 8))
    return logits(encoding, where, zero, zero, {}, params)[0]


def relation(a, b):
    common = 0
    while common < min(len(a), len(b)) and a[common] == b[common]:
        common += 1
    fork = common < min(len(a), len(b))
    return len(a) - common, len(b) - common, b[common] - a[common] if fork else 0


def test_relate_is_the_way_over_the_common_ancestor():
    queries, keys = random_paths(20, 0), random_paths(30, 1)
    got = tree.relate(*(paths(*rows, width=7)["path"][0] for rows in (queries, keys)))
    expected = [[relation(a, b) for b in keys] for a in queries]
    np.testing.assert_array_equal(np.stack(got, -1), expected)
    assert len({tuple(way) for row in expected for way in row}) > 20


def test_relate_reads_the_same_backwards():
    where = paths(*random_paths(20, 2))["path"]
    up, down, apart = tree.relate(where, where)
    np.testing.assert_array_equal(up, np.swapaxes(down, 1, 2))
    np.testing.assert_array_equal(apart, -np.swapaxes(apart, 1, 2))


def test_tree_bias_is_a_cell_of_the_table(x64):
    encoding = position.TreeBias(max_steps=2, max_apart=1)
    params = bias_params(encoding)
    nodes = random_paths(12, 3)
    bias = bias_of(encoding, paths(*nodes), params)
    table = np.asarray(params["treebias"]["table"])
    assert table.shape == (3, 3, 3, 2)
    for i, a in enumerate(nodes):
        for j, b in enumerate(nodes):
            up, down, apart = relation(a, b)
            np.testing.assert_array_equal(bias[:, i, j], table[min(up, 2), min(down, 2), np.clip(apart, -1, 1) + 1])


def test_moving_a_subtree_leaves_the_bias_inside_unchanged(x64):
    encoding = position.TreeBias(max_steps=3, max_apart=2)
    params = bias_params(encoding)
    before = bias_of(encoding, paths(*under((2,)), width=8), params)
    for top in ((), (0,), (5, 0, 1, 1)):
        np.testing.assert_array_equal(bias_of(encoding, paths(*under(top), width=8), params), before)
    changed = bias_of(encoding, paths(*under((2,), SUBTREE[::-1]), width=8), params)
    assert np.abs(changed - before).max() > 0.01


def test_permuting_siblings_leaves_an_orderless_bias_unchanged(x64):
    swap = {0: 1, 1: 0}
    swapped = tuple((swap.get(node[0], node[0]), *node[1:]) if node else node for node in SUBTREE)
    for max_apart, same in ((0, True), (1, False)):
        encoding = position.TreeBias(max_steps=3, max_apart=max_apart)
        params = bias_params(encoding)
        bias = [bias_of(encoding, paths(*nodes), params) for nodes in (SUBTREE, swapped)]
        assert np.array_equal(*bias) == same


def test_tree_bias_is_linear_on_a_chain_and_among_siblings(x64):
    encoding = position.TreeBias(max_steps=3, max_apart=2)
    params = bias_params(encoding)
    table = np.asarray(params["treebias"]["table"])
    chain = bias_of(encoding, paths(*((0,) * t for t in range(7))), params)
    flat = bias_of(encoding, paths(*((t,) for t in range(7))), params)
    for i in range(7):
        for j in range(7):
            steps = (min(i - j, 3), 0) if i > j else (0, min(j - i, 3))
            np.testing.assert_array_equal(chain[:, i, j], table[*steps, 2])
            expected = table[0, 0, 2] if i == j else table[1, 1, np.clip(j - i, -2, 2) + 2]
            np.testing.assert_array_equal(flat[:, i, j], expected)


def test_tree_rotary_turns_by_depth_and_by_steps(x64):
    encoding = position.TreeRotary(n_depth=2, n_levels=1, arity=5, base=9.0)
    nodes = ((), (3,), (1, 4), (0, 2, 2))
    x = normal(1, 4, 2, 8, key=1)
    got = encoding.rotate(prepared(encoding, paths(*nodes)), "key", x)
    for t, node in enumerate(nodes):
        first = node[0] if node else 0
        angle = np.array([len(node), len(node) / 3, 2 * np.pi * first / 5])
        a, b = np.asarray(x[0, t, :, 2:5]), np.asarray(x[0, t, :, 5:])
        expected = (x[0, t, :, :2], a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle))
        np.testing.assert_allclose(got[0, t], np.concatenate(expected, -1), rtol=1e-12, atol=1e-14)


def test_moving_a_subtree_leaves_tree_rotary_scores_inside_unchanged(x64):
    query, key = normal(1, 6, 2, 8, key=1), normal(1, 6, 2, 8, key=2)

    def scores(top, n_levels):
        return logits(position.TreeRotary(n_depth=2, n_levels=n_levels), paths(*under(top)), query, key)

    np.testing.assert_allclose(scores((3, 1), 2), scores((0, 7), 2), rtol=1e-12)
    np.testing.assert_allclose(scores((3, 1), 0), scores((), 0), rtol=1e-12)
    assert np.abs(scores((3, 1), 2) - scores((), 2)).max() > 1e-2


def test_tree_rotary_is_rotary_on_a_chain(x64):
    query, key = normal(1, 6, 2, 8, key=1), normal(1, 6, 2, 8, key=2)
    chain = paths(*((0,) * t for t in range(6)))
    on_tree = logits(position.TreeRotary(n_depth=2, n_levels=0, base=50.0), chain, query, key)
    moved = [jnp.roll(x, 4, -1) for x in (query, key)]
    np.testing.assert_allclose(on_tree, logits(position.Rotary(d_rotary=4, base=50.0), chain, *moved), rtol=1e-12)

    still = logits(position.TreeRotary(n_depth=0, n_levels=2), chain, query, key)
    np.testing.assert_allclose(still, logits(position.NoPosition(), chain, query, key), rtol=1e-12)


def test_tree_path_is_a_stack_of_steps(x64):
    encoding = position.TreePath(arity=3, depth=4, n_decays=2)
    params = {"decay": jnp.array([0.9, -0.4])}
    nodes = ((), (2,), (0, 1), (1, 1, 0, 2), (2, 0, 1, 0, 1))
    got = encoding.encode(params, paths(*nodes)["path"][0], 24)
    p = np.tanh([0.9, -0.4])
    for t, node in enumerate(nodes):
        expected = np.zeros((4, 3, 2))
        for q, step in enumerate(node[::-1][:4]):
            expected[q, step] = p**q * np.sqrt((1 - p**2) * 24 / 2)
        np.testing.assert_allclose(got[t], expected.reshape(-1), rtol=1e-12)
    x = normal(5, 24, key=1)
    np.testing.assert_allclose(encoding.embed(params, {"path": paths(*nodes)["path"][0]}, x), x + got, rtol=1e-12)


def test_tree_path_moves_are_affine_and_the_same_everywhere(x64):
    encoding = position.TreePath(arity=2, depth=4, n_decays=1)
    params = {"decay": jnp.array([0.7])}

    def encode(*nodes):
        return np.asarray(encoding.encode(params, paths(*nodes, width=4)["path"][0], 8))

    p = np.tanh(0.7)
    down = np.kron(np.eye(4, k=-1) * p, np.eye(2))
    pushed = np.zeros(8)
    pushed[1] = np.sqrt((1 - p**2) * 4)
    for node in ((), (0,), (1,), (0, 1), (1, 1, 0)):
        here, child = encode(node, (*node, 1))
        np.testing.assert_allclose(child, down @ here + pushed, rtol=1e-12, atol=1e-14)


def test_tree_path_is_linear_on_a_chain(x64):
    """Of the depth alone: one step down is one affine map, and no two depths up to `depth` are alike."""
    encoding = position.TreePath(arity=2, depth=6, n_decays=1)
    params = {"decay": jnp.array([0.7])}
    chain = np.asarray(encoding.encode(params, paths(*((0,) * t for t in range(8)), width=8)["path"][0], 12))
    p = np.tanh(0.7)
    for t, row in enumerate(chain):
        expected = np.zeros((6, 2))
        expected[: min(t, 6), 0] = p ** np.arange(min(t, 6)) * np.sqrt((1 - p**2) * 6)
        np.testing.assert_allclose(row, expected.reshape(-1), rtol=1e-12)
    assert len(np.unique(chain, axis=0)) == 7


def test_tree_path_beyond_its_arity_counts_as_the_last_child():
    encoding = position.TreePath(arity=3, depth=4, n_decays=1)
    params = {"decay": jnp.array([0.7])}
    a, b, c = encoding.encode(params, paths((7, 0), (2, 0), (1, 0))["path"][0], 12)
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.1


def test_tree_path_is_projected_where_it_does_not_fit():
    fits = position.TreePath(arity=2, depth=4).stream_spec(16)
    assert set(fits) == {"decay"} and fits["decay"].shape == (2,)
    wide = position.TreePath(arity=4, depth=8).stream_spec(16)
    assert wide["projection"].shape == (32, 16) and wide["decay"].shape == (1,)
    decays = np.tanh(fits["decay"].init(jax.random.key(0), (1000,), jnp.int32(0)))
    assert 0.7 <= decays.min() < 0.71 and 0.99 < decays.max() <= 0.999


def test_left_child_right_sibling():
    nodes = ((), (0,), (2,), (0, 0), (1, 3), (3, 0, 1))
    got = tree.left_child_right_sibling(paths(*nodes)["path"][0], 8)
    for node, row in zip(nodes, got, strict=True):
        binary = [bit for step in node for bit in (0, *(1,) * step)]
        np.testing.assert_array_equal(row, (binary + [-1] * 8)[:8])
    cut = tree.left_child_right_sibling(paths((5, 5))["path"][0], 4)
    np.testing.assert_array_equal(cut, [[0, 1, 1, 1]])


@pytest.mark.parametrize("sizes", [(0, 0), (3, 3)])
def test_tree_rotary_features_must_fit(sizes):
    encoding = position.TreeRotary(n_depth=sizes[0], n_levels=sizes[1])
    with pytest.raises(ValueError, match="TreeRotary turns"):
        prepared(encoding, paths((), (0,)))
