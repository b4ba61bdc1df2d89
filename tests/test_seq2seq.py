"""Encoder-decoder: against torch, padding, sharing, the constants of both sides, and what the optimiser needs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stackjax as sj
from stackjax.parameter import is_spec
from stackjax.testing import largest_difference, normal, perturbed
from tests.helpers import filled

SIZES = {"vocab": 11, "d_model": 16, "n_heads": 2, "feed_forward": sj.FeedForward(d_hidden=24)}
SOURCE = jnp.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
TARGET = jnp.array([[1, 5, 4], [2, 10, 9]])


def built(**options):
    model = sj.encoder_decoder(**{**SIZES, "depth": 2, **options})
    return model, perturbed(model.init(jax.random.key(0)))


def test_padding_of_the_source_does_not_matter():
    model, params = built(source_vocab=11)
    padded = jnp.concatenate((jnp.zeros((2, 2), int), SOURCE), 1)
    where = {"index": jnp.arange(-2, 5)[None].clip(-1)}
    run = jax.jit(model.apply)
    plain, _ = run(params, SOURCE, TARGET)
    assert largest_difference(run(params, padded, TARGET, sj.SideInputs(memory_position=where))[0], plain) < 1e-5
    assert largest_difference(run(params, SOURCE[:, ::-1], TARGET)[0], plain) > 1e-2


def test_target_is_causal_and_source_is_not():
    model, params = built()

    def logits(source, target):
        read = {**params, "encoder": params["encoder"]}
        return model.apply(read, source, target)[0]

    run = jax.jit(logits)
    plain = run(SOURCE, TARGET)
    later = run(SOURCE, TARGET.at[:, 2].set(0))
    assert largest_difference(later[:, :2], plain[:, :2]) == 0
    moved = run(SOURCE.at[:, 4].set(0), TARGET)
    assert np.abs(moved - plain).max(-1).min() > 1e-4


def test_shared_and_separate_embeddings():
    shared, params = built()
    assert params["source"] == {} and shared.declaration()["source"] == {}
    apart, own = built(source_vocab=13)
    assert own["source"]["token"].shape == (13, 16)
    assert apart.n_params - shared.n_params == 13 * 16
    gradient = jax.grad(lambda p: shared.encode(p, SOURCE)[0].sum())(params)
    assert np.abs(gradient["decoder"]["embedding"]["token"]).max() > 0


def test_running_statistics_of_both_sides_are_absorbed():
    norm = sj.BatchNorm(momentum=1.0)
    model, params = built(recipe=sj.recipe.PreNorm(residual=sj.residual.Pre(norm=norm)))
    new = model.update_statistics(params, model.apply(params, SOURCE, TARGET)[1].state)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), new, params)
    assert changed == jax.tree.map(lambda d: d.spec.role == "statistic", model.declaration(), is_leaf=is_spec)


@pytest.mark.thorough
def test_deepnorm_takes_the_constants_of_both_sides():
    """Wang et al. 2022, figure 2: with N = 3 encoder and M = 2 decoder layers."""
    model = sj.encoder_decoder(**SIZES, depth=2, encoder_depth=3, recipe=sj.recipe.DeepNorm())
    n, m = 3, 2
    alphas = [stack.coefficients()["sublayer"]["alpha"] for stack in (model.encoder, model.decoder.stack)]
    assert [a.shape for a in alphas] == [(3, 2), (2, 3)]
    np.testing.assert_allclose(alphas[0], 0.81 * (n**4 * m) ** (1 / 16), rtol=1e-6)
    np.testing.assert_allclose(alphas[1], (3 * m) ** 0.25, rtol=1e-6)
    plain = sj.encoder_decoder(**SIZES, depth=2, encoder_depth=3, recipe=sj.recipe.PostNorm())
    ratio = jax.tree.map(
        lambda a, b: float(jnp.max(a / jnp.where(b == 0, 1, b))),
        *(x.init(jax.random.key(0)) for x in (model, plain)),
    )
    own = ratio["decoder"]["stack"]["segments"]["0"]["0"]["cross_attention"]
    np.testing.assert_allclose(own["value"], (12 * m) ** -0.25, rtol=1e-6)
    np.testing.assert_allclose(own["query"], 1, rtol=1e-6)
    up = ratio["encoder"]["segments"]["0"]["0"]["feed_forward"]["up"]
    np.testing.assert_allclose(up, 0.87 * (n**4 * m) ** (-1 / 16), rtol=1e-6)


@pytest.mark.thorough
def test_learns_to_copy():
    """Both optimisers take an encoder-decoder; AdamW teaches it to repeat its source within a hundred steps."""
    model = sj.encoder_decoder(**SIZES, depth=1, recipe=sj.recipe.PreNorm())
    params = model.init(jax.random.key(0))
    optimiser = sj.optim.adamw(model, learning_rate=1e-2, weight_decay=0.1)
    clip = sj.optim.clip_by_layer_norm(model, 1.0)
    optimiser = optax.chain(clip, optimiser)
    jax.eval_shape(sj.optim.muon(model, learning_rate=1e-2).init, params)

    def loss(params, key):
        source = jax.random.randint(key, (16, 5), 1, 11)
        tokens = jnp.pad(source, ((0, 0), (1, 0)))
        logits, _ = model.apply(params, source, tokens[:, :-1])
        return sj.loss.cross_entropy(logits, tokens[:, 1:])

    @jax.jit
    def train(params, state):
        def step(carry, key):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, key)
            updates, state = optimiser.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, state), jax.random.split(jax.random.key(1), 150))

    (params, _), losses = train(params, optimiser.init(params))
    assert losses[0] > 2 and losses[-1] < 0.3


@pytest.mark.thorough
def test_clipping_takes_each_layer_of_each_side_by_itself():
    model, params = built(source_vocab=11, encoder_depth=3)
    gradient = {
        "source": jax.tree.map(jnp.zeros_like, params["source"]),
        "encoder": params["encoder"],
        "decoder": jax.tree.map(jnp.zeros_like, params["decoder"]),
    }
    clip = sj.optim.clip_by_layer_norm(model, 1e-3)
    alone = clip.update(gradient, optax.EmptyState())[0]
    both = clip.update(params, optax.EmptyState())[0]
    segments = both["encoder"]["segments"]
    assert largest_difference(segments, alone["encoder"]["segments"]) < 1e-6
    norms = sj.probe.layer_norms(both["encoder"], model.encoder.declaration(), 3)
    np.testing.assert_allclose(norms, 1e-3, rtol=1e-4)
    norms = sj.probe.layer_norms(both["decoder"], model.decoder.declaration(), 2)
    np.testing.assert_allclose(norms, 1e-3, rtol=1e-4)


@pytest.mark.thorough
def test_results_of_both_sides():
    model, params = built()
    taps = {"encoder": jnp.zeros(3), "decoder": jnp.zeros(3)}
    _, result = model.apply(params, SOURCE, TARGET, measure=sj.probe.stream, taps=taps)
    assert result.measure["encoder"]["stream_rms"].shape == result.measure["decoder"]["stream_rms"].shape == (2,)


def test_says_what_is_wrong():
    narrow = sj.encoder_decoder(**{**SIZES, "d_model": 8}, depth=1)
    with pytest.raises(ValueError, match="same d_model"):
        sj.EncoderDecoder(encoder=narrow.encoder, decoder=built()[0].decoder)
    with pytest.raises(ValueError, match="sees all of the memory"):
        sj.Attention(n_heads=2, cross=True, window=3)
    layer = sj.Layer(sublayers=(sj.Attention(n_heads=2, cross=True),))
    alone = sj.Stack.of(layer, depth=1, d_model=16, recipe=sj.recipe.PreNorm())
    with pytest.raises(ValueError, match=r"needs side_inputs\.memory"):
        alone.apply(alone.init(jax.random.key(0)), jnp.ones((2, 16)))


@pytest.mark.parity
def test_against_torch(x64):
    """torch.nn.Transformer with norm_first: pre-norm on both sides, each with a final norm."""
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Transformer(16, 2, 2, 2, 24, 0.0, norm_first=True, batch_first=True).double().eval()
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    source, target = normal(2, 5, 16, key=1), normal(2, 3, 16, key=2)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(3, dtype=torch.double)
    with torch.no_grad():
        wanted = theirs(*(torch.tensor(np.asarray(x)) for x in (source, target)), tgt_mask=mask)
    w = {name: jnp.asarray(value.numpy()) for name, value in theirs.state_dict().items()}

    def attention(name):
        weights = jnp.split(w[f"{name}.in_proj_weight"], 3)
        biases = jnp.split(w[f"{name}.in_proj_bias"], 3)
        tree = {n: x.T for n, x in zip(("query", "key", "value"), weights, strict=True)}
        tree |= {f"{n}_bias": x for n, x in zip(("query", "key", "value"), biases, strict=True)}
        return {**tree, "out": w[f"{name}.out_proj.weight"].T, "out_bias": w[f"{name}.out_proj.bias"]}

    def norm(name):
        return {"norm/scale": w[f"{name}.weight"], "norm/bias": w[f"{name}.bias"]}

    def layer(name, sublayers):
        groups = {sublayer: attention(f"{name}.{theirs}") for sublayer, theirs in sublayers.items()}
        groups["feed_forward"] = {
            "up": w[f"{name}.linear1.weight"].T,
            "up_bias": w[f"{name}.linear1.bias"],
            "down": w[f"{name}.linear2.weight"].T,
            "down_bias": w[f"{name}.linear2.bias"],
        }
        groups |= {f"residual/{sublayer}": norm(f"{name}.norm{i + 1}") for i, sublayer in enumerate(groups)}
        return {f"{group}/{leaf}": weight for group, leaves in groups.items() for leaf, weight in leaves.items()}

    model = sj.encoder_decoder(
        vocab=11,
        d_model=16,
        depth=2,
        n_heads=2,
        position=sj.position.NoPosition(),
        attention=sj.Attention(n_heads=2, bias=("query", "key", "value", "out")),
        feed_forward=sj.FeedForward(d_hidden=24, activation=sj.feed_forward.relu, bias=True),
    )
    sides = {}
    for side, stack, sublayers in (
        ("encoder", model.encoder, {"attention": "self_attn"}),
        ("decoder", model.decoder.stack, {"attention": "self_attn", "cross_attention": "multihead_attn"}),
    ):
        fresh = stack.init(jax.random.key(0), jnp.float64)
        layers = [layer(f"{side}.layers.{i}", sublayers) for i in range(2)]
        weights = {f"segments/0/0/{name}": jnp.stack([layer[name] for layer in layers]) for name in layers[0]}
        weights |= {f"leave/inner/{name}": weight for name, weight in norm(f"{side}.norm").items()}
        sides[side] = filled(fresh, weights)
    memory, _ = model.encoder.apply(sides["encoder"], source)
    y, _ = model.decoder.stack.apply(sides["decoder"], target, sj.SideInputs(memory=memory))
    assert largest_difference(y, wanted.numpy()) < 1e-12


def test_sides_that_share_tokens_and_not_positions():
    """One table of tokens serves both; each side reads its own positions."""
    plain = sj.encoder_decoder(**SIZES, depth=1, position=sj.position.Learned(n_positions=9))
    model = replace(plain, source=plain.decoder.embedding, shared_tokens=True)
    params = perturbed(model.init(jax.random.key(0)))
    assert set(params["source"]) == {"position", "norm"}
    apart = jax.tree.map(lambda x: x, params)
    apart["source"]["token"] = params["decoder"]["embedding"]["token"]
    with_own_tokens = replace(model, shared_tokens=False)
    a, b = (jax.jit(m.apply)(p, SOURCE, TARGET)[0] for m, p in ((model, params), (with_own_tokens, apart)))
    np.testing.assert_array_equal(a, b)
    moved = jax.tree.map(lambda x: x, params)
    moved["source"]["position"]["table"] = params["source"]["position"]["table"][::-1]
    assert np.abs(jax.jit(model.apply)(moved, SOURCE, TARGET)[0] - a).max() > 1e-3
    with pytest.raises(ValueError, match="shared_tokens needs a source"):
        replace(plain, shared_tokens=True)
