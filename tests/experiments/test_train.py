"""One run, and several side by side."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stackjax as sj
from experiments.lab import lanes, train
from experiments.lab.corpus import Corpus
from tests.helpers import daily

TOKENS = np.random.default_rng(0).integers(0, 11, 4000).astype(np.uint8)
CORPUS = Corpus.of("noise", TOKENS[:3000], TOKENS[3000:])
SIZE = {"batch": 2, "context": 6, "eval_every": 3, "eval_batches": 2}


def trainer(depth=2, recipe=sj.recipe.PreNorm(), dtype="float32", **options):
    model = sj.decoder(
        vocab=11, d_model=8, depth=depth, n_heads=2, recipe=recipe, feed_forward=sj.FeedForward(d_hidden=8)
    )
    return train.Trainer(task=train.NextToken(model=model, dtype=dtype), **options)


def fit(own=None, **options):
    return lanes.fit(own or trainer(), CORPUS, **{"steps": 7, **SIZE, **options})


@pytest.fixture(scope="module")
def pair():
    return fit(learning_rates=(1e-3, 1e-2), seeds=(0, 1), warmup=2)


@pytest.mark.thorough
def test_rows_are_the_steps_with_evaluations_between(pair):
    assert len(pair.metrics) == 4
    for rows, layers in zip(pair.metrics, pair.layers, strict=True):
        assert [row["step"] for row in rows] == list(range(8))
        assert [row["step"] for row in rows if row["valid_loss"] is not None] == [0, 3, 6, 7]
        assert [row["step"] for row in layers] == [0, 3, 6, 7]
        assert rows[0]["train_loss"] is None and all(row["train_loss"] > 0 for row in rows[1:])
        names = {name for name in layers[-1] if name != "step"}
        assert names >= {
            "stream_rms",
            "branch_rms/attention",
            "branch_ratio/feed_forward",
            "cosine",
            "token_similarity",
        }
        assert names >= {"attention_entropy/attention", "max_logit/attention", "grad_norm", "update_ratio"}
        assert all(len(layers[-1][name]) == 2 for name in names - {"stream_gradient"})
        assert len(layers[-1]["stream_gradient"]) == 3


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_a_lane_is_the_single_run(pair, mode):
    single = fit(learning_rates=(1e-2,), seeds=(1,), warmup=2, mode=mode)
    for one, other in ((single.metrics[0], pair.metrics[3]), (single.layers[0], pair.layers[3])):
        for a, b in zip(one, other, strict=True):
            for name in a:
                np.testing.assert_allclose(np.array(a[name], float), np.array(b[name], float), rtol=3e-4, atol=1e-6)


def test_lanes_one_after_another_are_each_the_single_run_by_one_program():
    """Bit for bit, with a neighbour that diverged; another number of lanes compiles nothing."""
    run = fit(learning_rates=(1e-3, 1e-2, 1e38), seeds=(0, 1), mode="loop")
    alone = fit(learning_rates=(1e-2,), seeds=(1,), mode="loop")
    assert alone.metrics[0] == run.metrics[3] and alone.layers[0] == run.layers[3]
    assert alone.programs.compile_seconds is None, "read from the cache"
    assert run.programs.start.out_info.alive.shape == ()
    assert list(run.alive) == [True] * 4 + [False] * 2
    one = run.programs.start.out_info
    assert jax.tree.map(np.shape, run.state) == jax.tree.map(lambda x: (6, *x.shape), one)
    lengths = [len(rows) for rows in run.metrics]
    assert lengths[:4] == [8] * 4 and all(1 < n < 8 for n in lengths[4:])
    assert all(rows[-1]["train_loss"] is None or rows[-1]["valid_loss"] is None for rows in run.metrics[4:])


def test_the_mode_by_default(monkeypatch):
    assert lanes.best_mode() == "loop" and lanes.best_mode(sj.shard.mesh(data=8)) == "vmap"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert lanes.best_mode() == "vmap"


def test_seeds_and_rates_differ(pair):
    final = [rows[-1]["valid_loss"] for rows in pair.metrics]
    assert len(set(final)) == 4
    first = [rows[0]["valid_loss"] for rows in pair.metrics]
    assert first[0] == first[2] != first[1]


def test_against_a_plain_loop():
    """The same run written out: no scan, no lanes, no taps, optax alone."""
    own, rate, steps = trainer(), 1e-2, 7
    model = own.task.model
    params = model.init(jax.random.fold_in(jax.random.key(5), 0))
    factors = [
        rate * (0.5 if s == 0 else 1) if s < 2 else rate * 0.5 * (1 + np.cos(np.pi * (s - 2) / 5)) for s in range(7)
    ]
    decayed = jax.tree.map(lambda d: d.spec.role in sj.optim.DECAYED, model.declaration(), is_leaf=sj.parameter.is_spec)
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(lambda s: jnp.asarray(factors)[s], b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.2, mask=decayed),
    )
    state, losses = optimizer.init(params), []

    @jax.jit
    def step(params, state, window):
        def loss(params):
            logits, _ = model.apply(params, window[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, window[:, 1:]).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    for i in range(steps):
        params, state, value = step(params, state, CORPUS.batch(seed=5, step=i, batch=2, context=6))
        losses.append(float(value))
    run = fit(learning_rates=(rate,), seeds=(5,), warmup=2, weight_decay=0.2, clip_norm=0.5)
    np.testing.assert_allclose([row["train_loss"] for row in run.metrics[0][1:]], losses, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(run.state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a[0], b, atol=2e-4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.25, 0.5, 0.75, 1, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_schedules(schedule, expected):
    hyper = train.Hyper(learning_rate=2.0, seed=0, steps=8, warmup=4)
    rates = trainer(schedule=schedule).learning_rate(hyper, jnp.arange(8))
    np.testing.assert_allclose(rates, 2 * np.array(expected), rtol=1e-5)


def test_numbers_do_not_recompile():
    own = trainer()
    traced = []

    @jax.jit
    def advance(hyper, state, batches):
        traced.append(1)
        return own.advance(hyper, state, batches)

    batches = jnp.zeros((2, 2, 7), jnp.int32)
    hyper = train.stack_hyper([train.Hyper(learning_rate=1e-3, seed=0, steps=4)])
    for change in (
        {},
        {"learning_rate": [1.0]},
        {"seed": [3]},
        {"steps": [9]},
        {"warmup": [2]},
        {"weight_decay": [0.0]},
    ):
        new = hyper.replace(**{name: jnp.asarray(x, getattr(hyper, name).dtype) for name, x in change.items()})
        one = jax.tree.map(lambda x: x[0], new)
        advance(one, own.start(one, batches[0]), batches)
    assert len(traced) == 1


@pytest.mark.thorough
def test_a_diverged_lane_is_frozen_and_the_others_do_not_notice():
    calm = fit(learning_rates=(1e-3, 1e-3), steps=6)
    run = fit(learning_rates=(1e-3, 1e38), steps=6)
    assert run.metrics[0] == calm.metrics[0] and run.layers[0] == calm.layers[0]
    bad = run.metrics[1]
    assert bad[-1]["train_loss"] is None and bad[-1]["step"] < 6 and bad[-1]["valid_loss"] is None
    assert list(np.asarray(run.state.alive)) == [True, False]
    assert int(run.state.step[1]) == bad[-1]["step"] - 1, "the update that would have been made is not"


def test_a_group_whose_lanes_all_diverged_stops():
    run = fit(learning_rates=(1e38,), steps=300)
    assert run.ended and run.step < 10


def test_gradient_norms_of_the_layers_add_up(pair):
    for rows, layers in zip(pair.metrics, pair.layers, strict=True):
        total = next(row["grad_norm"] for row in rows if row["step"] == 6)
        inside = np.square(next(row["grad_norm"] for row in layers if row["step"] == 6)).sum()
        assert 0 < inside < total**2


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{"optimizer": "muon"}, {"remat": "nested"}, {"dtype": "bfloat16"}])
def test_options_run_and_matter(pair, options):
    run = fit(trainer(**options), learning_rates=(1e-3,), warmup=2)
    reference = pair.metrics[0][-1]["valid_loss"]
    if "remat" in options:
        assert run.metrics[0][-1]["valid_loss"] == pytest.approx(reference, rel=1e-5)
    else:
        assert run.metrics[0][-1]["valid_loss"] != reference and np.isfinite(run.metrics[0][-1]["valid_loss"])


@pytest.mark.parametrize("depth", daily([0, 1], 0))
def test_shallow_models_train(depth):
    run = fit(trainer(depth), learning_rates=(1e-2,), steps=3)
    assert len(run.layers[0][-1]["grad_norm"]) == depth
    assert run.metrics[0][-1]["valid_loss"] is not None


@pytest.mark.thorough
def test_a_recipe_that_looks_at_data_sees_the_first_batch():
    own = trainer(recipe=sj.recipe.Admin())
    model, batch = own.task.model, CORPUS.batch(seed=3, step=0, batch=2, context=6)
    drawn = model.init(jax.random.fold_in(jax.random.key(3), 0))
    expected = model.calibrate(drawn, batch[:, :-1])
    found = own.start(train.Hyper(learning_rate=1e-3, seed=3, steps=1), batch).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), found, drawn)))


@pytest.mark.thorough
def test_a_recipe_that_constrains_is_heard_after_every_step():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(sj.recipe.PreNorm):
        def project(self, params, declaration):
            return {**params, "head": {**params["head"], "unembed": jnp.full_like(params["head"]["unembed"], 7.0)}}

    run = fit(trainer(recipe=Own()), steps=3)
    assert run.metrics[0][0]["valid_loss"] == pytest.approx(np.log(11), rel=1e-5), "equal logits"
    np.testing.assert_allclose(run.state.params["head"]["unembed"], 7.0, rtol=1e-6)


@pytest.mark.thorough
def test_running_statistics_run():
    batch_normed = sj.recipe.PreNorm(residual=sj.residual.Pre(norm=sj.BatchNorm()))
    own = trainer(recipe=batch_normed)
    batches = jnp.asarray(CORPUS.batch(seed=0, step=0, batch=2, context=6))[None]
    hyper = train.Hyper(learning_rate=1e-3, seed=0, steps=1)
    before = own.start(hyper, batches[0])
    _, result = own.task.loss(before.params, batches[0])
    after, _ = own.advance(hyper, before, batches)
    expected = own.task.model.update_statistics(before.params, result.state)

    def check(declared, found, wanted, old):
        if declared.spec.role == "statistic":
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
            assert (found != old).any()

    declaration = own.task.model.declaration()
    jax.tree.map(check, declaration, after.params, expected, before.params, is_leaf=sj.parameter.is_spec)


BAD = {
    "steps": (0, 2.5, True, -1, 2**31),
    "eval_every": (0, 1.5),
    "eval_batches": (0, 10**9),
    "batch": (0,),
    "context": (0, 10**9, "6"),
    "seeds": ((), 3, (1.5,), (-1,), None),
    "learning_rates": ((), 1e-3, (-1.0,), (0.0,), (float("nan"),), ("1e-3",)),
    "warmup": (-1, 7, 0.5),
    "weight_decay": (-0.1, float("inf")),
    "clip_norm": (-1, 0, None),
    "mode": ("foo", None),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_run_that_cannot_be_is_refused_before_anything_is_computed(name, value):
    said = "too short" if (name, value) == ("context", 10**9) else name.removesuffix("s")
    with pytest.raises(ValueError, match=said):
        fit(**{name: value})


def test_rates_and_seeds_may_be_arrays():
    runs = train.runs(np.array([1e-3, 1e-2]), range(2), steps=3)
    assert [(run.learning_rate, run.seed) for run in runs] == [(1e-3, 0), (1e-3, 1), (1e-2, 0), (1e-2, 1)]


def test_numbers_of_a_run_have_types_of_their_own_however_they_are_written():
    """An integer rate once made those beside it integers, so that 0.1 was 0."""
    runs = [train.Hyper(learning_rate=rate, seed=0, steps=4, weight_decay=0) for rate in (1, 0.1, np.float64(0.2))]
    stacked = train.stack_hyper(runs)
    np.testing.assert_allclose(stacked.learning_rate, [1, 0.1, 0.2], rtol=1e-6)
    assert (stacked.weight_decay.dtype, stacked.seed.dtype, stacked.steps.dtype) == (np.float32, np.int32, np.int32)
