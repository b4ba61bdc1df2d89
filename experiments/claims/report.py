"""The page of all claims: one offline HTML page, `finding.md` with its figures, and `result.json`."""

import html
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..lab import chart, environment, finding, page
from ..lab.finding import Prediction
from ..lab.store import Json, write
from . import suite
from .claim import Check, Claim, Rows, judge
from .training import ends_of_grid

TITLE = "Common claims about deep Transformers, each put to a test it could fail"

LEGEND = (
    "Each claim is often made about Transformers. Its experiment and thresholds were committed before it was run, on "
    "seeds that no pilot had used; where a part was run a second time, its section says so. In the tables, what was "
    "found is the mean over seeds with its 95 % interval by Student's t. A prediction is supported or refuted where "
    "the whole interval lies on one side of the threshold that it must be above or below, and else inconclusive.",
    "A prediction is about the claim, from which it follows; against it, if it contradicts the claim; a control, "
    "without which the experiment means nothing; or beyond the claim, which decides nothing. A claim holds if all that "
    "follows from it was supported, is false if all was contradicted, and is corrected if part was supported and part "
    "contradicted, even where one more prediction is inconclusive.",
    "D is the width of a model, T the number of tokens in a window, L the number of layers. At birth means with fresh "
    "weights, before any training. The stream is what the skips carry from layer to layer. Pre-norm is x + f(norm(x)); "
    "post-norm, the arrangement of the Transformer of 2017, is norm(x + f(x)). Text is the standard library of "
    "Python, byte by byte, and losses on it are those of validation text after the last step, in nats a byte; counting "
    "single bytes means to know how often each byte occurs and nothing of those before it. Learning rates are peaks, "
    "after a warm-up over a tenth of the steps unless it is said otherwise. All trained models are small, and all "
    "runs short; what is found speaks of such.",
    "In the figures a dot or a thin line is one seed, a thick line or a tick the mean, and a bar its 95 % interval.",
)
"""Terms and conventions of the page, a paragraph each."""

WITHOUT_PROTOCOL = {
    "Stacking: lower layers capture what is local, and several heads give several views": "no protocol was found that "
    "tests it. In a pilot a task meant to need two views was learned by one head, which weighted the two unequally.",
    "Stacking: an encoder and a decoder, each in N layers": "not run. The library's tests train such models; what the "
    "depth of either is worth has not been measured.",
}
"""Claims that no experiment stands for, and why."""

ABOUT = {"claim": "the claim", "correction": "against it", "control": "control", "beyond": "beyond the claim"}
"""Subject of a check, in words."""


class Judged:
    """A claim with all that is known of it.

    Args:
        claim: the claim.
        records: of its units that have been run.
        quick: whether these are those of a quick run.
    """

    def __init__(self, claim: Claim, records: dict[str, Json], quick: bool):
        self.claim, self.records = claim, records
        self.rows: Rows = suite.rows(records)
        self.checks: list[tuple[Check, Prediction | None]] = [(c, c.predict(self.rows)) for c in claim.checks]
        self.missing = [unit.name for unit in claim.units(quick) if unit.name not in records]
        self.word = "not settled" if self.missing else judge(self.checks)

    @property
    def seconds(self) -> float:
        """Seconds of CPU spent on what has been run."""
        return sum(record["cpu_seconds"] for record in self.records.values())

    @property
    def paragraph(self) -> str:
        """Paragraph for a student; where something was not run, it says what."""
        if self.missing:
            return f"Not settled, because these were not run: {'; '.join(self.missing)}."
        return self.claim.lesson(self.rows)

    def table(self) -> list[Json]:
        """A row for each check."""
        return [
            {
                "stated beforehand": check.claim,
                "about": ABOUT[check.about],
                "found": "not run" if prediction is None else f"{prediction.found}",
                "seeds": "" if prediction is None else str(prediction.found.n),
                "must be": f"{check.relation} {check.threshold:g}",
                "": "" if prediction is None else prediction.verdict,
            }
            for check, prediction in self.checks
        ]


def write_all(out: Path, quick: bool, command: str) -> Path:
    """Write everything from the numbers that are there; returns the page."""
    judged = [Judged(claim, suite.done(out, claim, quick), quick) for claim in suite.CLAIMS]
    specs: dict[str, Json] = {}
    figures = {}
    for each in judged:
        if each.rows:
            figures[each.claim.name] = each.claim.figure(each.rows)
            chart.export(out / "figures", each.claim.name, figures[each.claim.name].to_dict(validate=False))
    write(out / "result.json", json.dumps(result(judged, command), indent=1, allow_nan=False) + "\n")
    write(out / "finding.md", markdown(judged, figures, quick, command))
    legend = "".join(f"<p>{html.escape(words)}</p>" for words in LEGEND)
    body = legend + summary(judged) + "".join(section(each, figures, specs) for each in judged) + unproven()
    counted = ", ".join(f"{n} {word}" for word, n in tally(judged).items())
    made = origin(judged, command)
    facts = {**made.pop("versions"), **{name: value for name, value in made.items() if name != "command"}}
    facts |= {"cost": cost(judged)}
    document = page.document(
        title=TITLE,
        under=finding.QUICK.strip("*\n") * quick + f"{len(judged)} claims: {counted}.",
        headline=(),
        body=body + page.environment(facts, [command]),
        specs=specs,
    )
    write(out / "page.html", document)
    return out / "page.html"


def tally(judged: Sequence[Judged]) -> dict[str, int]:
    """Count of the claims by the word in which they ended."""
    words = [each.word for each in judged]
    return {word: words.count(word) for word in ("holds", "corrected", "false", "not settled") if word in words}


def origin(judged: Sequence[Judged], command: str) -> Json:
    """Origin of the numbers, in the words of every `result.json`; several commits, where parts were run later."""
    records = [record for each in judged for record in each.records.values()]
    versions: dict[str, list[str]] = {}
    for record in records:
        for name, value in record["versions"].items():
            versions[name] = list(dict.fromkeys((*versions.get(name, ()), value)))
    commits = versions.pop("commit", [])
    return {
        "command": command,
        "seeds": sorted({seed for record in records for seed in record["setting"]["seeds"]}),
        "commit": ", ".join(commits),
        "clean_tree": None if "unknown" in commits else not any(commit.endswith("-dirty") for commit in commits),
        "versions": {name: ", ".join(values) for name, values in versions.items()},
        "device": ", ".join(dict.fromkeys(record["device"] for record in records)),
    }


def cost(judged: Sequence[Judged]) -> str:
    """CPU time of all that was run."""
    return f"{sum(each.seconds for each in judged) / 60:.1f} minutes of CPU"


def result(judged: Sequence[Judged], command: str) -> Json:
    """All of it, for programs."""
    return {
        **origin(judged, command),
        "question": TITLE,
        "cpu_seconds": round(sum(each.seconds for each in judged), 1),
        "tally": tally(judged),
        "claims": [
            {
                "name": each.claim.name,
                "part": each.claim.part,
                "title": each.claim.title,
                "verdict": each.word,
                "checks": [
                    {"about": check.about, **(prediction.json() if prediction else {"claim": check.claim})}
                    for check, prediction in each.checks
                ],
                "not_run": each.missing,
                "cpu_seconds": round(each.seconds, 1),
                "paragraph": each.paragraph,
            }
            for each in judged
        ],
    }


def described(each: Judged) -> dict[str, str]:
    """The claim with its experiment, by heading."""
    terms = {
        "The claim": each.claim.says,
        "It would be refuted by": each.claim.refuted_by,
        "Protocol": each.claim.protocol,
        "Control": each.claim.control,
    }
    ends = {unit: ends_of_grid(row) for unit, row in each.rows.items() if "choose" in row}
    outside = "; ".join(f"{unit} ({', '.join(f'{rate:g}' for rate in rates)})" for unit, rates in ends.items() if rates)
    limit = "the best learning rate is the lowest or the highest of those tried, so that a better one may lie outside:"
    return {**terms, "Limit": f"For these {limit} {outside}."} if outside else terms


def markdown(judged: Sequence[Judged], figures: dict[str, Any], quick: bool, command: str) -> str:
    """`finding.md`."""
    overview = [{"part": each.claim.part, "claim": each.claim.title, "verdict": f"**{each.word}**"} for each in judged]
    parts = [f"# {TITLE}", *([finding.QUICK.strip()] if quick else []), *LEGEND, finding.table(overview)]
    for each in judged:
        parts.append(f"## {each.claim.title}: {each.word}")
        parts += [each.paragraph]
        parts += [f"- *{heading}*: {words}" for heading, words in described(each).items()]
        parts.append(finding.table(each.table()))
        if each.claim.name in figures:
            parts += [f"![{each.claim.title}](figures/{each.claim.name}.svg)", f"*{caption(each.claim)}*"]
        parts.append(f"{each.seconds / 60:.1f} minutes of CPU.")
    parts.append("## Without a test")
    parts += [f"- {claim}: {why}" for claim, why in WITHOUT_PROTOCOL.items()]
    parts.append(f"{environment.described(origin(judged, command))} {cost(judged)}. It also makes `page.html`.")
    return "\n\n".join(parts) + "\n"


def caption(claim: Claim) -> str:
    """Caption of a claim's figure, in one line."""
    return " ".join((inspect.getdoc(claim.figure) or "").split())


def summary(judged: Sequence[Judged]) -> str:
    """Every claim with its verdict, and a link to it."""
    rows = "".join(
        f"<tr><td class='word'>{html.escape(each.claim.part)}</td><td class='word'><a "
        f"href='#{each.claim.name}'>{html.escape(each.claim.title)}</a></td><td "
        f"class='word'><b>{each.word}</b></td></tr>"
        for each in judged
    )
    heads = "".join(f"<th class='word'>{head}</th>" for head in ("part", "claim", "verdict"))
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def section(each: Judged, figures: dict[str, Any], specs: dict[str, Json]) -> str:
    """One claim."""
    claim = each.claim
    terms = "".join(f"<p><b>{heading}.</b> {html.escape(words)}</p>" for heading, words in described(each).items())
    drawn = page.figure({"": (f"chart_{claim.name}", figures[claim.name])}, caption(claim), specs) if each.rows else ""
    columns = list(each.table()[0])
    heads = "".join(f"<th class='word'>{html.escape(column)}</th>" for column in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td class='word'>{html.escape(row[column])}</td>" for column in columns) + "</tr>"
        for row in each.table()
    )
    checks = f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    cost = f'<p class="under">{each.seconds / 60:.1f} minutes of CPU</p>'
    return (
        f'<h2 id="{claim.name}">{html.escape(claim.title)}: {each.word}</h2>'
        f"<p>{html.escape(each.paragraph)}</p>{drawn}{terms}{checks}{cost}"
    )


def unproven() -> str:
    """Claims without an experiment."""
    items = "".join(f"<li>{html.escape(f'{claim}: {why}')}</li>" for claim, why in WITHOUT_PROTOCOL.items())
    return f"<h2>Without a test</h2><ul>{items}</ul>"
