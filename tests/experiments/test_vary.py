"""Sweeps from Python: any field of the setting as an axis, any optax optimiser, metrics of one's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stackjax as sj
from experiments.lab import data, names, progress, sweep, sweep_plan
from experiments.lab.grid import Grid, Setting
from experiments.lab.optimizer import of_optax, optimizer_named
from experiments.lab.results import Results, table
from experiments.lab.store import Folder
from stackjax.testing import largest_difference, perturbed
from tests.experiments.conftest import SIZES

HERE = "tests.experiments.test_vary"


def metrics(task, params, batch):
    """The number of parameters, and the size of each layer's feed-forward matrix."""
    up = params["stack"]["segments"]["0"]["0"]["feed_forward"]["up"]
    return {"width": jnp.float32(up.shape[-2]), "up_norm": jnp.sqrt(jnp.sum(up**2, (1, 2)))}


def misnamed(task, params, batch):
    return {"valid_loss": jnp.float32(0)}


def misshapen(task, params, batch):
    return {"square": jnp.zeros((3, 3))}


def no_optimizer(learning_rate):
    return {}


@pytest.fixture
def mine(tmp_path, corpus):
    sizes = {name.replace("-", "_"): size for name, size in SIZES.items()}
    setting = Setting(**sizes, optimizer="optax:lion", metrics=f"{HERE}:metrics", position="none")
    grid = Grid(depths=(1,), recipes=names.recipes("pre_norm"), learning_rates=(1e-2,))
    return sweep.Sweep(folder=Folder(tmp_path / "run"), grid=grid, setting=setting, corpus=data.load(str(corpus)))


@pytest.mark.thorough
def test_width_and_warm_up_are_axes(mine):
    """Every combination is run once, is resumed like any sweep, and is a row that says what was varied."""
    varied = sweep_plan.vary(mine, d_model=(8, 16), warmup=(0, 3))
    for part in varied:
        assert part.check() == [] and sweep.run(part, progress.Plain()) == []
    rows = table(*(Results.of(part.folder.path) for part in varied))
    assert [(row["d_model"], row["warmup"]) for row in rows] == [(8, 0), (8, 3), (16, 0), (16, 3)]
    assert all(row["status"] == "ok" and row["width"] == row["d_model"] for row in rows)
    assert len({row["valid_loss"] for row in rows}) == 4
    layers = Results.of(varied[0].folder.path)
    (cell,) = layers.cells
    assert all(len(row["up_norm"]) == 1 and row["up_norm"][0] > 0 for row in layers.layers(cell))
    before = (varied[0].folder.cell(cell["cell"]) / "summary.json").read_bytes()
    sweep.run(varied[0], progress.Plain())
    assert (varied[0].folder.cell(cell["cell"]) / "summary.json").read_bytes() == before


def test_what_is_no_axis_is_refused(mine):
    with pytest.raises(ValueError, match=r"axes are batch, .*; got wdith"):
        sweep_plan.vary(mine, wdith=(8,))
    with pytest.raises(ValueError, match="got task"):
        sweep_plan.vary(mine, task=("copy",))
    with pytest.raises(ValueError, match="at least one value; d_model has none"):
        sweep_plan.vary(mine, d_model=())
    with pytest.raises(ValueError, match="--warmup must be 0 or more"):
        sweep_plan.vary(mine, warmup=(0, 100))


def test_an_optimiser_of_optax_is_scaled_by_the_recipe():
    """At every learning rate its own step, decay apart; with a recipe that has factors, theirs."""
    plain = sj.decoder(vocab=8, d_model=8, depth=2, n_heads=2)
    params = perturbed(plain.init(jax.random.key(0)))
    gradients = perturbed(params, key=3)

    def step(tx):
        return tx.update(gradients, tx.init(params), params)[0]

    found = step(optimizer_named("optax:lion")(plain, learning_rate=0.25, weight_decay=0.0))
    assert largest_difference(found, step(optax.lion(0.25, weight_decay=0.0))) < 1e-6
    scaled = dataclasses.replace(
        plain, stack=dataclasses.replace(plain.stack, recipe=sj.recipe.CompleteP(base_depth=1, base_width=4))
    )
    there = step(of_optax(optax.sgd(1.0), scaled, learning_rate=0.5, weight_decay=0.1))
    wanted = step(optax.chain(optax.identity(), sj.optim.by_recipe(scaled, learning_rate=0.5, weight_decay=0.1)))
    assert largest_difference(there, wanted) < 1e-6
    assert np.abs(there["stack"]["segments"]["0"]["0"]["attention"]["query"]).max() > 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adam", "known are adamw, muon"),
        ("optax:lin", "cannot be imported"),
        ("optax:apply_updates", "must be a function of learning_rate"),
        (f"{HERE}:no_optimizer", "makes no optax transformation"),
    ],
)
def test_what_is_no_optimiser_is_refused(name, said):
    with pytest.raises(ValueError, match=said):
        Setting(optimizer=name)


@pytest.mark.parametrize(
    ("name", "said"), [("misnamed", "is taken"), ("misshapen", r"an array \(1,\) over the layers")]
)
def test_metrics_that_cannot_be_recorded_fail_their_cell(name, said, mine):
    task = mine.setting.learned(sj.recipe.PreNorm(), 1, 8)
    trainer = dataclasses.replace(mine.setting.trainer(sj.recipe.PreNorm(), 1, 8), task=task, metrics=f"{HERE}:{name}")
    params = jax.eval_shape(task.model.init, jax.random.key(0))
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(trainer.evaluate, params, jax.ShapeDtypeStruct((2, 7), jnp.int32))
