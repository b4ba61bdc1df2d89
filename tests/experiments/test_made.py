"""Tasks made by rule: what they ask, and that a sweep can train on them."""

import numpy as np
import pytest

from experiments.depth_sweep import __main__ as depth_sweep
from experiments.lab import task_copy, task_hops, task_tree
from experiments.lab.made import TASKS, VALID_STEP
from experiments.lab.results import Results
from tests.helpers import daily


def test_hops_follow_one_cycle():
    found = task_hops.examples(50, seed=3, step=4, hops=(1, 3, 8))
    for tokens, targets, asked in zip(found["inputs"], found["targets"], found["hops"], strict=True):
        arrow, seen, place = tokens[: task_hops.PLACES], [], 0
        for _ in range(task_hops.PLACES):
            seen.append(place)
            place = arrow[place]
        assert sorted(seen) == list(range(task_hops.PLACES)) and place == 0
        assert tokens[-1] == task_hops.PLACES + asked[0] - 1 and targets[-1] == -1
        for start in range(task_hops.PLACES):
            end = start
            for _ in range(asked[0]):
                end = arrow[end]
            assert targets[start] == end
    assert set(found["hops"].ravel()) == {1, 3, 8}
    again, other = (task_hops.examples(50, seed=3, step=step, hops=(1, 3, 8)) for step in (4, 5))
    np.testing.assert_array_equal(again["inputs"], found["inputs"])
    assert (other["inputs"] != found["inputs"]).any()


def test_what_a_layer_can_know_is_three_times_what_was_known():
    known, ends = {0, 1}, []
    for _ in range(3):
        known = {p - q + v for p in known for q in known for v in known}
        ends.append(max(known))
    assert ends == [task_hops.reach(depth) for depth in (1, 2, 3)] == [2, 5, 14]


def test_grandparents_are_those_of_the_tree():
    found = task_tree.examples(20, seed=3, step=4)
    deepest = 0
    for tokens, index, targets, path in zip(
        *(found[name] for name in ("inputs", "index", "targets", "path")), strict=True
    ):
        n = int((index >= 0).sum())
        assert n % 2 == 0 and task_tree.FEWEST_NODES <= n // 2 <= task_tree.MOST_NODES
        above, colors = [], {}
        for token, target, steps in zip(tokens[:n], targets[:n], path[:n], strict=True):
            way = tuple(int(step) for step in steps if step >= 0)
            if token == task_tree.CLOSE:
                assert above.pop() == way and target == -1
            else:
                assert (way[:-1] == above[-1]) if above else way == ()
                colors[way] = int(token)
                assert target == (colors[way[:-2]] if len(way) > 1 else -1)
                above.append(way)
                deepest = max(deepest, len(way))
        assert not above and (targets[n:] == -1).all()
    assert 2 < deepest <= task_tree.STEPS


def test_copies_are_of_the_token_one_period_back():
    found = task_copy.examples(40, seed=3, step=4, context=20)
    periods = set()
    for tokens, targets in zip(found["inputs"], found["targets"], strict=True):
        first = int(np.argmax(targets >= 0))
        assert 5 <= first <= 10 and (targets[first:] >= 0).all() and (targets[:first] == -1).all()
        np.testing.assert_array_equal(targets[first:-1], tokens[first + 1 :])
        np.testing.assert_array_equal(targets[first:], tokens[1 : 1 + len(targets) - first])
        periods.add(first)
    assert len(periods) > 3


@pytest.mark.parametrize("name", TASKS)
def test_a_made_task_has_the_face_of_a_corpus(name):
    task = TASKS[name]
    context = task.context or 12
    task.check(batch=2, context=context)
    first, again, other = (task.batch(seed=1, step=step, batch=2, context=context) for step in (5, 5, 6))
    np.testing.assert_array_equal(first["inputs"], again["inputs"])
    assert (first["inputs"] != other["inputs"]).any()
    assert first["inputs"].shape == first["targets"].shape == first["index"].shape == (2, context)
    assert first["inputs"].max() < task.vocab and first["targets"].max() < task.vocab
    valid = task.valid_batches(3, batch=2, context=context)
    assert all(array.shape[:2] == (3, 2) for array in valid.values())
    np.testing.assert_array_equal(
        valid["inputs"][1], task.examples(2, seed=0, step=VALID_STEP + 1, context=context)["inputs"]
    )
    assert 0 < task.unigram <= np.log(task.vocab) and len(task.sha256) == 64
    assert task.position(context) is not None


def test_a_number_of_tokens_that_is_not_the_tasks_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="--context 17"):
        TASKS["hops"].check(batch=2, context=32)
    with pytest.raises(ValueError, match="4 or more"):
        TASKS["copy"].check(batch=2, context=3)


SMALL = ("--steps", "4", "--d-model", "8", "--n-heads", "2", "--batch", "4", "--eval-every", "4", "--eval-batches", "2")


def words(out, task, *more):
    """A command line for a small sweep of pre-norm on a task."""
    rates = ("--recipes", "pre_norm", "--learning-rates", "0.01", "--no-compile-cache")
    return [*SMALL, *rates, "--task", task, "--out", str(out), *more]


@pytest.mark.thorough
@pytest.mark.parametrize("task", daily(TASKS, "hops"))
def test_a_sweep_trains_a_recipe_on_a_task_from_zero_layers(tmp_path, task):
    context = str(TASKS[task].context or 8)
    assert depth_sweep.main(words(tmp_path, task, "--context", context, "--depths", "0", "1")) == 0
    results = Results.of(tmp_path)
    assert [(cell["depth"], cell["status"]) for cell in results.cells] == [(0, "ok"), (1, "ok")]
    assert results.base["data"]["sha256"] == TASKS[task].sha256 and results.base["setting"]["task"] == task
    assert all(0 < cell["valid_loss"] < 10 for cell in results.cells)
    assert results.cells[1]["flops"] > results.cells[0]["flops"] > 0
    assert TASKS[task].name in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--context", "32"), "give --context 17"),
        (("--context", "17", "--data", "somewhere"), "makes its own data"),
        (("--context", "17", "--position", "sideways"), "unknown position"),
    ],
)
def test_what_does_not_fit_a_task_is_refused_in_one_line(tmp_path, capsys, more, said):
    assert depth_sweep.main(words(tmp_path / "new", "hops", *more)) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "new").exists()
