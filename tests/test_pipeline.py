"""A pipeline over virtual devices gives the numbers of one scan, and each stage does and holds its share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import pipeline, shard
from stackjax.testing import largest_difference, normal

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

D, T, ROWS = 16, 5, 8
LAYER = sj.Layer(sublayers=(sj.Attention(n_heads=2, position=sj.position.Rotary()), sj.FeedForward(d_hidden=24)))
PACKED = {"index": jnp.arange(T) % 3, "segment": jnp.arange(T) // 3}


def stack(*layers, depth=8, recipe=sj.recipe.PreNorm(), **options):
    return sj.Stack.of(*(layers or (LAYER,)), depth=depth, d_model=D, recipe=recipe, **options)


def drawn(stack, dtype=jnp.float64):
    """Parameters of which none is zero or one."""
    params = stack.init(jax.random.key(0), dtype)
    return jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape, a.dtype), params)


def value_and_gradients(run, params, x):
    """A weighted sum of the output with the losses, its gradients, and the output."""

    def loss(params, x):
        y, result = run(params, x)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)) + sum(result.loss.values()), y

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)


def check_equal(stack, sizes, microbatches, side_inputs=None, remat="layer"):
    """Value and gradients of a pipeline against those of the plain scan, in float64."""
    on = shard.mesh(**sizes)
    params, x = drawn(stack), normal(ROWS, T, D).astype(jnp.float64)
    side_inputs = jax.tree.map(lambda a: a.astype(float) if a.dtype == jnp.float32 else a, side_inputs)
    expected = value_and_gradients(lambda params, x: stack.apply(params, x, side_inputs), params, x)
    options = {"on": on, "microbatches": microbatches, "remat": remat}
    found = value_and_gradients(
        lambda params, x: pipeline.apply(stack, params, x, side_inputs, **options),
        jax.device_put(params, shard.parameters(stack, on, pipeline.RULES)),
        jax.device_put(x, shard.batch(on, pipeline.RULES)),
    )
    assert largest_difference(found, expected) < 1e-12
    assert max(jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(expected[1])) > 0.1


def test_a_pipeline_is_a_scan(x64):
    check_equal(stack(depth=4), {"stage": 2, "data": 4}, 2)


CASES = {
    "four_stages": (stack, {"stage": 4, "data": 2}, 4, None, "layer"),
    "two_stages": (stack, {"stage": 2, "data": 2, "model": 2}, 2, None, "none"),
    "eight_stages": (stack, {"stage": 8}, 8, None, "nested"),
    "fewer_microbatches_than_stages": (stack, {"stage": 8}, 2, None, "layer"),
    "one_microbatch": (stack, {"stage": 4, "data": 2}, 1, None, "layer"),
    "pattern": (
        lambda: stack(LAYER, sj.Layer(sublayers=(sj.FeedForward(d_hidden=8),)), recipe=sj.recipe.DeepNorm()),
        *({"stage": 4, "data": 2}, 4, None, "layer"),
    ),
    "several_streams": (
        lambda: stack(recipe=sj.recipe.HyperConnections(), depth=4),
        *({"stage": 4, "data": 2}, 2, None, "layer"),
    ),
    "packed": (stack, {"stage": 4, "data": 2}, 4, sj.SideInputs(position=PACKED), "layer"),
    "packed_by_row": (
        stack,
        *({"stage": 4, "data": 2}, 4),
        sj.SideInputs(
            position={
                "index": jnp.stack([jnp.arange(T) % n for n in range(1, ROWS + 1)]),
                "segment": jnp.stack([jnp.arange(T) // n for n in range(1, ROWS + 1)]),
            }
        ),
        "layer",
    ),
    "blockwise": (
        lambda: stack(sj.Layer(sublayers=(sj.Attention(n_heads=2, backend="blockwise", window=3),)), depth=4),
        *({"stage": 4, "data": 2}, 4, None, "layer"),
    ),
    "memory": (
        lambda: stack(sj.Layer(sublayers=(sj.Attention(n_heads=2, cross=True),)), depth=4),
        *({"stage": 4, "data": 2}, 4),
        sj.SideInputs(
            memory=jax.random.normal(jax.random.key(3), (ROWS, 3, D)),
            memory_position={"index": jnp.where(jnp.arange(ROWS * 3).reshape(ROWS, 3) % 5 == 0, -1, 1)},
        ),
        "layer",
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES)
def test_many_pipelines_are_scans(case, x64):
    build, *rest = CASES[case]
    check_equal(build(), *rest)


@pytest.mark.thorough
def test_each_microbatch_has_its_key_and_its_losses(x64):
    """Dropout and a router's losses are those of `Stack.apply` on one microbatch after another."""
    experts = sj.MixtureOfExperts(n_experts=4, top_k=2, d_hidden=8, dispatch="dense", dropout=0.3)
    deep = stack(sj.Layer(sublayers=(sj.Attention(n_heads=2, dropout=0.5), experts)), depth=4)
    on, key, n = shard.mesh(stage=4, data=2), jax.random.key(5), 4

    def reference(params, x):
        made = [deep.apply(params, x[m::n], key=jax.random.fold_in(key, m)) for m in range(n)]
        y = jnp.stack([y for y, _ in made], 1).reshape(x.shape)
        loss = {name: sum(result.loss[name] for _, result in made) / n for name in made[0][1].loss}
        return y, sj.Result(loss=loss, state={}, measure={})

    params, x = drawn(deep), normal(ROWS, T, D).astype(jnp.float64)
    expected = value_and_gradients(reference, params, x)
    found = value_and_gradients(
        lambda params, x: pipeline.apply(deep, params, x, on=on, microbatches=n, key=key), params, x
    )
    assert largest_difference(found, expected) < 1e-12
    assert reference(params, x)[1].loss and largest_difference(expected[0][1], deep.apply(params, x)[0]) > 0.1


@pytest.mark.thorough
def test_a_model_is_embedded_piped_and_unembedded():
    """Without parameters on a mesh; any leading axes."""
    model = sj.decoder(vocab=7, d_model=D, depth=4, n_heads=2)
    params, tokens = model.init(jax.random.key(0)), jax.random.randint(jax.random.key(1), (2, 2, T), 0, 7)
    on = shard.mesh(stage=4, data=2)

    @jax.jit
    def piped(params, tokens):
        x = model.embed(params, tokens)
        x, result = pipeline.apply(model.stack, params["stack"], x, on=on, microbatches=2)
        return model.logits(params, x), result

    logits, result = piped(params, tokens)
    np.testing.assert_allclose(logits, jax.jit(model.apply)(params, tokens)[0], rtol=1e-5, atol=1e-6)
    assert result == sj.Result(loss={}, state={}, measure={})


def scan_lengths(jaxpr):
    """Lengths of all scans in a program, outer ones before those inside them."""
    lengths = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            lengths.append(equation.params["length"])
        for value in equation.params.values():
            for inner in jax.tree.leaves(value, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    lengths += scan_lengths(getattr(inner, "jaxpr", inner))
    return lengths


@pytest.mark.parametrize(
    ("sizes", "microbatches"),
    [
        ({"stage": 4, "data": 2}, 8),
        pytest.param({"stage": 8}, 8, marks=pytest.mark.thorough),
        pytest.param({"stage": 2, "data": 4}, 4, marks=pytest.mark.thorough),
    ],
)
@pytest.mark.parametrize("remat", ["layer", pytest.param("none", marks=pytest.mark.thorough)])
def test_each_stage_does_and_holds_its_share(sizes, microbatches, remat):
    """M + S - 1 ticks of L / S layers on B / M rows: the work of a stage is 1 / S, and the bubble that theory says."""
    on, n_stages, per_tick = shard.mesh(**sizes), sizes["stage"], microbatches * sizes.get("data", 1)
    deep = sj.Stack.of(LAYER, depth=32, d_model=64, recipe=sj.recipe.PreNorm())
    params, x = jax.eval_shape(deep.init, jax.random.key(0)), jax.ShapeDtypeStruct((32, 64, 64), jnp.float32)

    def plain(params, x):
        return jnp.sum(deep.apply(params, x, remat=remat)[0] ** 2)

    def piped(params, x):
        return jnp.sum(pipeline.apply(deep, params, x, on=on, microbatches=microbatches, remat=remat)[0] ** 2)

    ticks, per_stage = microbatches + n_stages - 1, 32 // n_stages
    assert scan_lengths(jax.make_jaxpr(piped)(params, x).jaxpr) == [ticks, per_stage]
    alone = jax.jit(jax.grad(plain)).lower(params, x).compile()
    where = shard.parameters(deep, on, pipeline.RULES)
    places = {"in_shardings": (where, shard.batch(on, pipeline.RULES)), "out_shardings": where}
    each = jax.jit(jax.grad(piped), **places).lower(params, x).compile()
    # XLA counts the body of a scan once: one layer, on the rows of one tick. Beside it a tick moves the stream.
    assert each.cost_analysis()["flops"] < 1.15 * alone.cost_analysis()["flops"] / per_tick
    found, whole = each.memory_analysis(), alone.memory_analysis()
    # All ticks are kept, those of the bubble included; and the gradients of the stage's layers, which ticks add up.
    bubble, gradients = (n_stages - 1) / ticks, whole.output_size_in_bytes / n_stages
    assert found.temp_size_in_bytes < 1.15 * (whole.temp_size_in_bytes / 8 / (1 - bubble) + gradients)
    split = 1.05 / n_stages / sizes.get("data", 1)  # norms, which are small, are not split over data
    assert found.output_size_in_bytes < split * whole.output_size_in_bytes


def test_what_stages_cannot_share_is_refused():
    x = jnp.zeros((ROWS, T, D))

    def refused(stack, match, on={"stage": 4, "data": 2}, microbatches=4, side_inputs=None):  # noqa: B006
        params = jax.tree.map(
            lambda declared: jnp.zeros(declared.shape), stack.declaration(), is_leaf=sj.parameter.is_spec
        )
        with pytest.raises(ValueError, match=match):
            pipeline.apply(stack, params, x, side_inputs, on=shard.mesh(**on), microbatches=microbatches)

    refused(stack(), "a mesh with an axis 'stage'; got {'data': 8}", on={"data": 8})
    refused(stack(), "divide the batch, of 8 rows; got microbatches=3", microbatches=3)
    refused(stack(), "divide the batch, of 8 rows; got microbatches=0", microbatches=0)
    refused(stack(depth=6), "repeated a multiple of 4 times; got Stack: 6 layers")
    refused(stack(depth=0), "repeated a multiple of 4 times; got Stack: 0 layers")
    refused(stack(looped=True), "not looped")
    refused(
        stack(*(LAYER,) * 4, *(sj.Layer(sublayers=(sj.FeedForward(d_hidden=8),)),) * 4), "one segment of equal layers"
    )
    refused(stack(recipe=sj.recipe.DenseFormer()), "DenseFormer keeps those of all layers")
    refused(stack(recipe=sj.recipe.PreNorm(residual=sj.residual.Pre(norm=sj.BatchNorm()))), "running statistics")
    twice = sj.SideInputs(position={"index": jnp.array([0, 1, 0, 1, 2])})
    refused(stack(), "an index must not stand twice", side_inputs=twice)
