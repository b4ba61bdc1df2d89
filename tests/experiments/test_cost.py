"""Counted FLOPs and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from experiments.lab import cost, lanes, names, train
from experiments.lab.grid import Setting
from tests.experiments.test_train import CORPUS

B, T, D, F, V = 4, 16, 32, 128, 50
WINDOWS = jax.ShapeDtypeStruct((B, T + 1), jnp.int32)


def task(depth, **options):
    return train.NextToken(model=sj.decoder(vocab=V, d_model=D, depth=depth, n_heads=4, **options))


def forward(depth):
    """2 m n k for each product: four projections and two of the feed-forward, q k and a v, and the logits."""
    return depth * (2 * B * T * (4 * D * D + 2 * D * F) + 2 * (2 * B * T * T * D)) + 2 * B * T * D * V


@pytest.mark.parametrize("depth", [0, 1, 4, 512])
def test_flops_are_those_of_the_formula(depth):
    own, window = task(depth), WINDOWS
    params = jax.eval_shape(own.model.init, jax.random.key(0))
    assert cost.matmul_flops(lambda p, b: own.loss(p, b)[0], params, window) == forward(depth)
    assert cost.step_flops(own, window) == 3 * forward(depth)


@pytest.mark.parametrize(("remat", "ratio"), [("none", 3), ("layer", 4), ("nested", 5)])
def test_recomputation_is_counted_where_it_is_asked_for(remat, ratio):
    own = task(64)
    params = jax.eval_shape(own.model.init, jax.random.key(0))
    gradient = jax.grad(lambda p, b: own.loss(p, b, remat=remat)[0])
    counted = cost.matmul_flops(gradient, params, WINDOWS) / forward(64)
    assert ratio - 0.4 < counted <= ratio


def test_flops_of_ragged_products():
    x, w = jnp.zeros((12, 4)), jnp.zeros((3, 4, 5))
    sizes = jnp.array([3, 4, 5])

    def product(x, w):
        return jnp.sum(jax.lax.ragged_dot(x, w, sizes))

    assert cost.matmul_flops(product, x, w) == 2 * 12 * 4 * 5
    assert cost.matmul_flops(jax.grad(product, (0, 1)), x, w) == 3 * 2 * 12 * 4 * 5


def test_loops_and_branches():
    x = jnp.zeros((4, 4))
    one = 2 * 4**3
    assert cost.matmul_flops(lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=7)[0], x) == 7 * one
    assert cost.matmul_flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x), x) == one
    assert cost.matmul_flops(jax.vmap(lambda a: a @ x), jnp.zeros((5, 4, 4))) == 5 * one
    with pytest.raises(ValueError, match="unknown length"):
        cost.matmul_flops(lambda x: jax.lax.while_loop(lambda c: c[0, 0] > 0, lambda c: c @ c, x), x)


@pytest.mark.thorough
@pytest.mark.parametrize(("remat", "mode"), [("none", "vmap"), ("layer", "vmap"), ("layer", "loop")])
def test_memory_estimate_is_within_a_factor_of_two_and_a_half(remat, mode):
    setting = Setting(d_model=32, context=32, batch=8, remat=remat, eval_every=2, eval_batches=2, steps=4)
    trainer = setting.trainer(names.recipe_named("pre_norm"), 24, CORPUS.vocab)
    sizes = {"batch": 8, "context": 32, "eval_every": 2, "eval_batches": 1}
    run = lanes.fit(trainer, CORPUS, steps=2, learning_rates=(1e-3,) * 2, mode=mode, **sizes)
    model = trainer.task.model
    measured = run.programs.temp_bytes + 2 * 12 * model.n_params
    guess = cost.memory_estimate(model, n_heads=4, lanes=2, batch=8, context=32, remat=remat, at_once=mode == "vmap")
    assert 1 / 2.5 < guess / measured < 2.5
    assert np.isfinite(run.metrics[0][-1]["valid_loss"])
