"""Every recipe, every position, every stack kind keeps the same promises; `cases` lists them.

Every run has the recipes that stand for the others with one position, and each position and each stack kind with one
recipe. All recipes, depths 0 and 1, and the product, sampled by a seed, are behind the marker `slow`.
"""

import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import position, recipe
from tests.cases import KINDS, PATHS, POSITIONS, RECIPES, REFUSED, UNUSUAL_FIRST, Translator, side_inputs
from tests.helpers import largest_difference, normal, perturbed


def check(rule, where, kind, depth, seen=None):
    """scan = loop = every rematerialisation, in values and gradients, and every parameter matters."""
    with jax.enable_x64(True):
        model = KINDS[kind](rule, where, depth)
        params = perturbed(model.init(jax.random.key(0), jnp.float64))
        tokens = jax.random.randint(jax.random.key(1), (2, 5), 0, 11)
        weights = normal(2, 5, 11, key=2)

        def loss(params, taps, **options):
            logits, result = model.apply(
                params,
                tokens,
                seen,
                dtype=jnp.float64,
                key=jax.random.key(3),
                taps=taps,
                measure=sj.probe.standard,
                **options,
            )
            return jnp.sum(logits * weights) + sum(result.loss.values()), (logits, result.measure)

        ways = ({"loop": True}, {}, {"remat": "layer"}, {"remat": "nested"})

        def run(params, way):
            return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, jnp.zeros(depth + 1), **way)

        reference = run(params, ways[0])
        others = jax.jit(lambda params: [run(params, way) for way in ways[1:]])(params)
        for way, other in zip(ways[1:], others, strict=True):
            assert largest_difference(other, reference) < 1e-9, way

        gradients = reference[1][0]
        for (path, gradient), declared in zip(
            jax.tree_util.tree_leaves_with_path(gradients),
            jax.tree.leaves(model.declaration(), is_leaf=sj.parameter.is_spec),
            strict=True,
        ):
            name = sj.parameter.path_name(path)
            assert gradient.shape == declared.shape, name
            if declared.spec.role != "statistic" and gradient.size and not name.endswith("key_bias"):
                assert np.abs(gradient).max() > 0, f"{name} has no effect"


@pytest.mark.parametrize("name", UNUSUAL_FIRST)
def test_recipe(name):
    depth = 6 + list(RECIPES).index(name) % 2
    check(RECIPES[name], position.Rotary(), "decoder", depth)


@pytest.mark.parametrize("name", POSITIONS)
def test_position(name):
    check(recipe.PreNorm(), POSITIONS[name], "decoder", 2, side_inputs(name))


@pytest.mark.parametrize("depth", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("kind", KINDS)
def test_kind(kind, depth):
    check(recipe.PreNorm(), position.Rotary(), kind, depth)


def check_decoding(rule, where, kind, *, left=True, dtype=jnp.float64, tolerance=1e-10, path=None):
    """Ragged prompts, then a token at a time: logits equal those of the full forward pass."""

    def located(index):
        found = {} if path is None else {"path": jnp.where(index[..., None] < 0, -1, jnp.asarray(path)[index])}
        return {"index": index, **found}

    with jax.enable_x64(dtype == jnp.float64):
        built = KINDS[kind](rule, where, 2)
        whole = perturbed(built.init(jax.random.key(0), dtype))
        tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, 11, jnp.int32)
        lengths = np.array([4, 2])
        prompt = located(sj.decode.pad([[0] * n for n in lengths], left=left)[1].position["index"])
        steps = located(jnp.asarray(lengths + np.arange(3)[:, None], jnp.int32)[..., None])
        seen = {} if path is None else {"side_inputs": sj.SideInputs(position=located(jnp.arange(7, dtype=jnp.int32)))}

        @jax.jit
        def run(whole):
            reference, _ = built.apply(whole, tokens, dtype=dtype, **seen)
            model, params, memory = built, whole, None
            if isinstance(built, Translator):
                memory, _ = built.encode(whole, tokens[:, ::-1], dtype=dtype)
                model, params = built.decoder, whole["decoder"]
            begin = sj.SideInputs(position=prompt, memory=memory)
            cache = sj.cache.empty(model.stack, params["stack"], begin, 7, dtype=dtype)

            def extend(cache, where):
                now = jnp.take_along_axis(tokens, where["index"], 1, mode="clip")
                x, cache = sj.decode.extend(model, params, now, sj.SideInputs(position=where), cache, dtype=dtype)
                wanted = jnp.take_along_axis(reference, where["index"][..., None], 1, mode="clip")
                real = (where["index"] >= 0)[..., None]
                return cache, jnp.where(real, (model.logits(params, x) - wanted) / jnp.max(jnp.abs(reference)), 0)

            cache, first = extend(cache, prompt)
            return first, jax.lax.scan(extend, cache, steps)[1]

        assert max(np.abs(x).max() for x in run(whole)) < tolerance


@pytest.mark.parametrize("name", UNUSUAL_FIRST)
def test_decoding_recipe(name):
    check_decoding(RECIPES[name], position.Rotary(), "decoder")


@pytest.mark.parametrize("name", POSITIONS)
def test_decoding_position(name):
    path = None
    if name.startswith("tree"):
        path = np.array([p + (-1,) * (4 - len(p)) for p in (*PATHS, (2,), (2, 0))], np.int32)
    check_decoding(recipe.PreNorm(), POSITIONS[name], "decoder", left=False, path=path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "encoder"])
def test_decoding_kind(kind):
    check_decoding(recipe.PreNorm(), position.Rotary(), kind)


@pytest.mark.parametrize("kind", ["local_global", "latent", "encoder_decoder"])
def test_decoding_in_float32(kind):
    check_decoding(recipe.PreNorm(), position.Rotary(), kind, left=False, dtype=jnp.float32, tolerance=1e-5)


PRODUCT = [
    (rule, where, kind)
    for rule, where, kind in itertools.product(RECIPES, POSITIONS, KINDS)
    if kind not in REFUSED.get(rule, ()) and kind not in REFUSED.get(where, ())
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RECIPES)
def test_every_pair_is_made_or_refused(name, kind):
    if kind in REFUSED.get(name, ()):
        with pytest.raises(ValueError, match=r"."):
            KINDS[kind](RECIPES[name], position.Rotary(), 6).declaration()
        return
    assert KINDS[kind](RECIPES[name], position.Rotary(), 6).declaration()


@pytest.mark.slow
@pytest.mark.parametrize("case", random.Random(0).sample(PRODUCT, min(len(PRODUCT), 200)), ids="-".join)
def test_product(case):
    rule, where, kind = case
    check(RECIPES[rule], POSITIONS[where], kind, 6, side_inputs(where))


@pytest.mark.parametrize("name", RECIPES)
def test_low_precision_stays(name):
    model = KINDS["decoder"](RECIPES[name], position.Rotary(), 3)
    params = model.init(jax.random.key(0))
    x = normal(2, 5, 16, key=1, dtype=jnp.bfloat16)
    y, _ = jax.jit(model.stack.apply)(params["stack"], x)
    assert y.dtype == jnp.bfloat16 and y.shape == x.shape and np.isfinite(np.asarray(y, np.float32)).all()
