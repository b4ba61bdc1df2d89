"""Keys and values of an earlier layer: equal to a loop by hand, in a scan, in its gradients and in decoding."""

import jax
import jax.numpy as jnp
import pytest

import stackjax as sj
from stackjax import testing
from stackjax.testing import largest_difference, normal, perturbed
from tests.helpers import daily

D, T = 8, 5
SIZES = {"n_heads": 4, "n_kv_heads": 2, "position": sj.position.Rotary()}
OWN = sj.Layer(sublayers=(sj.Attention(**SIZES), sj.FeedForward(d_hidden=12)))
READS = sj.Layer(sublayers=(sj.CrossLayerAttention(**SIZES, qk_norm=sj.RMSNorm()), sj.FeedForward(d_hidden=12)))
PATTERNS = {
    "every second layer": (OWN, READS) * 3,
    "two of three": (OWN, READS, READS) * 2,
    "the upper half": (OWN,) * 3 + (READS,) * 3,
}


def built(layers, **options):
    stack = sj.Stack.of(*layers, depth=len(layers), d_model=D, recipe=sj.recipe.PreNorm(), **options)
    return sj.Model(embedding=sj.Embedding(vocab=11), stack=stack)


def by_hand(stack, params, x):
    """Layer after layer, with the keys and values of the last layer that made some in a variable."""

    def rotated(x):
        return SIZES["position"].rotate(table, "key", x)

    position = {"index": jnp.arange(T)[None]}
    sizes = {"query": position, "key": position, "new_key": position, "n_heads": 4, "d_head": 2}
    table = SIZES["position"].prepare({}, **sizes)
    for layer in range(stack.depth):
        p = stack.layer_params(params, layer)
        a, norms = p["attention"], {name: group["norm"] for name, group in p["residual"].items()}
        h = sj.norm.layer_norm(norms["attention"], x)
        if "key" in a:
            key, value = rotated((h @ a["key"]).reshape(2, T, 2, 2)), (h @ a["value"]).reshape(2, T, 2, 2)
        query = (h @ a["query"]).reshape(2, T, 4, 2)
        if "key" not in a:
            query = sj.norm.rms_norm(a["query_norm"], query)
        mask = jnp.tril(jnp.ones((T, T), bool))[None, None]
        y = sj.dot_product.dot_product_attention(rotated(query), key, value, scale=2**-0.5, mask=mask)
        x = x + y.reshape(2, T, D) @ a["out"]
        x = x + sj.feed_forward.two_layer(p["feed_forward"], sj.norm.layer_norm(norms["feed_forward"], x))
    return sj.norm.layer_norm(params["leave"]["inner"]["norm"], x)


@pytest.mark.thorough
@pytest.mark.parametrize("layers", PATTERNS.values(), ids=PATTERNS)
def test_against_a_loop_by_hand(x64, layers):
    stack, x = built(layers).stack, normal(2, T, D, key=1)
    params = perturbed(stack.init(jax.random.key(0), jnp.float64))

    def outcome(run):
        def loss(params):
            y = run(params)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    scanned = outcome(lambda params: stack.apply(params, x)[0])
    assert largest_difference(scanned, outcome(lambda params: by_hand(stack, params, x))) < 1e-12


def test_one_scan_and_no_keys_of_ones_own():
    model = built(PATTERNS["every second layer"] * 4)
    (segment,) = model.stack.segments
    assert segment.n == 12 and set(segment.layers[1].sublayers[0].spec(D)) == {
        "query", "out", "query_norm", "inner_norm", "position",
    }  # fmt: skip
    assert [one.n for one in built(PATTERNS["the upper half"]).stack.segments] == [3, 3]


@pytest.mark.parametrize("name", daily(PATTERNS, "two of three"))
def test_decoding_is_the_full_forward_and_keeps_what_is_made(name):
    layers = PATTERNS[name]
    model = built(layers)
    testing.decoding.check_decoding(model)
    params = model.init(jax.random.key(0))["stack"]
    position = {"index": jnp.arange(3)[None]}
    cache = sj.cache.empty(model.stack, params, sj.SideInputs(position=position), 6)
    sizes = [leaf.size for leaf in jax.tree.leaves(cache.segments)]
    assert sum(sizes) == layers.count(OWN) * 2 * 6 * 2 * 2


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [sj.recipe.PreNorm(), sj.recipe.HyperConnections(), sj.recipe.AttentionResiduals()])
def test_the_checks_of_a_model(recipe):
    stack = sj.Stack.of(*PATTERNS["two of three"], depth=6, d_model=D, recipe=recipe)
    model = sj.Model(embedding=sj.Embedding(vocab=11), stack=stack)
    for check in (testing.check_scan, testing.check_dtype, testing.check_causality, testing.check_decoding):
        check(model)


def test_inside_a_container(x64):
    """Attention beside the feed-forward network, whose keys are read by a layer that is made alike."""

    def beside(attention):
        return sj.Layer(sublayers=(sj.Parallel(sublayers=(attention, sj.FeedForward(d_hidden=12))),))

    reads = sj.CrossLayerAttention(**SIZES, keys_of="parallel")
    model = built((beside(sj.Attention(**SIZES)), beside(reads)) * 2)
    testing.decoding.check_decoding(model)


@pytest.mark.thorough
def test_behind_a_loop_the_last_turn_is_read(x64):
    model = sj.recurrence.looped(built((OWN, OWN, READS)), before=1, turns=3, after=1)
    params, tokens = model.init(jax.random.key(0)), jnp.arange(T)[None]
    looped, loop = (
        jax.jit(lambda p, loop=loop: model.apply(p, tokens, loop=loop)[0])(params) for loop in (False, True)
    )
    assert largest_difference(looped, loop) < 1e-12
    with pytest.raises(ValueError, match="read what its last turn made: leave out `turns`"):
        model.apply(params, tokens, turns=2)


def test_what_cannot_be(x64):
    def run(*layers):
        stack = built(layers).stack
        return stack.apply(stack.init(jax.random.key(0)), normal(2, T, D))

    with pytest.raises(ValueError, match="no earlier layer of the stack has an Attention"):
        run(READS, OWN)
    with pytest.raises(ValueError, match="must come before those that read it"):
        run(OWN, OWN, READS, OWN, READS, OWN, READS)
    wide = sj.Layer(sublayers=(sj.CrossLayerAttention(**{**SIZES, "n_kv_heads": 4}),))
    with pytest.raises(ValueError, match="must have the n_kv_heads"):
        run(OWN, wide)
    with pytest.raises(ValueError, match="must be chosen there; got bias="):
        sj.CrossLayerAttention(n_heads=2, bias=("key", "out"))
