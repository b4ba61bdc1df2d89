"""Low-rank adapters: the same function at first, nothing else trained, merged as adapted, saved alone."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

import stackjax as sj
from stackjax.testing import largest_difference, perturbed
from tests.cases import KINDS, POSITIONS, RECIPES, REFUSED
from tests.helpers import daily, output
from tests.test_serialization import drawn, same

TOKENS = jnp.arange(10).reshape(2, 5)


def described(recipe="pre_norm", kind="decoder", depth=3):
    model = KINDS[kind](RECIPES[recipe], POSITIONS["rotary"], depth)
    return getattr(model, "model", model)


def run(model, params):
    inputs = (TOKENS, TOKENS) if isinstance(model, sj.EncoderDecoder) else (TOKENS,)
    return output(model, params, *inputs)


def pair(recipe="pre_norm", kind="decoder", roles=("query", "value", "down"), dtype=jnp.float32):
    model = described(recipe, kind)
    params = perturbed(model.init(jax.random.key(0), dtype))
    adapted = sj.adapt.low_rank(model, rank=2, alpha=3.0, roles=roles)
    return model, params, adapted, sj.adapt.start(adapted, params, jax.random.key(1))


def moved(adapted, params):
    """Factors that are not zero."""
    noise = perturbed(params, size=0.3)
    return jax.tree.map(lambda f, old, new: old if f else new, sj.adapt.frozen(adapted), params, noise)


CASES = [
    *(("pre_norm", kind) for kind in KINDS),
    *(
        (recipe, "decoder")
        for recipe in ("deepnorm", "complete_p", "sigma_reparam", "ngpt", "value_residual", "rezero")
    ),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("recipe", "kind"), daily(CASES, ("pre_norm", "decoder"), ("value_residual", "decoder")))
def test_adapters_begin_at_nothing_and_merge_to_the_same(x64, recipe, kind):
    assert kind not in REFUSED.get(recipe, ())
    model, params, adapted, start = pair(recipe, kind, dtype=jnp.float64)
    before = run(model, params)
    np.testing.assert_array_equal(run(adapted, start), before)
    trained = moved(adapted, start)
    merged_model, merged = sj.adapt.merge(adapted, trained)
    assert merged_model == model
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    after = run(adapted, trained)
    assert largest_difference(run(model, merged), after) < 1e-10
    assert largest_difference(after, before) > 1e-3


@pytest.mark.parametrize("kind", daily(["decoder", "experts"], "decoder"))
def test_magnitudes_begin_at_nothing_and_merge_to_the_same(x64, kind):
    model = described(kind=kind)
    params = perturbed(model.init(jax.random.key(0), jnp.float64))
    adapted = sj.adapt.low_rank(model, rank=2, alpha=3.0, roles=("query", "down"), magnitude=True)
    start = sj.adapt.start(adapted, params, jax.random.key(1))
    assert largest_difference(run(adapted, start), run(model, params)) < 1e-12
    trained = moved(adapted, start)
    merged_model, merged = sj.adapt.merge(adapted, trained)
    assert merged_model == model and largest_difference(run(model, merged), run(adapted, trained)) < 1e-10
    with pytest.raises(ValueError, match="magnitudes"):
        sj.adapt.save("nowhere", adapted, trained)


def test_magnitudes_are_norms_and_their_gradient_leaves_the_norm_of_the_direction_alone(x64):
    """Equations (5) and (11), by hand: the direction's gradient is scaled, and not projected."""
    inner = sj.FeedForward(d_hidden=6)
    sublayer = sj.adapt.LowRank(name="feed_forward", inner=inner, rank=2, alpha=3.0, roles=("up",), magnitude=True)
    w, a, b, m, g = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(((4, 6), (4, 2), (2, 6), 6, (4, 6))))
    params = {"up": w, "low_rank": {"up": {"a": a, "b": b, "magnitude": m}}}

    def effective(factors):
        return sublayer.effective({**params, "low_rank": {"up": factors}})["up"]

    new, back = jax.vjp(effective, params["low_rank"]["up"])
    np.testing.assert_allclose(np.linalg.norm(new, axis=0), np.abs(np.linalg.norm(w, axis=0) + m), rtol=1e-12)
    direction = w + 1.5 * a @ b
    scale = (np.linalg.norm(w, axis=0) + m) / np.linalg.norm(direction, axis=0)
    (gradient,) = back(g)
    np.testing.assert_allclose(gradient["b"], 1.5 * a.T @ (g * scale), rtol=1e-12)
    np.testing.assert_allclose(gradient["magnitude"], (g * direction).sum(0) / np.linalg.norm(direction, axis=0))


def test_columns_of_zeros_act_as_they_are_and_have_a_gradient():
    model = described()
    adapted = sj.adapt.low_rank(model, rank=2, roles=("down",), magnitude=True)
    params = drawn(model)
    params["stack"]["segments"]["0"]["0"]["feed_forward"]["down"] *= 0
    start = sj.adapt.start(adapted, params, jax.random.key(1))
    np.testing.assert_allclose(run(adapted, start), run(model, params), atol=1e-6)
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(run(adapted, p))))(start)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert np.any(gradient["stack"]["segments"]["0"]["0"]["feed_forward"]["low_rank"]["down"]["b"])


@pytest.mark.parametrize("recipe", daily(["pre_norm", "complete_p", "ngpt"], "ngpt"))
@pytest.mark.parametrize("optimiser", daily([sj.optim.adamw, sj.optim.muon], sj.optim.adamw))
def test_training_moves_the_adapter_alone(recipe, optimiser):
    _, _, adapted, params = pair(recipe)
    frozen = sj.adapt.frozen(adapted)
    tx = optax.chain(
        sj.optim.clip_by_layer_norm(adapted, 1.0), optimiser(adapted, learning_rate=0.01, weight_decay=0.1)
    )
    tx = optax.selective_transform(tx, freeze_mask=frozen)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(lambda p: sj.loss.next_token(run(adapted, p), TOKENS))(params)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, tx.init(params)), None, length=15)

    (after, _), losses = train(params)
    assert losses[-1] < losses[0]
    jax.tree.map(lambda f, old, new: np.testing.assert_equal(np.array_equal(old, new), f), frozen, params, after)


def test_factors_are_stacked_and_few():
    model, _, adapted, params = pair(roles=("query",))
    assert adapted.n_params - model.n_params == 3 * (16 * 2 + 2 * 16)
    group = params["stack"]["segments"]["0"]["0"]["attention"]["low_rank"]
    assert {name: leaf.shape for name, leaf in group["query"].items()} == {"a": (3, 16, 2), "b": (3, 2, 16)}


@pytest.mark.thorough
def test_an_adapted_model_is_decoded_saved_and_cut(tmp_path):
    _, _, adapted, params = pair()
    params = moved(adapted, params)
    sj.save(tmp_path, adapted, params)
    again, read = sj.load(tmp_path)
    assert again == adapted and same(read, params)
    cut, shorter, _ = sj.surgery.select(adapted, params, [0, 2], coefficients="new")
    merged_model, merged = sj.adapt.merge(cut, shorter)
    assert largest_difference(run(merged_model, merged), run(cut, shorter)) < 1e-5


def test_the_adapter_alone_round_trips(tmp_path):
    _, _, adapted, start = pair()
    trained = moved(adapted, start)
    sj.adapt.save(tmp_path, adapted, trained)
    assert same(sj.adapt.load(tmp_path, adapted, start), trained)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (
        config["r"] == 2 and config["lora_alpha"] == 3 and "stack.layers.1.attention.query" in config["target_modules"]
    )
    tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 3 * 3 * 2
    group = trained["stack"]["segments"]["0"]["0"]["feed_forward"]["low_rank"]["down"]
    name = "base_model.model.stack.layers.2.feed_forward.down.lora_{}.weight"
    np.testing.assert_array_equal(tensors[name.format("A")], group["a"][2].T)
    np.testing.assert_array_equal(tensors[name.format("B")], group["b"][2].T)


def test_modules_have_the_names_of_another_library(tmp_path):
    _, _, adapted, params = pair(roles=("query",))
    params = moved(adapted, params)
    names = {"stack/attention/query": "model.layers.{layer}.self_attn.q_proj"}
    sj.adapt.save(tmp_path, adapted, params, names=names)
    tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    assert "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight" in tensors
    assert same(sj.adapt.load(tmp_path, adapted, params, names=names), params)
    with pytest.raises(ValueError, match=r"lacks|has more"):
        sj.adapt.load(tmp_path, adapted, params)
    for wrong, message in (({"query": "q"}, "no adapted matrix"), ({"stack/attention/query": "q"}, "two matrices")):
        with pytest.raises(ValueError, match=message):
            sj.adapt.save(tmp_path / "other", adapted, params, names=wrong)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "change",
    [
        *({"r": 4}, {"lora_alpha": 16}, {"use_dora": True}, {"bias": "all"}, {"rank_pattern": {"q": 8}}),
        *({"init_lora_weights": "pissa"}, {"alora_invocation_tokens": [1, 2]}, {"layer_replication": [[0, 1]]}),
    ],
)
def test_another_kind_of_adapter_is_refused(change, tmp_path):
    _, _, adapted, params = pair()
    sj.adapt.save(tmp_path, adapted, params)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=next(iter(change))):
        sj.adapt.load(tmp_path, adapted, params)
    path.write_text("[")
    with pytest.raises(ValueError, match="can be read"):
        sj.adapt.load(tmp_path, adapted, params)


def test_mistakes_are_refused(tmp_path):
    model = described()
    with pytest.raises(ValueError, match="no matrix has the role 'q_proj'"):
        sj.adapt.low_rank(model, rank=2, roles=("q_proj",))
    with pytest.raises(ValueError, match="rank must be"):
        sj.adapt.low_rank(model, rank=0)
    with pytest.raises(ValueError, match="adapted already"):
        sj.adapt.low_rank(sj.adapt.low_rank(model, rank=2), rank=2)
    with pytest.raises(ValueError, match="not adapted"):
        sj.adapt.merge(model, drawn(model))
    experts = sj.adapt.low_rank(described(kind="experts"), rank=2, roles=("up",))
    with pytest.raises(ValueError, match="each expert"):
        sj.adapt.save(tmp_path / "a", experts, drawn(experts))
    assert dataclasses.is_dataclass(experts)
