"""Does it pay to train a shallow stack first and to grow it?

    python -m experiments.growth

Decoders of one final depth, all for the same number of FLOPs, which are counted from their programs: at full depth from
the start; grown once, at several shares of the schedule, by copies of the layers (gradual stacking: Gong et al. 2019;
Du et al. 2024, arXiv:2405.15319) or by layers that are the identity at first (Wu et al. 2024, arXiv:2401.02415); grown
twice; and never grown. The learning rate warms up, stays, and falls over the last fifth of the steps, whatever the
depth is then. Papers claim 40 to 80 % of the compute saved: a stack at full depth with as much more of it says whether
that is had here. Killed, the same command goes on behind the last strategy that ended.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Literal

import altair as alt

from ..lab import chart, command_line, data, environment, finding, store
from ..lab.corpus import Corpus
from ..lab.finding import Estimate, Prediction
from ..lab.options import plain
from .strategy import SAVED, Ended, Options, Strategy, model_of, step_flops, strategies, trained

USUAL = Options(out="runs/growth", d_model=32)
QUICK = replace(
    USUAL,
    quick=True,
    depth=4,
    steps=10,
    chunk=1,
    seeds=2,
    learning_rates=(1e-2,),
    shares=(0.5,),
    d_model=8,
    n_heads=2,
    context=8,
    batch=2,
    eval_batches=2,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return command_line.main(
        "experiments.growth",
        usual=USUAL,
        quick=QUICK,
        prepare=prepare,
        run=lambda work, command: run(*work, command),
        arguments=arguments,
    )


def prepare(options: Options) -> tuple[Options, Corpus]:
    """The options, and the text that they name.

    Raises:
        ValueError: what does not fit.
    """
    corpus = data.load(options.data)
    corpus.check(batch=options.batch, context=options.context)
    model_of(options, options.depth, corpus.vocab)
    return options, corpus


def run(options: Options, corpus: Corpus, command: str) -> Path:
    """Run every strategy that has not been, and report."""
    flops = {depth: step_flops(options, depth, corpus.vocab) for depth in depths(options)}
    ended = {}
    for name, strategy in strategies(options).items():
        ended[name] = ended_of(name, strategy, corpus, options, flops)
        print(f"{name}: {Estimate.of(ended[name].at_best)} at {ended[name].best}", flush=True)
    return report(ended, corpus, options, command)


def depths(options: Options) -> set[int]:
    """All depths at which something is trained."""
    return {depth for strategy in strategies(options).values() for _, depth in strategy.parts}


def ended_of(name: str, strategy: Strategy, corpus: Corpus, options: Options, flops: dict[int, int]) -> Ended:
    """The end of a strategy, from its file if it has been run."""
    kept = [field.name for field in fields(Ended)]
    same = {**plain(replace(options, out="")), **asdict(strategy), "data": corpus.sha256, **environment.versions()}
    same |= {"kept": kept}
    path = Path(options.out) / "strategies" / f"{store.digest(same)}.json"
    record = store.read_sealed(path)
    if record is None:
        record = asdict(trained(strategy, corpus, options, flops))
        store.write_sealed(path, {"name": name, **record})
    return Ended(**{field: record[field] for field in kept})


def predictions(ended: dict[str, Ended], options: Options) -> list[Prediction]:
    """Stated before the run.

    From the papers: growing pays, copies more than identities and grown early more than late, and saves 40 %. From a
    pilot of 200 steps with the seeds 1000 and 1001: half depth is ahead of all that end at full depth.
    """
    loss = {name: each.at_best for name, each in ended.items()}
    share = options.shares[len(options.shares) // 2]
    copy, identity, full = f"copy at {share:.0%}", f"identity at {share:.0%}", "full depth"
    first, last = (f"copy at {share:.0%}" for share in (min(options.shares), max(options.shares)))
    stated: list[tuple[str, str, str, Literal["below", "above"], float]] = [
        ("half depth against full depth, nats", "half depth", full, "below", 0.0),
        (f"{copy} against full depth, nats", copy, full, "below", 0.0),
        (f"{identity} against full depth, nats", identity, full, "below", 0.0),
        (f"{copy} against full depth with FLOPs / {1 - SAVED:g}, nats", copy, "full depth, more", "below", 0.0),
        ("copies against identities at the same share, nats", copy, identity, "below", 0.0),
        (f"{copy} against half depth, never grown, nats", copy, "half depth", "above", 0.0),
        ("copies grown twice against once, nats", "copy twice", copy, "below", 0.0),
    ]
    if first != last:
        stated.append(("copies grown last against copies grown first, nats", last, first, "above", 0.0))
    return [
        Prediction(claim=claim, found=Estimate.of(loss[a] - loss[b]), relation=relation, threshold=threshold)
        for claim, a, b, relation, threshold in stated
    ]


def figure(ended: dict[str, Ended]) -> alt.TopLevelMixin:
    """Chart of each strategy's loss less that of full depth, paired by seed, with intervals."""
    rows = []
    for name, each in ended.items():
        difference = Estimate.of(each.at_best - ended["full depth"].at_best)
        rows.append({"strategy": name, **asdict(difference)})
    rows = [row for row in rows if row["strategy"] != "full depth"]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("strategy:N", title=None, sort=[row["strategy"] for row in rows], axis=alt.Axis(labelLimit=200))
    )
    color = alt.value(chart.PALETTE[0])
    zero = alt.Chart(alt.Data(values=[{"x": 0}])).mark_rule(strokeDash=[4, 4]).encode(x="x:Q")
    title = "validation loss less that of full depth from the start (nats, 95 % interval over paired seeds)"
    lines = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q", color=color)
    points = base.mark_point(filled=True, size=70).encode(x="mean:Q", color=color)
    return (zero + lines + points).properties(width=560, height=28 * len(rows))


def report(ended: dict[str, Ended], corpus: Corpus, options: Options, command: str) -> Path:
    """Write the finding; returns its page."""
    full = ended["full depth"]
    lines, rows = [], []
    for name, each in ended.items():
        lines.append(
            {
                "": name,
                "steps at each depth": ", ".join(f"{n} at {depth}" for depth, n in each.steps.items()),
                "FLOPs": f"{each.flops / full.flops:.3f}",
                "validation loss": str(Estimate.of(each.at_best)),
                "difference from full depth": "" if each is full else str(Estimate.of(each.at_best - full.at_best)),
                "learning rate": each.best,
            }
        )
        rows.append({"strategy": name, "best": each.best, **asdict(each)})
    stated = predictions(ended, options)
    for claim in stated:
        print(f"{claim.verdict:<13}{claim.claim}: {claim.found} (must be {claim.relation} {claim.threshold:g})")
    text = (
        f"{options.depth} layers of D = {options.d_model} at the end, pre-norm, {options.steps} steps at full depth "
        f"of B = {options.batch} windows of {options.context} bytes, {options.seeds} seeds; each strategy at the best "
        f"of {len(options.learning_rates)} learning rates, chosen on one half of the validation windows, with its loss "
        f"on the other half. FLOPs are those of the matrix products, over full depth's. Text: {corpus.name}. Losses "
        "in nats; 95 % intervals over seeds, those of differences over paired ones."
        "\n\n*Copy at* and *identity at* a share of the steps: half the layers until then, which are doubled by "
        "copies of them or by new layers that are the identity at first. *Twice*: a quarter of the layers, doubled two "
        "times. *Half depth*: half the layers to the end. All these have the FLOPs of *full depth*, all layers from "
        f"the start; *full depth, more* has them divided by {1 - SAVED:g}, to see whether growing saves {SAVED:.0%} of "
        "the compute."
    )
    return finding.write(
        options.out,
        question="Does it pay to train a shallow stack first and to grow it?",
        setting={**plain(options), "data": corpus.facts()},
        provenance=environment.provenance(command, seeds=range(options.first_seed, options.first_seed + options.seeds)),
        predictions=stated,
        rows=rows,
        figures={"growth": figure(ended)},
        text=finding.QUICK * options.quick + text + "\n\n" + finding.table(lines),
    )


if __name__ == "__main__":
    sys.exit(main())
