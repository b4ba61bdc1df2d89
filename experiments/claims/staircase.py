"""Seventeen tokens, 289 relations: what one layer cannot do and two can."""

import altair as alt
import jax
import numpy as np

from stackjax.sublayer import Params

from ..lab import task_hops
from ..lab.store import Json
from ..lab.task import Filled
from ..lab.task_hops import reach
from ..lab.train import Batch
from .claim import About, Check, Claim, Relation, Rows, Unit, seeds
from .training import train

ASKED = {1: (1, 2, 3, 4), 2: (1, 2, 3, 4, 5, 8), 3: (1, 2, 4, 8)}
"""Hops on which a stack of so many layers is trained; more kinds take longer to learn."""

ONE, TWO, WIDE, THREE = "1 layer", "2 layers", "1 layer of twice the width", "3 layers"
LONGER = "2 layers, longer"
SECOND_SEEDS = (30, 31, 32)
"""Seeds of the two layers that were run second."""
REACHED, CLOSE_TO_ALL = 0.95, 0.99


def run(*, depth: int, d_model: int, n_heads: int, hops: list[int], seeds: list[int], steps: int, batch: int) -> Json:
    """Accuracy by number of hops, for each seed."""
    task = Filled(model=task_hops.encoder(d_model=d_model, depth=depth, n_heads=n_heads))
    valid = [task_hops.examples(256, seed=0, step=2**32 + i, hops=hops) for i in range(8)]

    def score(params: Params, batch: Batch) -> dict[str, jax.Array]:
        return {str(k): task.accuracy(params, batch, batch["hops"] == k) for k in hops}

    return train(
        task,
        lambda seed, step: task_hops.examples(batch, seed=seed, step=step, hops=hops),
        {name: np.stack([part[name] for part in valid]) for name in valid[0]},
        rates=(2e-3,),
        seeds=seeds,
        steps=steps,
        score=score,
        until=lambda scores: depth > 1 and all(scores[str(k)].min() > CLOSE_TO_ALL for k in hops if k <= reach(depth)),
        chunks=12,
    )


def units(quick: bool) -> list[Unit]:
    """One, two and three layers, one wide layer, and two layers for longer."""
    small = {"d_model": 16, "n_heads": 2, "steps": 4, "batch": 4}
    usual = {"d_model": 64, "n_heads": 4, "seeds": list(seeds(3)), "batch": 64}
    wanted = {
        ONE: {**usual, "depth": 1, "hops": ASKED[1], "steps": 1500},
        TWO: {**usual, "depth": 2, "hops": ASKED[2], "steps": 2500},
        WIDE: {**usual, "depth": 1, "hops": ASKED[1], "d_model": 128, "n_heads": 8, "steps": 1500},
        LONGER: {**usual, "depth": 2, "hops": (1, 2, 3, 4, 5, 6), "steps": 8000, "seeds": list(SECOND_SEEDS)},
        THREE: {**usual, "depth": 3, "hops": ASKED[3], "steps": 6000, "seeds": list(seeds(2))},
    }
    return [
        Unit(name=name, run=run, setting={**setting, "hops": list(setting["hops"]), **(small if quick else {})})
        for name, setting in wanted.items()
    ]


def accuracy(rows: Rows, unit: str, hops: int) -> np.ndarray:
    """Accuracy of each seed."""
    return np.array(rows[unit][str(hops)], float)[0]


def check(about: About, unit: str, hops: int, relation: Relation, threshold: float) -> Check:
    """Check that so many layers answer so many hops, or do not."""
    verb = "answers" if unit.startswith("1") else "answer"
    claim = f"{unit} {verb} {hops} {'hop' if hops == 1 else 'hops'}: share right"
    return Check(
        claim=claim,
        about=about,
        relation=relation,
        threshold=threshold,
        needs=(unit,),
        values=lambda rows: accuracy(rows, unit, hops),
    )


CHECKS = (
    check("claim", ONE, 4, "below", 0.20),
    check("claim", ONE, 3, "below", 0.35),
    check("control", ONE, 1, "above", REACHED),
    check("control", ONE, 2, "above", REACHED),
    check("claim", TWO, 8, "below", 0.20),
    check("claim", LONGER, 3, "above", REACHED),
    check("claim", LONGER, 4, "above", REACHED),
    check("beyond", LONGER, 5, "above", REACHED),
    check("beyond", LONGER, 6, "below", 0.20),
    check("claim", THREE, 8, "above", 0.90),
    check("control", WIDE, 4, "below", 0.12),
    check("control", WIDE, 3, "below", 0.35),
)


def figure(rows: Rows) -> alt.TopLevelMixin:
    """Share of right answers, mean over seeds, for each number of layers and hops; nothing where it was not asked."""
    points = [
        {"layers": unit, "hops": k, "right": float(accuracy(rows, unit, k).mean())}
        for unit in rows
        for k in range(1, task_hops.MOST_HOPS + 1)
        if str(k) in rows[unit]
    ]
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("hops:O", title="hops k", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("layers:N", title=None, sort=[ONE, WIDE, TWO, LONGER, THREE]),
    )
    color = alt.Color("right:Q", title="share right", scale=alt.Scale(scheme="blues", domain=[0, 1]))
    ink = alt.condition("datum.right > 0.5", alt.value("white"), alt.value("#22221f"))
    number = base.mark_text(fontSize=13).encode(text=alt.Text("right:Q", format=".2f"), color=ink)
    return (base.mark_rect().encode(color=color) + number).properties(width=alt.Step(62), height=alt.Step(44))


def lesson(rows: Rows) -> str:
    """Lesson of the staircase."""

    def share(unit: str, k: int) -> str:
        return f"{100 * accuracy(rows, unit, k).mean():.0f} %"

    def solved(unit: str) -> str:
        each = accuracy(rows, unit, 5) > REACHED
        return f"{each.sum()} of {each.size} seeds"

    known = 3**2 + 1
    return (
        "Every place holds an arrow to another place, and the question is where one stands after k arrows. In one "
        "layer each token can look at every other once: it learns where its arrow points and where that one's arrow "
        f"points, two hops ({share(ONE, 2)} right), and then it is at its end: three hops {share(ONE, 3)}, four "
        f"{share(ONE, 4)}, where guessing gives {100 / task_hops.PLACES:.0f} %. All {(task_hops.PLACES + 1) ** 2} "
        "pairs of tokens are there for that one layer to see; what it lacks is a second look at what the first has "
        f"found. A second layer answers four hops ({share(LONGER, 4)}), and a third eight ({share(THREE, 8)}, where "
        f"two layers, in the first run, answer {share(TWO, 8)}). Making the one layer twice as wide does not replace "
        f"the second ({share(WIDE, 4)} at four hops). How far can L layers get? We had expected 2^L hops, and found "
        f"two layers that answer five ({solved(TWO)} in the first run, {solved(LONGER)} when trained for longer). "
        "Tokens can also look backwards along the arrows, so that every layer makes three of what was known, and by "
        f"our count the ends are {reach(1)}, {reach(2)} and {reach(3)} hops, (3^L + 1) / 2. These seeds do not settle "
        f"that: at six hops two layers answer {share(LONGER, 6)}, where to guess among the places that by this count "
        f"are out of sight, all but {known} of the {task_hops.PLACES}, would give "
        f"{100 / (task_hops.PLACES - known):.0f} %."
    )


CLAIM = Claim(
    name="staircase",
    part="Stacking",
    title="One layer is not enough for seventeen tokens",
    says="Seventeen tokens have 289 relations between them; one layer has not the depth to reason over them, and N "
    "layers reason step by step.",
    refuted_by="One layer that follows four pointers, or two layers that do not.",
    protocol="Sixteen tokens hold a random cycle of pointers, the seventeenth says k; every token must say where k "
    "pointers lead from it. Bidirectional pre-norm encoder, D = 64, four heads, learned positions, 64 examples a step, "
    "learning rate 2e-3; 1,500 steps for one layer, 2,500 for two and 8,000 for two that are trained longer, 6,000 for "
    "three (two seeds); deeper ones stop when they answer all that can be answered. In a first run not "
    "every seed with two layers had learned three hops in 2,500 steps, and one answered five, where we had expected "
    "four at most; both led to a second run, on fresh seeds, with the bound (3^L + 1) / 2. That six hops "
    "stay below 0.2 was first counted as part of the claim; the claim names no such bound, so after the run this was "
    "moved to what is beyond it.",
    control="One layer of twice the width: it must not do what a second layer does. And one hop and two hops must be "
    "easy for one layer, or it has simply not learned.",
    units=units,
    checks=CHECKS,
    figure=figure,
    lesson=lesson,
)
