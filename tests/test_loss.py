"""Losses against NumPy, and what padding may change."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import loss
from stackjax.embedding import Head
from stackjax.testing import largest_difference, normal, perturbed

TARGETS = np.array([[0, 3, -1, 2], [4, -1, -1, 1]])


def numpy_terms(logits, targets, smoothing=0.0, z=0.0):
    """One term per target, in float64; 0 where the target is negative."""
    logits, terms = np.asarray(logits, np.float64), np.zeros(targets.shape)
    for place in zip(*np.nonzero(targets >= 0), strict=True):
        log_z = np.log(np.sum(np.exp(logits[place])))
        logs = logits[place] - log_z
        n_classes = len(logs)
        wanted = np.full(n_classes, smoothing / n_classes)
        wanted[targets[place]] += 1 - smoothing
        terms[place] = -wanted @ logs + z * log_z**2
    return terms


@pytest.mark.parametrize(("smoothing", "z"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01), (0.2, 0.02)])
def test_parity(x64, smoothing, z):
    logits = 3 * normal(2, 4, 5)
    found = loss.cross_entropy(logits, TARGETS, label_smoothing=smoothing, z_loss=z)
    expected = numpy_terms(logits, TARGETS, smoothing, z).sum() / np.sum(TARGETS >= 0)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("size", [1.0, 0.01])
def test_weights_make_a_weighted_mean(x64, size):
    logits, weights = normal(2, 4, 5), size * np.abs(np.asarray(normal(2, 4, key=1)))
    terms, counted = numpy_terms(logits, TARGETS), weights * (TARGETS >= 0)
    np.testing.assert_allclose(
        loss.cross_entropy(logits, TARGETS, weights), np.sum(terms * counted) / counted.sum(), rtol=1e-12
    )


def test_what_is_left_out_has_no_say_whatever_it_holds():
    logits = normal(2, 4, 5)
    broken = jnp.where((TARGETS < 0)[..., None], jnp.nan, logits)
    clean, broken = (jax.value_and_grad(loss.cross_entropy)(x, TARGETS) for x in (logits, broken))
    assert clean[0] == broken[0]
    np.testing.assert_array_equal(broken[1], clean[1])
    assert not np.any(clean[1][TARGETS < 0])


NOTHING = {"no target": (np.full((2, 4), -1), None), "no weight": (TARGETS, np.zeros((2, 4)))}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_to_count_has_no_mean(name):
    targets, weights = NOTHING[name]
    logits = normal(2, 4, 5)
    with pytest.raises(ValueError, match="at least one target that counts; got weights from 0"):
        loss.cross_entropy(logits, targets, weights)
    assert np.isnan(jax.jit(loss.cross_entropy)(logits, targets, weights))


def test_weights_below_zero():
    logits, weights = normal(2, 4, 5), np.ones((2, 4)) - 2 * np.eye(2, 4)
    with pytest.raises(ValueError, match=r"weights of 0 or more .* got weights from -1.0 to 1.0"):
        loss.cross_entropy(logits, TARGETS, weights)


def test_targets_beyond_the_classes():
    logits, targets = normal(2, 4, 5), TARGETS.copy()
    targets[1, 3] = 5
    with pytest.raises(ValueError, match=r"targets must be 0 .. 4; got 0 .. 5"):
        loss.cross_entropy(logits, targets)
    assert np.isnan(jax.jit(loss.cross_entropy)(logits, targets))
    weights = (targets < 5).astype(float)
    value, gradient = jax.jit(jax.value_and_grad(loss.cross_entropy))(logits, targets, weights)
    assert value == loss.cross_entropy(logits, np.where(targets == 5, -1, targets)) and np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("targets", "weights"),
    [(TARGETS[0], None), (TARGETS, np.ones(4)), (TARGETS, np.ones((2, 3))), (TARGETS[:, :3], None)],
)
def test_other_shapes(targets, weights):
    with pytest.raises(ValueError, match="targets and weights must have the shape of the logits without V"):
        loss.cross_entropy(normal(2, 4, 5), targets, weights)


def test_next_token(x64):
    logits, tokens = normal(2, 5, 7), jax.random.randint(jax.random.key(0), (2, 5), 0, 7)
    terms = numpy_terms(logits[:, :-1], np.asarray(tokens[:, 1:]))
    np.testing.assert_allclose(loss.next_token(logits, tokens), terms.mean(), rtol=1e-12)
    weights = np.abs(np.asarray(normal(2, 5, key=1)))
    expected = (terms * weights[:, 1:]).sum() / weights[:, 1:].sum()
    np.testing.assert_allclose(loss.next_token(logits, tokens, weights), expected, rtol=1e-12)
    smooth = numpy_terms(logits[:, :-1], np.asarray(tokens[:, 1:]), 0.1, 0.01).mean()
    np.testing.assert_allclose(loss.next_token(logits, tokens, label_smoothing=0.1, z_loss=0.01), smooth, rtol=1e-12)


def test_next_token_has_a_weight_for_each_token():
    logits, tokens = normal(2, 5, 7), jnp.zeros((2, 5), int)
    for weights in (jnp.ones((2, 4)), jnp.ones(5), jnp.ones((2, 5, 1))):
        with pytest.raises(
            ValueError, match=r"weights \(..., T\) must be of the same T, .*the first one's is not read"
        ):
            loss.next_token(logits, tokens, weights)
    with pytest.raises(ValueError, match="at least 2"):
        loss.next_token(logits[:, :1], tokens[:, :1])


def test_uniform_logits_cost_the_log_of_the_classes():
    for dtype in (jnp.float32, jnp.bfloat16):
        found = loss.cross_entropy(jnp.zeros((3, 256), dtype), jnp.array([1, 2, 3]))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, np.log(256), rtol=1e-6)


HEADS = {
    "plain": Head(),
    "capped_with_bias": Head(bias=True, scale=0.5, soft_cap=2.0),
    "tied": Head(tied=True),
    "behind_a_layer": Head(transform=jnp.tanh, norm=sj.RMSNorm()),
}
T, D, V = 11, 6, 7


def of_head(head, **options):
    """Losses from all logits and in blocks, with their gradients for x, the table and the head's parameters."""
    params = {"head": sj.parameter.realise(jax.random.key(0), sj.parameter.declare(head.spec(D, V)), dtype=float)}
    params = perturbed({**params, "table": normal(V, D, key=5)})
    x, weights = normal(2, T, D, key=1), jnp.abs(normal(2, T, key=2))
    targets = jax.random.randint(jax.random.key(3), (2, T), -1, V)

    def logits(params, x):
        return head.apply(params["head"], params["table"], x)

    def whole(params, x):
        return loss.cross_entropy(logits(params, x), targets, weights, **options)

    def blocks(params, x):
        return loss.blockwise_cross_entropy(partial(logits, params), x, targets, weights, block=4, **options)

    return [jax.jit(jax.value_and_grad(run, (0, 1)))(params, x) for run in (whole, blocks)]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.thorough, id="plain"),
        pytest.param({"label_smoothing": 0.1, "z_loss": 0.01}, id="smooth"),
    ],
)
@pytest.mark.parametrize("name", HEADS)
def test_in_blocks_it_is_the_same(name, options, x64):
    expected, found = of_head(HEADS[name], **options)
    assert largest_difference(found, expected) < 1e-15 * T * V
    assert np.all(np.any(found[1][1], -1) == np.any(expected[1][1], -1))


@pytest.mark.thorough
def test_blocks_take_any_leading_axes_and_refuse_what_all_logits_refuse():
    x, table, tokens = normal(3, 2, T, D), normal(D, V, key=1), jnp.zeros((3, 2, T), int)

    def head(x):
        return x @ table

    for some, wanted in ((x, tokens), (x[0, 0], tokens[0, 0])):
        expected = loss.cross_entropy(head(some), wanted)
        for block in (1, 3, T, None):
            np.testing.assert_allclose(
                loss.blockwise_cross_entropy(head, some, wanted, block=block), expected, rtol=1e-6
            )
    with pytest.raises(ValueError, match="must have the shape of the logits without V"):
        loss.blockwise_cross_entropy(head, x, tokens[0], block=2)
    with pytest.raises(ValueError, match=r"targets must be 0 \.\. 6; got 0 \.\. 7"):
        loss.blockwise_cross_entropy(head, x, tokens.at[0, 0, 0].set(7), block=2)
    with pytest.raises(ValueError, match="block must be 1 token or more"):
        loss.blockwise_cross_entropy(head, x, tokens, block=0)
    beyond = jax.jit(lambda t: loss.blockwise_cross_entropy(head, x, t, block=2))(tokens.at[0, 0, 0].set(7))
    assert np.isnan(beyond)


def test_the_size_of_a_block_follows_from_the_logits(monkeypatch):
    monkeypatch.setattr(loss, "BLOCK_LOGITS", 2 * 4 * V)
    x, table, tokens = normal(2, T, D), normal(D, V, key=1), jnp.zeros((2, T), int)
    program = str(jax.make_jaxpr(lambda x: loss.blockwise_cross_entropy(lambda x: x @ table, x, tokens))(x))
    assert f"f32[2,4,{V}]" in program and f"f32[2,{T},{V}]" not in program


def temporary_bytes(n_tokens, blockwise, n_classes=4096):
    """Of the gradient with respect to the stream and the matrix."""
    x, table = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n_tokens, 16), (16, n_classes)))
    targets = jax.ShapeDtypeStruct((n_tokens,), jnp.int32)

    def objective(x, table, targets):
        if blockwise:
            return loss.blockwise_cross_entropy(lambda x: x @ table, x, targets, block=64)
        return loss.cross_entropy(x @ table, targets)

    compiled = jax.jit(jax.grad(objective, (0, 1))).lower(x, table, targets).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_logits_of_all_tokens_are_never_there():
    """Memory of a block and of what grows with T alone; all logits would be 4,096 times 4,096 numbers."""
    short, long = temporary_bytes(2048, True), temporary_bytes(4096, True)
    assert long - short < 2048 * 16 * 4 * 4
    assert long < temporary_bytes(4096, False) / 16
