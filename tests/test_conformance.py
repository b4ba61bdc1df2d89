"""Every recipe, every position, every stack kind keeps the same promises. A new scheme adds one line here.

CI runs each recipe with one position, each position and each stack kind with one recipe. The full product is behind
the marker `slow`, sampled by a seed.
"""

import dataclasses
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stackjax as sj
from stackjax import position, recipe
from tests.helpers import largest_difference, normal, perturbed

RECIPES = {
    "pre_norm": recipe.PreNorm(),
    "post_norm": recipe.PostNorm(),
    "sandwich": recipe.SandwichNorm(),
    "peri_norm": recipe.PeriNorm(),
    "res_post_norm": recipe.ResPostNorm(),
    "sub_norm": recipe.SubNorm(),
    "norm_former": recipe.NormFormer(),
    "mix_norm": recipe.MixNorm(),
    "residual_dual": recipe.ResiDual(),
    "hybrid_norm": recipe.HybridNorm(),
    "hybrid_norm_star": recipe.HybridNorm(first=recipe.residual.Pre()),
    "keel": recipe.Keel(),
    "plain": recipe.PlainResidual(),
    "no_residual": recipe.WithoutResidual(),
    "deepnorm": recipe.DeepNorm(),
    "admin": recipe.Admin(),
    "layer_norm_scaling": recipe.LayerNormScaling(),
    "rezero": recipe.ReZero(),
    "skip_init": recipe.SkipInit(),
    "layer_scale": recipe.LayerScale(),
    "highway": recipe.Highway(),
    "scaled_init": recipe.ScaledInit(),
    "complete_p": recipe.CompleteP(base_width=8),
    "depth_mup": recipe.DepthMuP(base_width=8),
    "ds_init": recipe.DSInit(),
    "weighted": recipe.Weighted(residual=recipe.residual.Post(), alpha=0.9, beta=1.1, gamma=0.8),
    "t_fixup": recipe.TFixup(),
    "dyt": recipe.DyT(),
    "plain_scaled_init": recipe.PlainScaledInit(),
    "shaped": recipe.Shaped(),
    "sigma_reparam": recipe.SigmaReparam(),
    "hyper_connections": recipe.HyperConnections(),
    "static_hyper_connections": recipe.HyperConnections(
        residual=recipe.hyper_connections.HyperConnected(dynamic=False)
    ),
}

POSITIONS = {
    "none": position.NoPosition(),
    "scalar": position.Scalar(period=10.0),
    "sinusoidal": position.Sinusoidal(),
    "learned": position.Learned(n_positions=16),
    "rotary": position.Rotary(),
    "rotary_and_learned": position.Both(first=position.Rotary(), second=position.Learned(n_positions=16)),
    "shaw": position.Shaw(max_distance=2),
    "transformer_xl": position.TransformerXL(),
    "t5": position.T5Bias(n_buckets=4, max_distance=8),
    "t5_per_layer": position.T5Bias(n_buckets=8, max_distance=8, bidirectional=True, per_layer=True),
    "alibi": position.ALiBi(),
    "fire": position.FIRE(d_hidden=4, threshold=3.0),
    "tree_path": position.TreePath(arity=3, depth=4),
    "tree_rotary": position.Both(first=position.Rotary(d_rotary=4), second=position.TreeRotary(n_depth=1, n_levels=1)),
    "tree_bias": position.Both(first=position.Rotary(), second=position.TreeBias(max_steps=2)),
}

PATHS = ((), (0,), (0, 1), (1,), (1, 0, 2))
"""Of five tokens, for the encodings that read them."""


def given(name: str, n_batch: int = 2) -> sj.Given:
    """What the encoding of this name has to be given."""
    if not name.startswith("tree"):
        return sj.Given()
    path = np.array([path + (-1,) * (4 - len(path)) for path in PATHS], np.int32)
    both = {"index": np.arange(5, dtype=np.int32), "path": path}
    return sj.Given(position={k: jnp.broadcast_to(v, (n_batch, *v.shape)) for k, v in both.items()})


FORWARD = sj.FeedForward(d_hidden=24)


def _decoder(rule, where, depth):
    return sj.decoder(vocab=11, d_model=16, depth=depth, n_heads=2, recipe=rule, position=where, feed_forward=FORWARD)


def _encoder(rule, where, depth):
    return sj.encoder(vocab=11, d_model=16, depth=depth, n_heads=2, recipe=rule, position=where, feed_forward=FORWARD)


def _local_global(rule, where, depth):
    model = _decoder(recipe.PreNorm(), where, 1)
    attention, forward = model.stack.segments[0].layers[0].subs
    local = sj.Layer(subs=(sj.Attention(n_heads=2, window=2, position=attention.position), forward))
    layers = (local, local, sj.Layer(subs=(attention, forward)))
    return _with_stack(model, layers, rule, depth)


def _gated_grouped(rule, where, depth):
    model = _decoder(recipe.PreNorm(), where, 1)
    inside = model.stack.segments[0].layers[0].subs[0].position
    attention = sj.Attention(
        n_heads=4,
        n_kv_heads=2,
        position=inside,
        qk_norm=sj.RMSNorm(),
        soft_cap=5.0,
        sinks=True,
        bias=("query", "out"),
    )
    layer = sj.Layer(subs=(attention, sj.FeedForward(d_hidden=24, gated=True, bias=True)))
    return _with_stack(model, (layer,), rule, depth)


def _looped(rule, where, depth):
    model = _decoder(recipe.PreNorm(), where, 1)
    layer = sj.Layer(subs=model.stack.segments[0].layers[0].subs)
    return _with_stack(model, (layer,), rule, depth, looped=True)


def _biased_experts(rule, where, depth):
    model = _decoder(rule, where, 1)
    attention, _ = model.stack.segments[0].layers[0].subs
    gate = {"activation": sj.feed_forward.ClampedSwish(limit=1.0), "up_activation": sj.feed_forward.ShiftedClip()}
    experts = sj.MixtureOfExperts(n_experts=3, d_hidden=12, bias=True, **gate)
    return _with_stack(model, (sj.Layer(subs=(attention, experts)),), rule, depth)


def _experts(rule, where, depth):
    model = _decoder(rule, where, 1)
    attention, forward = model.stack.segments[0].layers[0].subs
    experts = sj.MixtureOfExperts(
        n_experts=4, d_hidden=12, score="sigmoid", n_groups=2, top_groups=1, bias_rate=0.01, shared_expert=forward
    )
    return _with_stack(model, (sj.Layer(subs=(attention, experts)),), rule, depth)


def _latent(rule, where, depth):
    model = _decoder(rule, where, 1)
    inside = model.stack.segments[0].layers[0].subs[0].position
    attention = sj.LatentAttention(
        n_heads=2, d_head=6, d_rotary=4, d_latent=5, d_query_latent=7, d_value=3, position=inside
    )
    return _with_stack(model, (sj.Layer(subs=(attention, FORWARD)),), rule, depth)


def _parallel(rule, where, depth):
    model = _decoder(rule, where, 1)
    attention, forward = model.stack.segments[0].layers[0].subs
    near = dataclasses.replace(attention, name="near", window=2)
    side_by_side = sj.Parallel(subs=(near, attention, forward), norm=sj.LayerNorm())
    return _with_stack(model, (sj.Layer(subs=(side_by_side,)),), rule, depth)


@dataclasses.dataclass(frozen=True)
class Translator:
    """An encoder-decoder that reads its own target; taps are the encoder's, seen through the decoder."""

    model: sj.EncoderDecoder

    def __getattr__(self, name):
        return getattr(self.model, name)

    def apply(self, params, tokens, taps=None, **options):
        both = None if taps is None else {"encoder": taps, "decoder": None}
        return self.model.apply(params, tokens[:, ::-1], tokens, taps=both, **options)


def _encoder_decoder(rule, where, depth):
    return Translator(
        sj.encoder_decoder(
            vocab=11,
            source_vocab=11,
            d_model=16,
            depth=max(depth, 1),
            encoder_depth=depth,
            n_heads=2,
            recipe=rule,
            position=where,
            attention=sj.Attention(n_heads=2, gate="head"),
            feed_forward=FORWARD,
        )
    )


def _with_stack(model, layers, rule, depth, **options):
    stack = sj.Stack.of(*layers, depth=depth, d_model=16, recipe=rule, **options)
    return dataclasses.replace(model, stack=stack)


KINDS = {
    "decoder": _decoder,
    "encoder": _encoder,
    "local_global": _local_global,
    "gated_grouped": _gated_grouped,
    "looped": _looped,
    "experts": _experts,
    "biased_experts": _biased_experts,
    "latent": _latent,
    "parallel": _parallel,
    "encoder_decoder": _encoder_decoder,
}


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


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name):
    depth = 6 + list(RECIPES).index(name) % 2
    check(RECIPES[name], position.Rotary(), "decoder", depth)


@pytest.mark.parametrize("name", POSITIONS)
def test_position(name):
    check(recipe.PreNorm(), POSITIONS[name], "decoder", 2, given(name))


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_kind(kind, depth):
    check(recipe.PreNorm(), position.Rotary(), kind, depth)


def check_decoding(rule, where, kind, *, left=True, dtype=jnp.float64, tolerance=1e-10):
    """Ragged prompts, then a token at a time: logits equal those of the full forward pass."""
    with jax.enable_x64(dtype == jnp.float64):
        built = KINDS[kind](rule, where, 2)
        whole = perturbed(built.init(jax.random.key(0), dtype))
        tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, 11, jnp.int32)
        lengths = np.array([4, 2])
        _, prompt = sj.decode.pad([[0] * n for n in lengths], left=left)
        steps = {"index": jnp.asarray(lengths + np.arange(3)[:, None], jnp.int32)[..., None]}

        @jax.jit
        def run(whole):
            reference, _ = built.apply(whole, tokens, dtype=dtype)
            model, params, memory = built, whole, None
            if isinstance(built, Translator):
                memory, _ = built.encode(whole, tokens[:, ::-1], dtype=dtype)
                model, params = built.decoder, whole["decoder"]
            cache = sj.cache.empty(model.stack, params["stack"], prompt, 7, dtype=dtype, memory=memory)

            def extend(cache, where):
                now = jnp.take_along_axis(tokens, where["index"], 1, mode="clip")
                x, cache = sj.decode.extend(model, params, now, where, cache, dtype=dtype)
                wanted = jnp.take_along_axis(reference, where["index"][..., None], 1, mode="clip")
                real = (where["index"] >= 0)[..., None]
                return cache, jnp.where(real, (model.logits(params, x) - wanted) / jnp.max(jnp.abs(reference)), 0)

            cache, first = extend(cache, prompt)
            return first, jax.lax.scan(extend, cache, steps)[1]

        assert max(np.abs(x).max() for x in run(whole)) < tolerance


@pytest.mark.parametrize("name", RECIPES)
def test_decoding_recipe(name):
    check_decoding(RECIPES[name], position.Rotary(), "decoder")


@pytest.mark.parametrize("name", POSITIONS)
def test_decoding_position(name):
    check_decoding(recipe.PreNorm(), POSITIONS[name], "decoder", left=False)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "encoder"])
def test_decoding_kind(kind):
    check_decoding(recipe.PreNorm(), position.Rotary(), kind)


@pytest.mark.parametrize("kind", ["local_global", "latent", "encoder_decoder"])
def test_decoding_in_float32(kind):
    check_decoding(recipe.PreNorm(), position.Rotary(), kind, left=False, dtype=jnp.float32, tolerance=1e-5)


REFUSED = {
    ("mix_norm", "looped"),
    ("hybrid_norm_star", "looped"),
    ("hybrid_norm", "gated_grouped"),
    ("hybrid_norm_star", "gated_grouped"),
}
"""Recipes that tell layers apart cannot be looped; those that choose the norms of queries and keys take no others."""
PRODUCT = [case for case in itertools.product(RECIPES, POSITIONS, KINDS) if (case[0], case[2]) not in REFUSED]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RECIPES)
def test_every_pair_is_made_or_refused(name, kind):
    if (name, kind) in REFUSED:
        with pytest.raises(ValueError, match=r"looped|leave it"):
            KINDS[kind](RECIPES[name], position.Rotary(), 6)
        return
    model = KINDS[kind](RECIPES[name], position.Rotary(), 6)
    params = jax.eval_shape(model.init, jax.random.key(0))
    logits, _ = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((2, 5), jnp.int32))
    assert logits.shape == (2, 5, 11)


@pytest.mark.slow
@pytest.mark.parametrize("case", random.Random(0).sample(PRODUCT, min(len(PRODUCT), 200)), ids="-".join)
def test_product(case):
    rule, where, kind = case
    check(RECIPES[rule], POSITIONS[where], kind, 6, given(where))


@pytest.mark.parametrize("name", RECIPES)
def test_low_precision_stays(name):
    model = _decoder(RECIPES[name], position.Rotary(), 3)
    params = model.init(jax.random.key(0))
    x = normal(2, 5, 16, key=1, dtype=jnp.bfloat16)
    y, _ = jax.jit(model.stack.apply)(params["stack"], x)
    assert y.dtype == jnp.bfloat16 and y.shape == x.shape and np.isfinite(np.asarray(y, np.float32)).all()
