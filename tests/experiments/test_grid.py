"""Cells, groups and their names."""

import dataclasses

import pytest

from experiments.lab import names
from experiments.lab.grid import Grid, Group, Job, Setting, plan
from stackjax import recipe
from stackjax.recipe import PreNorm

COMMON = {"setting": {"steps": 1}, "data": "abc"}


def test_the_default_grid_is_the_one_promised():
    grid, setting = Grid(), Setting()
    assert (grid.depths, grid.seeds) == ((0, 1, 10), 1)
    assert tuple(grid.recipes) == ("pre_norm", "post_norm", "deepnorm")
    assert grid.learning_rates == (2e-3, 6e-3, 1.8e-2) and len(grid.cells()) == 27
    assert (setting.steps, setting.d_model, setting.context, setting.batch) == (400, 64, 64, 8)


def test_seeds_are_a_count():
    assert {cell.seed for cell in Grid(seeds=1).cells()} == {0}
    assert {cell.seed for cell in Grid(seeds=3).cells()} == {0, 1, 2}


def test_repeated_values_are_one():
    grid = Grid(depths=(2, 2), recipes=names.recipes("deepnorm", "deepnorm"), learning_rates=(1e-3, 0.001))
    assert len(grid.cells()) == 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Grid(depths=()), "--depths needs"),
        (lambda: Grid(depths=(2, -1)), "0 or more; got -1"),
        (lambda: Grid(recipes={}), "--recipes needs"),
        (lambda: Grid(learning_rates=(1e-3, -1e-3)), "positive; got 0.001 -0.001"),
        (lambda: Grid(learning_rates=(float("nan"),)), "positive"),
        (lambda: Grid(seeds=0), "1 or more"),
        (lambda: Grid(seeds=10**9), "1000000 cells at most; got 27000000000"),
        (lambda: Setting(steps=0), "--steps must be 1 or more"),
        (lambda: Setting(eval_batches=0), "--eval-batches"),
        (lambda: Setting(warmup=400), "less than --steps 400; got 400"),
        (lambda: Setting(weight_decay=-1.0), "--weight-decay"),
        (lambda: Setting(clip_norm=0.0), "--clip-norm must be positive; got 0"),
        (lambda: Setting(weight_decay=float("nan")), "--weight-decay must be 0 or more"),
        (lambda: Setting(n_heads=7).model(PreNorm(), 1, 9), "n_heads must divide d_model"),
        (lambda: Setting(position="rotory").model(PreNorm(), 1, 9), "did you mean rotary"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_tenth_is_warm_up_unless_said_otherwise():
    assert Setting().warmup_steps == 40 and Setting(steps=5).warmup_steps == 0
    assert Setting(warmup=0).warmup_steps == 0


def named(cells, common=COMMON, mode="vmap", recipe="deepnorm"):
    """Names of a group and of its cells."""
    job = Job.of(Group(cells=cells, mode=mode), names.recipe_named(recipe), common)
    return job.name, job.cell_names


def test_names_say_what_a_cell_is_and_hash_all_that_determines_it():
    cells = tuple(Grid(depths=(2,), recipes=names.recipes("deepnorm")).cells())
    name, cell_names = named(cells)
    assert name.startswith("deepnorm-L2-") and cell_names[0].startswith("deepnorm-L2-lr0.002-s0-")
    assert len(set(cell_names)) == len(cells) and named(cells) == (name, cell_names)
    others = [
        named(cells[:2]),
        named(cells, mode="loop"),
        named(cells, {**COMMON, "data": "abd"}),
        named(cells, {**COMMON, "setting": {"steps": 2}}),
        named(cells, recipe="keel"),
    ]
    for other_name, other_cells in others:
        assert other_name != name and other_cells[0] != cell_names[0]
    dotted = (dataclasses.replace(cells[0], recipe="tests.experiments.own:instance"),)
    assert named(dotted)[0].startswith("tests.experiments.own-instance-L2-")


def test_a_new_grid_is_one_group_for_each_recipe_and_depth():
    jobs = plan(Grid(), [], "vmap", COMMON)
    assert [(job.group.depth, job.group.recipe) for job in jobs[:4]] == [
        (0, "pre_norm"),
        (0, "post_norm"),
        (0, "deepnorm"),
        (1, "pre_norm"),
    ]
    assert all(len(job.group.cells) == len(job.cell_names) == 3 for job in jobs)
    assert jobs[0].recipe == PreNorm() and jobs[0].title == "pre_norm L=0"


def test_a_recipe_without_a_name_in_the_table_is_swept_by_the_name_that_it_is_given():
    mine = PreNorm(residual=recipe.residual.Pre(final=False))
    grid = Grid(depths=(2,), recipes={"pre_norm": PreNorm(), "without a final norm": mine})
    usual, own = plan(grid, [], "vmap", COMMON)
    assert own.recipe is mine and own.name.startswith("without-a-final-norm-L2-") and own.name != usual.name
    assert {cell.recipe for cell in own.group.cells} == {"without a final norm"}


def test_a_larger_grid_keeps_groups_and_adds_new_ones():
    small = Grid(depths=(2, 4), recipes=names.recipes("pre_norm"), learning_rates=(1e-3, 3e-3))
    known = [job.group for job in plan(small, [], "vmap", COMMON)]
    large = dataclasses.replace(small, depths=(2, 4, 8), learning_rates=(1e-3, 3e-3, 1e-2), seeds=2)
    groups = [job.group for job in plan(large, known, "loop", COMMON)]
    assert [group for group in groups if group.mode == "vmap"] == known
    new = [group for group in groups if group.mode == "loop"]
    assert [(group.depth, len(group.cells)) for group in new] == [(2, 4), (4, 4), (8, 6)]
    assert sorted(map(str, large.cells())) == sorted(str(cell) for group in groups for cell in group.cells)


def test_a_smaller_grid_runs_whole_groups():
    grid = Grid(recipes=names.recipes("pre_norm"))
    known = [job.group for job in plan(grid, [], "vmap", COMMON)]
    one = dataclasses.replace(grid, depths=(10,), learning_rates=(2e-3,))
    assert [job.group for job in plan(one, known, "vmap", COMMON)] == [known[2]]
