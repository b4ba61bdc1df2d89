"""Edits: what they replace is replaced, wherever a stack runs, and nothing else changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax.testing import largest_difference, perturbed
from stackjax.testing.inputs import arguments, drawn
from tests.cases import KINDS, POSITIONS, RECIPES
from tests.helpers import daily, output

D, T, L, H = 16, 5, 4, 4
WIDER = ["hyper_connections", "attention_residuals", "dense_former", "value_residual", "sigma_reparam"]
CASES = [*(("pre_norm", kind) for kind in KINDS), *((recipe, "decoder") for recipe in WIDER)]
DIFFERENT = [
    *(("pre_norm", kind) for kind in ("local_global", "looped", "parallel", "encoder_decoder")),
    *((recipe, "decoder") for recipe in ("attention_residuals", "value_residual")),
]


def described(recipe="pre_norm", kind="decoder", depth=L):
    return KINDS[kind](RECIPES[recipe], POSITIONS["rotary"], depth)


def everywhere(model, function):
    """An edit of all sites of all stacks."""
    return model.per_stack(lambda path, stack: {site: function for site in stack.sites})


def small(**options):
    """A pre-norm decoder with parameters and tokens."""
    forward = sj.FeedForward(d_hidden=24)
    model = sj.decoder(vocab=11, d_model=D, depth=L, **{"feed_forward": forward, "n_heads": H, **options})
    params = perturbed(model.init(jax.random.key(0), jnp.result_type(float)))
    return model, params, jax.random.randint(jax.random.key(1), (2, T), 0, 11)


def run(model, params, tokens, **options):
    if not options:
        return output(model, params, tokens, dtype=jnp.result_type(float))
    return model.apply(params, tokens, dtype=jnp.result_type(float), **options)[0]


def without_rows(params, layer, rows):
    """Parameters with rows of one layer's output matrix of attention at zero."""
    segments = params["stack"]["segments"]["0"]["0"]
    attention = {**segments["attention"], "out": segments["attention"]["out"].at[layer, rows].set(0)}
    return {**params, "stack": {**params["stack"], "segments": {"0": {"0": {**segments, "attention": attention}}}}}


@pytest.mark.parametrize(("recipe", "kind"), daily(CASES, ("pre_norm", "decoder"), ("hyper_connections", "decoder")))
def test_an_edit_that_changes_nothing_changes_no_bit(recipe, kind):
    model = described(recipe, kind)
    params, inputs = drawn(model, jnp.float32), arguments(model, None, jnp.float32)
    seen = []

    def same(layer, value):
        seen.append(value)
        return value

    expected, edited = (model.apply(params, *inputs, edit=edit)[0] for edit in (None, everywhere(model, same)))
    np.testing.assert_array_equal(edited, expected)
    kinds = [layer for stack in model.stacks().values() for segment in stack.segments for layer in segment.layers]
    assert len(seen) >= sum(len(layer.sites) for layer in kinds)


def nudged(layer, value):
    """Something smooth that depends on the layer and on the value."""
    return jax.tree.map(lambda leaf: leaf * (1 + 0.1 * jnp.sin(layer + leaf)), value)


@pytest.mark.thorough
@pytest.mark.parametrize(("recipe", "kind"), daily(DIFFERENT, ("attention_residuals", "decoder")))
def test_a_scan_equals_the_loop_and_every_rematerialisation(x64, recipe, kind):
    model = described(recipe, kind)
    params, inputs = drawn(model), arguments(model, None, jnp.float64)

    def loss(params, size, **options):
        def edit(layer, value):
            return jax.tree.map(lambda leaf: leaf + size * (nudged(layer, leaf) - leaf), value)

        options = {"edit": everywhere(model, edit), "dtype": jnp.float64, "key": jax.random.key(2), **options}
        y, result = model.apply(params, *inputs, measure=sj.probe.standard, **options)
        return jnp.mean(jnp.sin(y)), result.measure

    def gradient(**options):
        return jax.value_and_grad(lambda *at: loss(*at, **options), (0, 1), has_aux=True)(params, 1.0)

    loop = gradient(loop=True)
    assert abs(loop[1][1]) > 1e-4
    ways = ({}, {"remat": "layer"}, {"remat": "nested"})
    scans = jax.jit(lambda: [gradient(**options) for options in ways])()
    for way, scanned in zip(ways, scans, strict=True):
        assert largest_difference(scanned, loop) < 1e-9, way


@pytest.mark.parametrize("name", ["attention", "feed_forward"])
def test_a_branch_whose_output_is_zero_is_not_there(x64, name):
    model, params, tokens = small()
    edited = run(model, params, tokens, edit={f"{name}/output": lambda layer, y: jnp.zeros_like(y)})
    (layer,) = model.stack.segments[0].layers
    rest = sj.Layer(sublayers=tuple(sublayer for sublayer in layer.sublayers if sublayer.name != name))
    shorter = dataclasses.replace(
        model, stack=sj.Stack.of(rest, depth=L, d_model=D, recipe=sj.recipe.PreNorm(), side="decoder")
    )
    stored = params["stack"]["segments"]["0"]["0"]
    stored = {key: value for key, value in stored.items() if key != name}
    stored["residual"] = {key: value for key, value in stored["residual"].items() if key != name}
    without = {**params, "stack": {**params["stack"], "segments": {"0": {"0": stored}}}}
    np.testing.assert_allclose(edited, run(shorter, without, tokens), rtol=1e-12, atol=1e-12)


ATTENTIONS = {
    "plain": sj.Attention(n_heads=H),
    "grouped_gated_normed": sj.Attention(n_heads=H, n_kv_heads=2, gate="feature", inner_norm=sj.RMSNorm()),
    "fused": sj.Attention(n_heads=H, backend="xla"),
    "blockwise": sj.Attention(n_heads=H, backend="blockwise"),
    "latent": sj.LatentAttention(n_heads=H, d_head=3, d_rotary=2, d_latent=5, d_value=4),
}


@pytest.mark.parametrize("name", daily(ATTENTIONS, "grouped_gated_normed", "latent"))
def test_a_head_at_zero_is_its_rows_of_the_output_matrix_at_zero(x64, name):
    model, params, tokens = small(attention=ATTENTIONS[name], position=ATTENTIONS["latent"].position)

    def without(l, h):
        def ablate(layer, heads):
            return jnp.where((layer == l) & (jnp.arange(H) == h)[:, None], 0, heads)

        return run(model, params, tokens, edit={"attention/heads": ablate})

    edited = jax.jit(jax.vmap(jax.vmap(without, (None, 0)), (0, None)))(jnp.arange(L), jnp.arange(H))
    tolerance = 1e-6 if name == "fused" else 1e-11  # XLA's own attention sums in float32
    for l, h in ((0, 0), (2, 3), (3, 1)):
        expected = run(model, without_rows(params, l, slice(h * D // H, (h + 1) * D // H)), tokens)
        assert largest_difference(edited[l, h], expected) < tolerance
        assert largest_difference(edited[l, h], run(model, params, tokens)) > 1e-3


@pytest.mark.parametrize(
    "forward",
    [
        sj.FeedForward(d_hidden=24, bias=True),
        sj.FeedForward(d_hidden=24, gated=True, inner_norm=sj.RMSNorm()),
    ],
    ids=["plain", "gated_normed"],
)
def test_a_hidden_unit_at_zero_is_its_column_of_the_up_matrix_at_zero(x64, forward):
    """Gelu and its gate are zero at zero; units are seen as they were edited."""
    model, params, tokens = small(feed_forward=forward)
    group = params["stack"]["segments"]["0"]["0"]["feed_forward"]

    def without(l, unit):
        def ablate(layer, hidden):
            return jnp.where((layer == l) & (jnp.arange(24) == unit), 0, hidden)

        options = {"edit": {"feed_forward/hidden": ablate}, "measure": sj.probe.values("feed_forward/hidden")}
        logits, result = model.apply(params, tokens, dtype=jnp.float64, **options)
        return logits, result.measure["feed_forward/hidden"]

    logits, hidden = jax.jit(jax.vmap(without))(jnp.array([0, 3]), jnp.array([5, 23]))
    assert hidden.shape == (2, L, 2, T, 24)
    for i, (l, unit) in enumerate(((0, 5), (3, 23))):
        changed = {name: group[name].at[l, ..., unit].set(0) for name in group if name in ("up", "up_bias")}
        layer = {**params["stack"]["segments"]["0"]["0"], "feed_forward": {**group, **changed}}
        stack = {**params["stack"], "segments": {"0": {"0": layer}}}
        assert largest_difference(logits[i], run(model, {**params, "stack": stack}, tokens)) < 1e-11
        assert (hidden[i, l, ..., unit] == 0).all() and (jnp.abs(hidden[i, 1]).min() > 0)


def test_hidden_units_made_in_blocks_are_no_site():
    model, _, _ = small(feed_forward=sj.FeedForward(d_hidden=24, block=2))
    assert "feed_forward/hidden" not in model.stack.sites


def test_weights_that_are_edited_are_those_that_meet_the_values(x64):
    model, params, tokens = small()
    first = {"attention/weights": lambda layer, weights: jnp.zeros_like(weights).at[..., 0].set(1.0)}
    y, result = model.apply(
        params, tokens, dtype=jnp.float64, edit=first, measure=sj.probe.values("attention/weights", "attention/heads")
    )
    assert y.shape == (2, T, 11)
    heads, weights = result.measure["attention/heads"], result.measure["attention/weights"]
    np.testing.assert_array_equal(weights[..., 0], 1)
    np.testing.assert_allclose(heads, jnp.broadcast_to(heads[:, :, :1], heads.shape), rtol=1e-12)


@pytest.mark.thorough
def test_every_layer_and_head_patched_by_vmap_equals_the_loop(x64):
    model, params, tokens = small()
    others = jnp.roll(tokens, 2)
    measured = model.apply(params, tokens, dtype=jnp.float64, measure=sj.probe.values("attention/heads"))[1].measure
    clean = measured["attention/heads"]
    assert clean.shape == (L, 2, T, H, D // H)

    def patched(l, h, **options):
        def patch(layer, heads):
            return jnp.where((layer == l) & (jnp.arange(H) == h)[:, None], clean[layer], heads)

        logits = run(model, params, others, edit={"attention/heads": patch}, **options)
        return jnp.sum(jax.nn.log_softmax(logits)[..., 3])

    effects = jax.jit(jax.vmap(jax.vmap(patched, (None, 0)), (0, None)))(jnp.arange(L), jnp.arange(H))
    one_by_one = [[float(patched(l, h, loop=True)) for h in range(H)] for l in range(L)]
    np.testing.assert_allclose(effects, one_by_one, rtol=1e-11)
    assert len(np.unique(np.round(effects, 6))) == L * H


@pytest.mark.parametrize(
    "recipe", daily(["pre_norm", "hyper_connections", "resi_dual", "value_residual"], "hyper_connections")
)
def test_the_stream_of_another_input_gives_its_output(x64, recipe):
    """A whole stream put in place in front of a layer decides all that follows."""
    model = described(recipe)
    params, (tokens, side_inputs) = drawn(model), arguments(model, None, jnp.float64)
    site, options = "attention/stream", {"dtype": jnp.float64}
    y, result = model.apply(params, tokens, side_inputs, measure=sj.probe.values(site), **options)
    recorded = result.measure

    def patch(layer, stream):
        leaves, tree = jax.tree.flatten(stream)
        put = [jnp.where(layer == 2, new[layer], old) for new, old in zip(recorded.values(), leaves, strict=True)]
        return jax.tree.unflatten(tree, put)

    others = jnp.roll(tokens, 1, -1)
    patched, plain = (run(model, params, others, edit=edit) for edit in ({site: patch}, None))
    np.testing.assert_allclose(patched, y, rtol=1e-12, atol=1e-12)
    assert largest_difference(plain, y) > 1e-2


@pytest.mark.thorough
def test_measures_read_what_edits_see():
    """In an eager loop the two can be compared, value by value, at every site."""
    model = described("resi_dual", "parallel")
    params, (tokens, side_inputs) = drawn(model, jnp.float32), arguments(model, None, jnp.float32)
    sites = model.stack.sites
    assert {"parallel/near/heads", "parallel/attention/weights", "parallel/feed_forward/input"} < set(sites)
    seen = {}

    def note(site, layer, value):
        for path, leaf in jax.tree_util.tree_leaves_with_path(value):
            name = "/".join((site, *(str(key.key) for key in path)))
            seen[name, int(layer)] = leaf
        return value

    edit = {site: lambda layer, value, site=site: note(site, layer, value) for site in sites}
    options = {"edit": edit, "measure": sj.probe.values(*sites), "loop": True}
    _, result = model.apply(params, tokens, side_inputs, **options)
    assert {name for name, _ in seen} == set(result.measure) and len(seen) == L * len(result.measure)
    for (name, layer), value in seen.items():
        np.testing.assert_array_equal(result.measure[name][layer], value)


def test_steering_is_learned_by_gradient():
    model, params, tokens = small()

    @jax.jit
    @jax.grad
    def gradient(steer):
        logits = run(model, params, tokens, edit={"feed_forward/stream": lambda layer, x: x + steer[layer]})
        return sj.loss.next_token(logits, tokens)

    slopes = gradient(jnp.zeros((L, D)))
    assert np.all(np.linalg.norm(slopes, axis=-1) > 0)


def test_edits_work_in_both_stacks_of_an_encoder_decoder(x64):
    model = described(kind="encoder_decoder")
    params, inputs = drawn(model), arguments(model, None, jnp.float64)
    zero = {"attention/output": lambda layer, y: jnp.where(layer == 1, 0, y)}
    across = {"cross_attention/heads": lambda layer, heads: jnp.zeros_like(heads)}
    plain = model.apply(params, *inputs, dtype=jnp.float64)[0]
    edits = [{"encoder": zero, "decoder": None}, {"encoder": {}, "decoder": zero}, {"encoder": zero, "decoder": across}]
    one, two, cut = (model.apply(params, *inputs, dtype=jnp.float64, edit=edit)[0] for edit in edits)
    only = model.apply(params, *inputs, dtype=jnp.float64, edit={"encoder": None, "decoder": across})[0]
    assert min(largest_difference(y, plain) for y in (one, two, cut)) > 1e-3
    np.testing.assert_allclose(cut, only, rtol=1e-12)  # nobody looks at the memory any more
    with pytest.raises(ValueError, match=r"edit must be a dict \{encoder: .., decoder: ..\}"):
        model.apply(params, *inputs, edit=zero)
    with pytest.raises(ValueError, match="got cross_attention/heads"):
        model.apply(params, *inputs, edit={"encoder": across, "decoder": None})


def test_weights_are_made_for_an_edit_or_refused(monkeypatch):
    monkeypatch.setattr(sj.blockwise, "large", lambda n_queries, n_keys: True)
    first = {"attention/weights": lambda layer, weights: jnp.zeros_like(weights).at[..., 0].set(1.0)}
    model, params, tokens = small()
    plain, _, _ = small(attention=sj.Attention(n_heads=H, backend="plain"))
    measure = sj.probe.values("attention/weights")
    assert not model.apply(params, tokens, measure=measure)[1].measure
    expected = run(plain, params, tokens, edit=first)
    assert largest_difference(run(model, params, tokens, edit=first), expected) < 1e-5
    assert largest_difference(expected, run(plain, params, tokens)) > 1e-2
    for backend in ("blockwise", "xla"):
        chosen, _, _ = small(attention=sj.Attention(n_heads=H, backend=backend))
        for loop in (False, True):
            with pytest.raises(ValueError, match="makes no weights to edit; use backend='plain'"):
                run(chosen, params, tokens, edit=first, loop=loop)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"attention/head": lambda layer, value: value}, "names sites out of attention/stream, .*; got attention/head"),
        ({"cross_attention/heads": lambda layer, value: value}, "got cross_attention/heads"),
        (lambda layer, site, value: value, "edit must be a dict of functions"),
        ({"attention/heads": 0.0}, "edit must be a dict of functions"),
        ({"attention/heads": lambda layer, heads: heads[0]}, r"float32\[2, 5, 4, 4\].* returned float32\[5, 4, 4\]"),
        ({"attention/output": lambda layer, y: y.astype(jnp.bfloat16)}, r"returned bfloat16\[2, 5, 16\]"),
        ({"attention/stream": lambda layer, x: {"x": x}}, r"returned \{'x': 'float32\[2, 5, 16\]'\}"),
        ({"attention/stream": lambda layer, x: None}, "returned NoneType None"),
    ],
)
def test_mistakes_are_said_when_the_program_is_made(edit, message):
    model, params, tokens = small()
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda params: run(model, params, tokens, edit=edit), params)


def test_nothing_is_compiled_for_edits_that_nobody_asks_for():
    model, params, tokens = small()
    plain, empty = (
        str(jax.make_jaxpr(lambda params, edit=edit: run(model, params, tokens, edit=edit))(params))
        for edit in (None, {})
    )
    assert plain == empty
