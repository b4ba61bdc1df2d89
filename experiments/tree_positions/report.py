"""Report of `tree_positions`: tables, predictions and figures."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from ..lab import finding
from ..lab.finding import Estimate, Prediction
from ..lab.trees.slices import FAR, SLICES

FEWEST = 30
"""Validation tokens below which a slice is left out."""
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Group:
    """One task on one language.

    Args:
        facts: language, task, and what the data were.
        tokens: target (-1 if there is none), label and depth of each validation token, (N,).
        arms: by name: loss (seeds, N) and params.
    """

    facts: dict[str, Any]
    tokens: dict[str, np.ndarray]
    arms: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        return f"{self.facts['language']}, {self.facts['task']}"

    def parts(self) -> dict[tuple[str, str], np.ndarray]:
        """Masks of the tokens in each part, (N,) booleans: (all, ), (slice, ..), (depth, quarter ..)."""
        asked = self.tokens["target"] >= 0
        depth = self.tokens["depth"]
        edges = [0, *sorted({int(np.quantile(depth[asked], q)) + 1 for q in (0.25, 0.5, 0.75)}), int(depth.max()) + 1]
        parts = {(ALL, ALL): asked}
        for i, name in enumerate(SLICES):
            parts["slice", name] = asked & (self.tokens["label"] == i)
        for low, high in pairwise(edges):
            if high > low:
                parts["depth", f"{low} to {high - 1}"] = asked & (depth >= low) & (depth < high)
        return {part: chosen for part, chosen in parts.items() if chosen.sum() >= (FEWEST if part[0] != ALL else 1)}

    def loss(self, arm: str, chosen: np.ndarray) -> np.ndarray:
        """Mean loss of the chosen tokens, (seeds,)."""
        return self.arms[arm]["loss"][:, chosen].mean(1)

    def gain(self, arm: str, chosen: np.ndarray) -> np.ndarray:
        """Difference of the arm from the linear one on the same seeds, (seeds,); negative is better."""
        return self.loss(arm, chosen) - self.loss("linear", chosen)


def write(out: str, groups: list[Group], setting: dict[str, Any], provenance: dict[str, Any]) -> Path:
    """Write the finding; returns its page."""
    rows = [row for group in groups for row in _rows(group)]
    figures = {f"by_{by}": _figure([row for row in rows if row["by"] in (ALL, by)], by) for by in ("slice", "depth")}
    return finding.write(
        out,
        question="Does it help to know where in the tree a token stands?",
        setting={**setting, "data": [group.facts for group in groups]},
        predictions=[prediction for group in groups for prediction in _predictions(group)],
        rows=rows,
        figures=figures,
        text=finding.QUICK * setting["quick"] + about(setting) + "\n\n" + _tables(groups),
        provenance=provenance,
    )


def _rows(group: Group) -> list[dict[str, Any]]:
    rows = []
    for (by, part), chosen in group.parts().items():
        for arm, numbers in group.arms.items():
            loss, gain = Estimate.of(group.loss(arm, chosen)), Estimate.of(group.gain(arm, chosen))
            rows.append(
                {
                    "group": group.name,
                    "by": by,
                    "part": part,
                    "tokens": int(chosen.sum()),
                    "arm": arm,
                    "params": numbers["params"],
                    "loss": loss.mean,
                    "loss_low": loss.low,
                    "loss_high": loss.high,
                    "gain": gain.mean,
                    "gain_low": gain.low,
                    "gain_high": gain.high,
                    "losses": [float(x) for x in group.loss(arm, chosen)],
                }
            )
    return rows


def _predictions(group: Group) -> list[Prediction]:
    """Stated after a pilot with other seeds (two of them) and before the run."""
    parts = group.parts()
    everything, closing = parts[ALL, ALL], parts.get(("slice", "closing bracket"))
    both, wrong = group.gain("linear + tree", everything), group.gain("linear + wrong tree", everything)
    enough = -0.1 if group.facts["task"] == "encoder" else 0.0
    stated = [
        Prediction(
            claim=f"{group.name}: the tree lowers the loss of the linear arm",
            found=Estimate.of(both),
            relation="below",
            threshold=enough,
        ),
        Prediction(
            claim=f"{group.name}: by more than another document's tree does",
            found=Estimate.of(both - wrong),
            relation="below",
            threshold=0.0,
        ),
        Prediction(
            claim=f"{group.name}: the tree alone is worse than the line alone",
            found=Estimate.of(group.gain("tree", everything)),
            relation="above",
            threshold=0.0,
        ),
    ]
    if closing is not None:
        stated.append(
            Prediction(
                claim=f"{group.name}: closing brackets gain more from the tree than all tokens do",
                found=Estimate.of(group.gain("linear + tree", closing) - both),
                relation="below",
                threshold=0.0,
            )
        )
    return stated


def _figure(rows: list[dict[str, Any]], by: str) -> alt.TopLevelMixin:
    """Chart of what each arm has over the linear one, by part, one panel a task."""
    arms = [arm for arm in dict.fromkeys(row["arm"] for row in rows) if arm != "linear"]
    groups = list(dict.fromkeys(row["group"] for row in rows))
    panels = [_panel(group, [row for row in rows if row["group"] == group], arms) for group in groups]
    return alt.concat(*panels, columns=2).properties(title=f"Broken down by {by}")


def _panel(group: str, rows: list[dict[str, Any]], arms: list[str]) -> Any:
    """One task: a line for each part, and on it a mark for each arm."""
    parts = list(dict.fromkeys(row["part"] for row in rows))
    offset = {arm: (i - (len(arms) - 1) / 2) / (len(arms) + 1) for i, arm in enumerate(arms)}
    marks = [{**row, "y": parts.index(row["part"]) + offset[row["arm"]]} for row in rows if row["arm"] in arms]
    names = alt.Axis(
        values=[*range(len(parts))], labelExpr=f"{json.dumps(parts)}[datum.value]", grid=False, ticks=False
    )
    y = alt.Y("y:Q", title=None, axis=names, scale=alt.Scale(domain=[len(parts) - 0.5, -0.5], nice=False))
    arm = alt.Color("arm:N", title=None, sort=arms, legend=alt.Legend(orient="top"), scale=alt.Scale(domain=arms))
    base = alt.Chart(alt.Data(values=marks))
    x = alt.X("gain:Q", title="loss less that of the linear arm, nats")
    layers = [base.mark_point(filled=True, size=45, opacity=1).encode(x=x, y=y, color=arm)]
    if all(np.isfinite(row["gain_low"]) for row in marks):
        layers.append(base.mark_rule().encode(x="gain_low:Q", x2="gain_high:Q", y=y, color=arm))
    zero = base.mark_rule(strokeDash=[2, 2], color="black").encode(x=alt.datum(0))
    return alt.layer(*layers, zero).properties(title=group, width=260, height=20 + 32 * len(parts))


def about(setting: dict[str, Any]) -> str:
    """Paragraphs on the setting, the documents, the arms and the rows of the tables, from the options."""
    documents = (
        "Python is the standard library. JSON is the data files of the packages installed where this ran, and syntax "
        "trees of the standard library: other JSON on another machine, or after an installation. Runs whose documents "
        "have the same digest have read the same."
        if setting["data"] is None
        else f"The documents are those in {setting['data']}."
    )
    return f"""{setting["depth"]} layers of D = {setting["d_model"]} with {setting["n_heads"]} heads, \
{setting["steps"]} steps of B = {setting["batch"]} windows of {setting["context"]} tokens at a learning rate of \
{setting["learning_rate"]:g}, ten times that for tables of relations; {setting["seeds"]} seeds. A *decoder* predicts \
the next byte, and its tree is what a reader knows of the document so far. An *encoder* fills in the 15 % of the \
leaves of the syntax tree that are hidden from it, and its tree is that of the whole document. {documents}

Four arms have one architecture and read the same data in the same order:

- *linear*: rotary positions and T5's bias, both of the place in the sequence;
- *tree*: only a tree bias, a learned number for each way from one token through the tree to another;
- *linear + tree*: all three;
- *linear + wrong tree*: all three with the paths of another document, the control.

The column linear is the loss of that arm in nats. The other columns are the loss of an arm less that of linear, \
paired by seed, with 95 % intervals: negative is better than linear. Rows: *dedent* is the first token of a line that \
stands higher in the tree than the line before, *repeated key* a key that was there before at its depth, *identifier \
bound near* and *far* a name that occurred before, where the way up to what holds both is shorter than {FAR} steps or \
not, *other* all tokens of no such kind, and *depth* the steps from the root."""


def _tables(groups: list[Group]) -> str:
    tables = []
    for group in groups:
        parts = group.parts()
        lines = [
            {
                "": part if by != "depth" else f"depth {part}",
                "tokens": int(chosen.sum()),
                "linear": f"{group.loss('linear', chosen).mean():.3f}",
                **{arm: str(Estimate.of(group.gain(arm, chosen))) for arm in group.arms if arm != "linear"},
            }
            for (by, part), chosen in parts.items()
        ]
        sizes = ", ".join(f"{arm} {numbers['params']:,}" for arm, numbers in group.arms.items())
        tables.append(f"## {group.name}\n\n{about_data(group.facts)} Parameters: {sizes}.\n\n{finding.table(lines)}")
    return "\n\n".join(tables)


def about_data(facts: dict[str, Any]) -> str:
    """Sentence on the number of tokens and the digest of the documents, which is equal in runs that read the same."""
    return f"{facts['train_tokens']:,} tokens to train on; digest of the documents {facts['sha256'][:12]}."
