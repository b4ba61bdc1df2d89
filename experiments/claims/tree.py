"""Does it help to tell a token where in the tree it stands?"""

from collections.abc import Callable
from typing import Any

import altair as alt
import jax
import numpy as np

import stackjax as sj
from stackjax.sublayer import Params

from ..lab import task_tree
from ..lab.store import Json
from ..lab.table_recipe import TableRecipe
from ..lab.task import Filled
from ..lab.train import Batch
from . import drawing
from .claim import About, Check, Claim, Relation, Rows, Unit, seeds
from .training import best, train

LINE, TREE, WRONG = "rotary", "rotary and tree", "rotary and another text's tree"


def examples(arm: str, n: int, *, seed: int, step: int) -> Batch:
    """Examples for an arm: the same tokens, with no path, its own or its neighbour's."""
    batch = task_tree.examples(n, seed=seed, step=step)
    path = {LINE: np.full_like(batch["path"], -1), TREE: batch["path"], WRONG: np.roll(batch["path"], 1, 0)}[arm]
    return {**batch, "path": path}


def run(*, arm: str, depth: int, d_model: int, n_heads: int, batch: int, **numbers: Any) -> Json:
    """Share of grandparents' colours that are right."""
    position = sj.position.Both(first=sj.position.Rotary(), second=sj.position.TreeBias())
    sizes = {"vocab": task_tree.VOCAB, "d_model": d_model, "depth": depth, "n_heads": n_heads}
    task = Filled(model=sj.encoder(position=position, recipe=TableRecipe(), **sizes))
    valid = [examples(arm, 64, seed=0, step=2**32 + i) for i in range(8)]

    def score(params: Params, batch: Batch) -> dict[str, jax.Array]:
        return {"right": task.accuracy(params, batch)}

    def feed(seed: int, step: int) -> Batch:
        return examples(arm, batch, seed=seed, step=step)

    return train(task, feed, jax.tree.map(lambda *xs: np.stack(xs), *valid), score=score, **numbers)


def units(quick: bool) -> list[Unit]:
    """A unit for each arm."""
    size = {"depth": 3, "d_model": 64, "n_heads": 4, "batch": 24, "steps": 600, "rates": [2e-3]}
    size["seeds"] = list(seeds(2 if quick else 3))
    if quick:
        size |= {"depth": 1, "d_model": 8, "n_heads": 2, "batch": 2, "steps": 4}
    return [Unit(name=arm, run=run, setting={**size, "arm": arm}) for arm in (LINE, TREE, WRONG)]


def right(rows: Rows, arm: str) -> np.ndarray:
    """Share right, one a seed."""
    return best(rows[arm], "right")


def check(
    about: About, claim: str, arms: tuple[str, ...], relation: Relation, threshold: float, values: Callable
) -> Check:
    """Check of shares of right answers."""
    return Check(claim=claim, about=about, relation=relation, threshold=threshold, needs=arms, values=values)


CHECKS = (
    check("claim", f"{TREE}: share right", (TREE,), "above", 0.97, lambda rows: right(rows, TREE)),
    check("claim", f"{LINE}: share right", (LINE,), "below", 0.85, lambda rows: right(rows, LINE)),
    check(
        "control",
        f"{WRONG} minus {LINE}: share right",
        (WRONG, LINE),
        "below",
        0.05,
        lambda rows: right(rows, WRONG) - right(rows, LINE),
    ),
)


def figure(rows: Rows) -> alt.TopLevelMixin:
    """Share of nodes that name their grandparent's colour rightly."""
    return drawing.dots({arm: list(right(rows, arm)) for arm in rows}, title="share of right answers")


def lesson(rows: Rows) -> str:
    """Lesson on what the tree adds."""

    def share(arm: str) -> str:
        return f"{100 * right(rows, arm).mean():.0f} %"

    return (
        "A tree is written down as a line with a token that closes each node, and every node must say its "
        f"grandparent's colour. With rotary positions, which know distances along the line, {share(LINE)} are right "
        f"after {rows[LINE]['steps']} steps, although the tree can be read off by counting. With a learned number for "
        f"each way up and down the tree {share(TREE)} are. With another text's tree, which has as many numbers to "
        f"learn, {share(WRONG)} are: it is the right tree that helps, not the parameters."
    )


CLAIM = Claim(
    name="tree",
    part="Structure",
    title="Positions can say where in the tree a token stands",
    says="Where data has a structure, positions should say where in its tree a token stands, and not only where on the "
    "line.",
    refuted_by="A model that is told where in the tree its tokens stand and does no better than on the line alone.",
    protocol="Random trees of 20 to 44 nodes in eight colours, written in order with closing tokens; each node says "
    "its grandparent's colour. Three-layer encoders, D = 64, 600 steps of 24 trees, learning rate 2e-3; rotary "
    "positions with and without a bias for each way through the tree.",
    control="The tree of another text, that is of another example of the batch: it must help by less than 0.05, or it "
    "was the parameters.",
    units=units,
    checks=CHECKS,
    figure=figure,
    lesson=lesson,
)
