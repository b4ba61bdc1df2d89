"""A claim about deep Transformers: what it says, what would refute it, and the numbers that decide."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
import numpy as np

from ..lab.finding import Estimate, Prediction
from ..lab.store import Json

Rows = Mapping[str, Json]
"""The numbers of each unit that has been run, by its name."""

About = Literal["claim", "correction", "control", "beyond"]
Relation = Literal["below", "above"]
Word = Literal["holds", "corrected", "false", "not settled"]

FIRST_SEED = 20
"""Pilots took lower ones."""


def seeds(n: int) -> tuple[int, ...]:
    """The first `n` seeds that no pilot has used."""
    return tuple(range(FIRST_SEED, FIRST_SEED + n))


def plain(values: Any) -> Any:
    """An array as nested lists of numbers with six digits; None for what is not finite."""
    if np.ndim(values):
        return [plain(part) for part in values]
    return float(f"{float(values):.6g}") if np.isfinite(values) else None


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The smallest part of a claim that is run, saved and skipped when it has been run: usually one arm, all seeds.

    Args:
        name: of the unit.
        run: makes its numbers, as plain JSON, from the setting.
        setting: all that determines the numbers; numbers made with another setting are not used.
    """

    name: str
    run: Callable[..., Json]
    setting: Json


@dataclass(frozen=True, kw_only=True)
class Check:
    """A prediction written down before its numbers are there.

    Args:
        claim: in words.
        about: "claim" if it follows from the claim; "correction" if it contradicts the claim; "control" if the
            experiment means nothing unless it is so; "beyond" if the claim does not speak of it: it does not decide
            the verdict.
        relation: that the claim says the numbers have to the threshold.
        threshold: the number, committed before the run.
        needs: names of the units that it reads.
        values: one value a seed, from the units' numbers; for a comparison, differences of paired seeds.
    """

    claim: str
    about: About
    relation: Relation
    threshold: float
    needs: tuple[str, ...]
    values: Callable[[Rows], Sequence[float] | Any]

    def predict(self, rows: Rows) -> Prediction | None:
        """The prediction with what was found; None until all that it needs has been run."""
        if not set(self.needs) <= set(rows):
            return None
        found = Estimate.of(self.values(rows))
        return Prediction(claim=self.claim, found=found, relation=self.relation, threshold=self.threshold)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim, with its experiment.

    Args:
        name: one word for the command line.
        part: of a Transformer, that the claim is about.
        title: a short sentence.
        says: the claim in full.
        refuted_by: what would refute it.
        protocol: what is measured, and how.
        control: what should not work, and why that matters.
        units: what is run, in this order; called with whether the run is a quick one.
        checks: the predictions.
        figure: from the numbers that are there; its docstring is the caption.
        lesson: a paragraph for a student, from all numbers.
    """

    name: str
    part: str
    title: str
    says: str
    refuted_by: str
    protocol: str
    control: str
    units: Callable[[bool], Sequence[Unit]]
    checks: tuple[Check, ...]
    figure: Callable[[Rows], alt.TopLevelMixin]
    lesson: Callable[[Rows], str]


def judge(judged: Sequence[tuple[Check, Prediction | None]]) -> Word:
    """The verdict on a claim.

    It is `not settled` where a number is missing or a control did not behave. Else it is `corrected` if part of the
    claim was supported and part contradicted, whatever else is inconclusive; `not settled` if anything is inconclusive
    or a contradiction was refuted; `holds` if all of the claim was supported, `false` if all was contradicted.

    Args:
        judged: each check, with its prediction.
    """
    if any(prediction is None for _, prediction in judged):
        return "not settled"
    verdicts = [(check.about, made.verdict) for check, made in judged if made is not None and check.about != "beyond"]
    if any(about == "control" and verdict != "supported" for about, verdict in verdicts):
        return "not settled"
    agrees = ("claim", "supported") in verdicts
    contradicts = ("claim", "refuted") in verdicts or ("correction", "supported") in verdicts
    if agrees and contradicts:
        return "corrected"
    settled = {("claim", "supported"), ("claim", "refuted"), ("correction", "supported"), ("control", "supported")}
    if not set(verdicts) <= settled:
        return "not settled"
    return "holds" if agrees else "false"
