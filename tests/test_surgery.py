"""Stacks grown and cut hold exactly the layers that were named, and what else is laid out by layers follows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stackjax as sj
from stackjax.surgery.selection import _OfLayers
from stackjax.testing import largest_difference, perturbed
from tests.cases import KINDS, POSITIONS, RECIPES, REFUSED
from tests.helpers import daily, output
from tests.test_serialization import drawn, same


def described(recipe="pre_norm", kind="decoder", depth=4):
    model = KINDS[kind](RECIPES[recipe], POSITIONS["rotary"], depth)
    return getattr(model, "model", model)


def path_of(model):
    return next(iter(model.stacks()))


BY_DEPTH = {"dense_former", "dlcl", "attention_residuals", "block_attention_residuals"}
"""Recipes that may declare parameters for each of the layers before one."""
CASES = [
    (recipe, kind)
    for recipe in RECIPES
    for kind in KINDS
    if kind not in REFUSED.get(recipe, ()) and (kind == "decoder" or recipe in ("pre_norm", "deepnorm"))
]


@pytest.mark.thorough
@pytest.mark.parametrize("coefficients", ["original", "new"])
def test_all_layers_in_order_are_the_same_model(coefficients):
    for recipe, kind in CASES:
        model = described(recipe, kind)
        params = drawn(model)
        for path, stack in model.stacks().items():
            again, moved, _ = sj.surgery.select(
                model, params, range(stack.depth), coefficients=coefficients, stack=path
            )
            assert again == model, (recipe, kind)
            assert same(moved, params)


ORDERS = {
    "stacked": sj.surgery.stacked(4, 2),
    "interleaved": sj.surgery.interleaved(4, 2),
    "duplicated": sj.surgery.duplicated(4, [1]),
    "pruned": sj.surgery.pruned(4, [0, 2]),
    "slice": list(range(1, 3)),
    "reversed": [3, 2, 1, 0],
    "none": [],
}


def test_orders():
    assert ORDERS["stacked"] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert ORDERS["interleaved"] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert ORDERS["duplicated"] == [0, 1, 1, 2, 3]
    assert ORDERS["pruned"] == [1, 3]


@pytest.mark.thorough
@pytest.mark.parametrize("coefficients", daily(["original", "new"], "original"))
@pytest.mark.parametrize("name", daily(ORDERS, "duplicated", "pruned", "none"))
def test_layers_are_where_they_are_named(name, coefficients):
    """In every kind of stack and for every recipe whose layers fit elsewhere."""
    order, n_done = ORDERS[name], 0
    for recipe, kind in CASES:
        model = described(recipe, kind)
        path = path_of(model)
        params = drawn(model)
        try:
            new, moved, _ = sj.surgery.select(model, params, order, coefficients=coefficients, stack=path)
        except ValueError as error:
            assert recipe in BY_DEPTH | {"value_residual", "hybrid_norm", "hybrid_norm_star", "mix_norm", "keel"} or (
                "loop" in str(error) and kind == "looped"
            ), (recipe, kind, error)
            continue
        n_done += 1
        assert jax.tree.map(jnp.shape, moved) == jax.tree.map(lambda d: d.shape, new.declaration())
        for i, layer in enumerate(order):
            assert same(new.layer_params(moved, i, path), model.layer_params(params, layer, path))
        other = {**moved, **{key: params[key] for key in params if key != path[0]}}
        assert same(other, moved)
    assert n_done > 40


def run(model, params, tokens=None):
    tokens = jnp.arange(10).reshape(2, 5) if tokens is None else tokens
    return output(model, params, tokens)


def test_the_original_numbers_are_those_of_the_old_places():
    """A recipe whose numbers differ by layer and depth, cut to layers 1 and 3."""
    model = described("layer_norm_scaling")
    params = drawn(model)
    old = model.stack.coefficients()["sublayer"][
        "gamma" if "gamma" in model.stack.coefficients()["sublayer"] else "beta"
    ]
    kept, moved, _ = sj.surgery.select(model, params, [1, 3], coefficients="original")
    new, _, _ = sj.surgery.select(model, params, [1, 3], coefficients="new")
    assert new == described("layer_norm_scaling", depth=2)
    for numbers in ("alpha", "beta", "gamma"):
        before = model.stack.coefficients()["sublayer"][numbers]
        np.testing.assert_array_equal(kept.stack.coefficients()["sublayer"][numbers], before[np.array([1, 3])])
    assert old.shape == (4, 2)
    again, _, _ = sj.surgery.select(kept, moved, [1], coefficients="original")
    assert again.stack.recipe == _OfLayers(
        base=RECIPES["layer_norm_scaling"], layers=(3,), geometry=model.stack.geometry
    )
    whole, _, _ = sj.surgery.select(kept, moved, [1, 0], coefficients="new")
    assert whole == new


@pytest.mark.parametrize("recipe", daily(["pre_norm", "deepnorm", "complete_p", "layer_norm_scaling", "ngpt"], "ngpt"))
def test_a_slice_computes_what_these_layers_compute(x64, recipe):
    """With the original numbers a stack is its two halves, one after the other."""
    stack = described(recipe).stack
    params = perturbed(stack.init(jax.random.key(0), jnp.float64))
    x = jax.random.normal(jax.random.key(1), (2, 5, 16))
    halves = [sj.surgery.select(stack, params, layers, coefficients="original") for layers in (range(2), range(2, 4))]
    seen = lambda trace: {"before": trace.before, "after": trace.after}  # noqa: E731
    whole = stack.apply(params, x, measure=seen)[1].measure
    first = halves[0][0].apply(halves[0][1], x, measure=seen)[1].measure
    np.testing.assert_allclose(first["after"], whole["after"][:2], rtol=1e-12, atol=1e-12)
    second = halves[1][0].apply(halves[1][1], whole["before"][2], measure=seen)[1].measure
    np.testing.assert_allclose(second["after"], whole["after"][2:], rtol=1e-11, atol=1e-12)


OPTIMISERS = {
    "adamw": lambda model: sj.optim.adamw(model, learning_rate=0.1, weight_decay=0.1),
    "muon": lambda model: sj.optim.muon(model, learning_rate=0.1),
    "masked": lambda model: optax.selective_transform(
        sj.optim.adamw(model, learning_rate=0.1),
        freeze_mask={"embedding": True, "stack": False, "head": True},
    ),
    "all_frozen": lambda model: optax.selective_transform(
        optax.adam(0.1), freeze_mask={"embedding": False, "stack": True, "head": False}
    ),
    "averaged": lambda model: optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
}


@pytest.mark.parametrize("name", daily(OPTIMISERS, "adamw", "masked"))
def test_the_state_follows(name):
    """Layers train on as they would have, since in these optimisers no layer depends on another."""
    model = described()
    params = perturbed(model.init(jax.random.key(0)))
    gradients = [perturbed(jax.tree.map(jnp.zeros_like, params), key=i, size=1.0) for i in range(2)]
    tx = OPTIMISERS[name](model)
    updates, state = tx.update(gradients[0], tx.init(params), params)
    params = optax.apply_updates(params, updates)
    order = [0, 1, 1, 3, 2]
    new, moved, follows = sj.surgery.select(model, params, order, coefficients="new", state=state)
    grown = OPTIMISERS[name](new)
    expected = jax.tree.map(jnp.shape, jax.eval_shape(grown.init, moved))
    assert jax.tree.map(jnp.shape, follows) == expected
    _, gradient, _ = sj.surgery.select(model, gradients[1], order, coefficients="new")
    after = optax.apply_updates(moved, grown.update(gradient, follows, moved)[0])
    plain = optax.apply_updates(params, tx.update(gradients[1], state, params)[0])
    _, plain, _ = sj.surgery.select(model, plain, order, coefficients="new")
    assert largest_difference(after, plain) < 1e-6


EXACT = {
    *("pre_norm", "peri_norm", "sandwich", "plain", "rezero", "skip_init", "layer_scale", "complete_p", "depth_mup"),
    *("scaled_init", "plain_scaled_init", "layer_norm_scaling", "res_post_norm", "sub_norm", "dyt"),
}
"""Recipes in which a branch of zeros leaves the stream alone."""


@pytest.mark.parametrize("recipe", daily(RECIPES, "pre_norm", "post_norm", "value_residual"))
def test_inserted_layers_change_nothing(recipe):
    model = described(recipe)
    params = perturbed(model.init(jax.random.key(0)))
    try:
        new, deeper, state = sj.surgery.insert_identity(
            model, params, [0, 3], coefficients="original", state={"moments": params}
        )
    except ValueError as error:
        assert recipe not in EXACT, error
        return
    assert new.stack.depth == 6
    np.testing.assert_array_equal(run(new, deeper), run(model, params))
    for inserted in (1, 5):
        assert not any(np.any(x) for x in jax.tree.leaves(new.layer_params(state["moments"], inserted)))
    assert same(new.layer_params(state["moments"], 2), model.layer_params(params, 1))
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(run(new, p))))(deeper)
    assert any(np.any(x) for x in jax.tree.leaves(new.layer_params(gradient, 1)))


@pytest.mark.parametrize("magnitude", [False, True])
def test_inserted_layers_of_an_adapted_model_change_nothing_and_learn(magnitude):
    """What the factors add to a matrix of zeros is zero as well."""
    model = described()
    adapted = sj.adapt.low_rank(model, rank=2, roles=("query", "out", "down"), magnitude=magnitude)
    params = perturbed(sj.adapt.start(adapted, drawn(model), jax.random.key(1)))
    new, deeper, _ = sj.surgery.insert_identity(adapted, params, [0, 3], coefficients="original")
    np.testing.assert_array_equal(run(new, deeper), run(adapted, params))
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(run(new, p))))(deeper)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    inserted = new.layer_params(gradient, 1)
    assert all(np.any(inserted[name]["low_rank"][role]["b"]) for name, role in LAST.items())


LAST = {"attention": "out", "feed_forward": "down"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean(sj.Sublayer):
    """A sublayer that ends in no matrix."""

    name: str = "mean"

    def spec(self, d_model):
        return {"up": sj.Spec(shape=(d_model, d_model), role="up")}

    def apply(self, params, x, side_inputs):
        return jnp.tanh(x @ params["up"]), sj.Aux()


def test_what_would_change_the_function_is_refused():
    own = sj.Stack.of(sj.Layer(sublayers=(Mean(),)), depth=2, d_model=4, recipe=sj.recipe.PreNorm())
    with pytest.raises(ValueError, match="no matrix of Mean has a role out of cross_out, down, out"):
        sj.surgery.insert_identity(own, drawn(own), [1], coefficients="new")
    model = described("layer_norm_scaling")
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="coefficients='original'"):
        sj.surgery.insert_identity(model, params, [1], coefficients="new")
    post = described("post_norm")
    with pytest.raises(ValueError, match="still changes the stream"):
        sj.surgery.insert_identity(post, drawn(post), [1], coefficients="new")
    looped = described(kind="looped")
    with pytest.raises(ValueError, match="loop"):
        sj.surgery.insert_identity(looped, drawn(looped), [1], coefficients="new")


def test_mistakes_are_refused():
    model = described()
    params = drawn(model)
    with pytest.raises(ValueError, match=r"0 \.\. 3; got 4"):
        sj.surgery.select(model, params, [0, 4], coefficients="new")
    with pytest.raises(ValueError, match="'original' or 'new'"):
        sj.surgery.select(model, params, [0], coefficients="old")
    translator = described(kind="encoder_decoder")
    with pytest.raises(ValueError, match="say which stack"):
        sj.surgery.select(translator, drawn(translator), [0], coefficients="new")
    factored = optax.scale_by_factored_rms(min_dim_size_to_factor=4).init(params)
    with pytest.raises(ValueError, match="not laid out by the 4 layers"):
        sj.surgery.select(model, params, [0], coefficients="new", state=factored)


def test_both_sides_of_an_encoder_decoder_know_the_new_depth():
    model = described("deepnorm", "encoder_decoder")
    new, _, _ = sj.surgery.select(model, drawn(model), [0, 1], coefficients="new", stack=("encoder",))
    assert new.decoder.stack.geometry.other_depth == 2 == new.encoder.depth
    kept, _, _ = sj.surgery.select(model, drawn(model), [0, 1], coefficients="original", stack=("encoder",))
    assert kept.decoder == model.decoder


def test_what_was_cut_can_be_saved(tmp_path):
    model = described("layer_norm_scaling")
    new, params, _ = sj.surgery.select(model, drawn(model), [1, 3, 3], coefficients="original")
    sj.save(tmp_path, new, params)
    again, read = sj.load(tmp_path)
    assert again == new and same(read, params)


def test_means():
    model = described()
    a, b = drawn(model), jax.tree.map(lambda x: x + 1, drawn(model))
    assert same(sj.surgery.interpolate(a, b, 0.0), a) and same(sj.surgery.interpolate(a, b, 1.0), b)
    assert same(sj.surgery.average([a]), a)
    assert largest_difference(sj.surgery.average([a, b], [3, 1]), jax.tree.map(lambda x: x + 0.25, a)) < 1e-5
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), a)
    assert same(sj.surgery.average([half, half]), half)
    with pytest.raises(ValueError, match="2 trees, 1 weights"):
        sj.surgery.average([a, b], [1.0])


def test_orders_of_layers_that_are_not_there():
    for order in (sj.surgery.pruned, sj.surgery.duplicated):
        for layer in (-1, 4):
            with pytest.raises(ValueError, match=rf"layers must be 0 .. 3; got {layer}"):
                order(4, [1, layer])
    assert sj.surgery.duplicated(3, [1, 1]) == [0, 1, 1, 1, 2]


def test_an_optimiser_of_the_stack_before_is_refused():
    """Its factors are those of another depth, of which nothing would be seen."""
    model = described("complete_p")
    optimizer = sj.optim.adamw(model, learning_rate=1e-3)
    new, params, _ = sj.surgery.select(model, drawn(model), sj.surgery.stacked(4, 2), coefficients="new")
    with pytest.raises(ValueError, match=r"has the shape \(8, .*\(4, .* is declared: it belongs to another desc"):
        optimizer.update(params, optimizer.init(params), params)
    with pytest.raises(ValueError, match="is declared: it belongs to another description"):
        sj.optim.clip_by_layer_norm(model, 1.0).update(params, optax.EmptyState())
    jax.eval_shape(sj.optim.adamw(new, learning_rate=1e-3).init, params)
