"""Stacks that grow while they train, for the same FLOPs."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.growth import __main__ as growth
from experiments.growth import strategy
from stackjax.testing import largest_difference, perturbed

NAMES = [
    "full depth",
    "copy at 50%",
    "identity at 50%",
    "copy twice",
    "identity twice",
    "half depth",
    "full depth, more",
]


@pytest.mark.thorough
def test_quick_and_again(tmp_path, corpus, capsys, monkeypatch):
    """A strategy that has ended is read, not run again."""
    out = tmp_path / "out"
    words = ["--quick", "--data", str(corpus), "--out", str(out)]
    assert growth.main(words) == 0
    said, page = capsys.readouterr().out, (out / "finding.md").read_text()
    found = json.loads((out / "result.json").read_text())
    assert [row["strategy"] for row in found["rows"]] == NAMES
    full = found["rows"][0]
    for row in found["rows"]:
        assert np.shape(row["loss"]["0.01"]) == (2,) and np.isfinite(row["loss"]["0.01"]).all()
        assert row["choice"]["0.01"] != row["loss"]["0.01"]
        budget = full["flops"] / 0.6 if row["strategy"] == NAMES[-1] else full["flops"]
        assert abs(row["flops"] - budget) <= full["flops"] / 10
    assert len(found["predictions"]) == 7 and all(p["claim"] in said for p in found["predictions"])
    assert (out / "figures" / "growth.png").exists()
    (removed,) = [path for path in (out / "strategies").iterdir() if json.loads(path.read_text())["name"] == NAMES[1]]
    removed.unlink()
    trained, run = growth.trained, []
    monkeypatch.setattr(growth, "trained", lambda plan, *rest: run.append(plan) or trained(plan, *rest))
    assert growth.main(words) == 0 and len(run) == 1
    assert (out / "finding.md").read_text() == page


def test_parts_spend_what_full_depth_has():
    options = dataclasses.replace(growth.USUAL, steps=400, chunk=10)
    flops = {2: 25, 4: 45, 8: 85}
    for name, plan in strategy.strategies(options).items():
        parts = strategy.chunks(plan, options, flops)
        spent = 10 * sum(n * flops[depth] for depth, n in parts)
        assert abs(spent - plan.budget * 400 * 85) <= 10 * 85 / 2, name
        total = sum(n for _, n in parts)
        shares = [n / total for _, n in parts]
        assert np.allclose(shares, [share for share, _ in plan.parts], atol=0.03), name


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["copy", "identity"])
def test_what_is_grown_keeps_its_lanes_its_moments_and_its_function(how):
    options = dataclasses.replace(growth.QUICK, depth=4)
    small, large = (strategy.model_of(options, depth, 11) for depth in (2, 4))
    trainer = strategy.Stable(task=strategy.NextToken(model=small))
    hyper = strategy.stack_hyper([strategy.Hyper(learning_rate=0.1, seed=s, steps=9, warmup=1) for s in (0, 1)])
    state = jax.vmap(trainer.start)(hyper, jnp.zeros((2, 1, 9), jnp.int32))
    ones = jax.tree.map(lambda a: jnp.ones_like(a) if jnp.issubdtype(a.dtype, jnp.inexact) else a, state.optimizer)
    state = dataclasses.replace(state, params=perturbed(state.params), optimizer=ones)
    grown = strategy.grown(small, state, how)
    tokens = jnp.arange(8)[None]
    for lane in (0, 1):
        old, new = (jax.tree.map(lambda a, lane=lane: a[lane], each.params) for each in (state, grown))
        difference = largest_difference(large.apply(new, tokens)[0], small.apply(old, tokens)[0])
        assert difference < 1e-5 if how == "identity" else difference > 1e-3
    floats = [leaf for leaf in jax.tree.leaves(grown.optimizer) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    assert min(leaf.min() for leaf in floats) == (0 if how == "identity" else 1)
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(grown.params))
    assert size == 2 * large.n_params


def test_the_learning_rate_falls_in_the_last_fifth():
    trainer = strategy.Stable(task=strategy.NextToken(model=strategy.model_of(growth.QUICK, 2, 11)))
    hyper = strategy.Hyper(learning_rate=2.0, seed=0, steps=100, warmup=5)
    rates = jax.vmap(lambda step: trainer.learning_rate(hyper, step))(jnp.arange(100))
    assert np.allclose(rates[:5], 2 * np.arange(1, 6) / 5) and np.allclose(rates[5:80], 2)
    assert np.allclose(rates[80:], np.arange(20, 0, -1) / 10)


def test_a_rate_is_chosen_on_other_windows_than_are_reported():
    choice, loss = {"a": [1.0], "b": [2.0], "c": [np.inf]}, {"a": [3.0], "b": [2.0], "c": [0.0]}
    ended = strategy.Ended(choice=choice, loss=loss, steps={}, flops=1.0)
    assert ended.best == "a" and ended.at_best == [3.0]


def test_the_readme_says_what_was_found():
    root = Path(__file__).parents[2]
    result = json.loads((root / "experiments" / "results" / "growth" / "result.json").read_text())
    rows = {row["strategy"]: row for row in result["rows"]}
    full = rows["full depth"]

    def below(name):
        pairs = (np.mean(row["loss"][row["best"]]) for row in (full, rows[name]))
        return f"{np.subtract(*pairs):.2f}"

    (line,) = re.findall(r"^\| `growth` \| .*$", (root / "README.md").read_text(), re.MULTILINE)
    more = f"{rows['full depth, more']['flops'] / full['flops']:.2f}"
    names = ("copy at 50%", "identity at 50%", "half depth")
    assert re.findall(r"\d\.\d+", line) == [*map(below, names), more]
    verdicts = {prediction["claim"]: prediction["verdict"] for prediction in result["predictions"]}
    assert verdicts["copy at 50% against full depth with FLOPs / 0.6, nats"] == "refuted"
