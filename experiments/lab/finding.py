"""Findings of an experiment: predictions stated beforehand, their outcome, and the files that record it.

An experiment leaves in its folder `result.json` (everything, for programs), `finding.md` (a page, for people) and
`figures/` (each chart as SVG and PNG).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import altair as alt
import numpy as np
from scipy import stats

from . import environment, store

Verdict = Literal["supported", "refuted", "inconclusive", "not judged"]


QUICK = "**A quick run: it shows that everything runs, and nothing else.**\n\n"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds with its 95 % interval by Student's t, which is infinite for one seed; or an exact number.

    Args:
        mean: of the seeds' values.
        low: lower end.
        high: upper end.
        n: seeds.
    """

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> "Estimate":
        """Estimate from one value a seed; for a comparison, from the differences of paired seeds."""
        values = np.asarray(values, float)
        n, mean = len(values), float(np.mean(values))
        if n < 2:
            return cls(mean=mean, low=-np.inf, high=np.inf, n=n)
        half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
        return cls(mean=mean, low=mean - half, high=mean + half, n=n)

    @classmethod
    def exact(cls, value: float) -> "Estimate":
        """A number that no seed changes, such as a count."""
        return cls(mean=value, low=value, high=value, n=1)

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.mean:.3f}"
        if self.n < 2:
            return f"{self.mean:.3f} (one seed)"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A claim with its threshold, set before the run.

    Args:
        claim: in words.
        found: what was measured.
        relation: that the claim says `found` has to the threshold.
        threshold: the number.
    """

    claim: str
    found: Estimate
    relation: Literal["below", "above"]
    threshold: float

    @property
    def verdict(self) -> Verdict:
        """Supported or refuted if the whole interval lies on one side, else inconclusive; one seed is not judged."""
        if not np.isfinite(self.found.high - self.found.low):
            return "not judged"
        if self.found.high < self.threshold:
            return "supported" if self.relation == "below" else "refuted"
        if self.found.low > self.threshold:
            return "supported" if self.relation == "above" else "refuted"
        return "inconclusive"

    def json(self) -> dict[str, Any]:
        """All of it, as plain JSON."""
        return {**asdict(self), "found": _finite(asdict(self.found)), "verdict": self.verdict}


def write(
    out: str | Path,
    *,
    question: str,
    setting: dict[str, Any],
    predictions: Sequence[Prediction],
    rows: Sequence[dict[str, Any]],
    figures: dict[str, alt.TopLevelMixin],
    text: str,
    provenance: dict[str, Any],
) -> Path:
    """Write a finding into its folder.

    Args:
        out: the folder.
        question: that was asked.
        setting: what determines the numbers, as plain JSON.
        predictions: stated beforehand.
        rows: the numbers behind the figures.
        figures: charts by name.
        text: what was found, in Markdown.
        provenance: of the numbers, from `environment.provenance`.

    Returns:
        The path of `finding.md`.
    """
    out = Path(out)
    judged = [prediction.json() for prediction in predictions]
    result = {**provenance, "question": question, "predictions": judged, "setting": setting}
    result["rows"] = [*map(_finite, rows)]
    for name, chart in figures.items():
        path = out / "figures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        chart.save(f"{path}.svg")
        chart.save(f"{path}.png", scale_factor=2)
    store.write(out / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    pictures = "\n".join(f"![{name.replace('_', ' ')}](figures/{name}.svg)" for name in figures)
    verdicts = table(
        [
            {
                "stated beforehand": p.claim,
                "found": str(p.found),
                "must be": f"{p.relation} {p.threshold:g}",
                "": p.verdict,
            }
            for p in predictions
        ]
    )
    parts = (f"# {question}", text, verdicts, pictures, environment.described(provenance))
    store.write(out / "finding.md", "\n\n".join(part for part in parts if part) + "\n")
    return out / "finding.md"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    if not rows:
        return ""
    names = list(rows[0])
    cells = ([str(row[name]).replace("|", "\\|") for name in names] for row in rows)
    lines = [names, ["---"] * len(names), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers that JSON has no word for as null."""
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}
