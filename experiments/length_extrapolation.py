"""Which positions go on working beyond the length they were trained on?

    python -m experiments.length_extrapolation
    python -m experiments.length_extrapolation --quick

A decoder is trained on windows of T bytes and read out at T, 2 T, 4 T and 8 T: the loss of the same 32 bytes with ever
more of what stands before them. An encoding that can use the longer context falls, one that cannot rises. The rotary
model is also read out with its frequencies stretched for 8 T, without training any further.

Tree positions do not depend on the length and need paths; they are the subject of `tree_positions`.

Found (`results/length_extrapolation`, three seeds): from T to 8 T the loss rises by 0.01 nats with ALiBi, 0.02 with
Transformer-XL, 0.10 with Shaw, 0.13 without positions, 0.19 with FIRE, and by 0.4 to 1.7 with sinusoids, rotary, T5
and scalars. T5 and Transformer-XL are best at T (1.97 and 1.98); T5's far buckets are never trained, and at 8 T it is
among the worst. Nothing falls: none of these models uses the longer context. Of the stretched rotary models the two NTK
are best at 4 T and YaRN at 8 T; all but the dynamic one pay at T. Two of six predictions were refuted: sinusoids and
scalars rise less at 2 T than the pilot said.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import altair as alt
import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj
from stackjax import position
from stackjax.position import rotary_scaling

from .lab import command_line, data, environment, finding, lanes, train
from .lab.corpus import Corpus
from .lab.finding import Estimate, Prediction
from .lab.options import Training, one_or_more, plain
from .lab.table_recipe import TableRecipe

TIMES = (1, 2, 4, 8)
READ = 32
"""Bytes at the end of a window whose loss is read."""


@dataclass(frozen=True, kw_only=True)
class Options(Training):
    """Train a decoder with every encoding and read it out at up to eight times the length.

    The learning rate is the same for all encodings; ten times that for tables of logits.

    Exit status: 0 done, whatever the verdicts; 2 bad usage; 130 interrupted.
    """

    only: tuple[str, ...] = ()
    """Encodings to train; none means all of them."""
    depth: int = 3
    """Layers."""
    eval_windows: int = 128
    """Validation windows."""

    def __post_init__(self):
        super().__post_init__()
        one_or_more(self, "depth", "eval_windows")
        if self.context < READ:
            raise ValueError(f"--context must be {READ} or more, the bytes that are read out; got {self.context}")


USUAL = Options(out="runs/length_extrapolation", steps=400, context=64)
QUICK = replace(
    USUAL, quick=True, context=32, seeds=2, steps=4, batch=2, d_model=16, depth=1, n_heads=2, eval_windows=4
)


def encodings(context: int) -> dict[str, position.Position]:
    """Every encoding that needs no paths."""
    return {
        "none": position.NoPosition(),
        "scalar": position.Scalar(period=context),
        "sinusoidal": position.Sinusoidal(),
        "learned": position.Learned(n_positions=context),
        "shaw": position.Shaw(max_distance=16),
        "transformer_xl": position.TransformerXL(),
        "t5": position.T5Bias(),
        "alibi": position.ALiBi(),
        "fire": position.FIRE(threshold=float(context)),
        "rotary": position.Rotary(),
    }


def stretched(context: int) -> dict[str, position.Position]:
    """The rotary model, read out with other frequencies."""
    longest = float(max(TIMES))
    scalings = {
        "linear": rotary_scaling.Linear(factor=longest),
        "ntk": rotary_scaling.NTK(factor=longest),
        "dynamic": rotary_scaling.DynamicNTK(original_length=context),
        "yarn": rotary_scaling.YaRN(factor=longest, original_length=context),
    }
    return {f"rotary, {name}": position.Rotary(scaling=scaling) for name, scaling in scalings.items()}


def model_of(encoding: position.Position, options: Options) -> sj.Model:
    """The decoder with an encoding."""
    return sj.decoder(
        d_model=options.d_model,
        depth=options.depth,
        n_heads=options.n_heads,
        position=encoding,
        recipe=TableRecipe(),
    )


def fit(model: sj.Model, corpus: Corpus, options: Options) -> Any:
    """Parameters of all seeds, trained, with a leading axis."""
    done = lanes.fit(
        train.Trainer(task=train.NextToken(model=model)),
        corpus,
        learning_rates=(options.learning_rate,),
        seeds=tuple(range(options.seeds)),
        steps=options.steps,
        batch=options.batch,
        context=options.context,
        eval_every=max(1, options.steps // 4),
        warmup=options.steps // 10,
    )
    assert done.state is not None
    return done.state.params


def read_out(model: sj.Model, params: Any, corpus: Corpus, options: Options) -> dict[int, np.ndarray]:
    """{length: mean loss of the last bytes of windows of that length, (seeds,)}; only lengths the encoding can do."""
    limit = model.embedding.position.limit
    longest = max(TIMES) * options.context
    ends = np.linspace(longest + 1, len(corpus.valid), options.eval_windows).astype(np.int64)

    @jax.jit
    def losses(params: Any, windows: jax.Array) -> jax.Array:
        def of_window(params: Any, window: jax.Array) -> jax.Array:
            logits, _ = model.apply(params, window[None, :-1])
            return sj.loss.cross_entropy(logits[:, -READ:], window[None, -READ:])

        def of_seed(params: Any) -> jax.Array:
            return jnp.mean(jax.lax.map(lambda window: of_window(params, window), windows, batch_size=16))

        return jax.lax.map(of_seed, params)

    losses_by_length = {}
    for length in (times * options.context for times in TIMES):
        if limit is None or length <= limit:
            windows = np.stack([corpus.valid[end - length - 1 : end] for end in ends]).astype(np.int32)
            losses_by_length[length] = np.asarray(losses(params, windows))
    return losses_by_length


def prepare(options: Options) -> tuple[Options, Corpus]:
    """The options, and what is read.

    Raises:
        ValueError: an unknown encoding, text that cannot be used or has fewer windows, or sizes that make no model.
    """
    known = encodings(options.context)
    unknown = set(options.only) - set(known)
    if unknown:
        raise ValueError(f"no encoding {sorted(unknown)[0]!r}; there are {', '.join(known)}")
    corpus = data.load(options.data)
    corpus.check(batch=options.batch, context=options.context)
    longest = max(TIMES) * options.context
    if len(corpus.valid) <= longest:
        raise ValueError(f"{corpus.name}: {len(corpus.valid)} validation bytes are too few for the longest window")
    if options.eval_windows > (windows := len(corpus.valid) - longest):
        raise ValueError(
            f"--eval-windows must be {windows} or less, the windows of {longest} bytes in the validation data of "
            f"{corpus.name}; got {options.eval_windows}"
        )
    for name in options.only or known:
        model = model_of(known[name], options)
        params = jax.eval_shape(model.init, jax.random.key(0))
        jax.eval_shape(model.apply, params, jnp.zeros((1, 1), jnp.int32))
    return options, corpus


def measure(options: Options, corpus: Corpus) -> dict[str, dict[int, np.ndarray]]:
    """{encoding: {length: (seeds,) losses}}"""
    known = encodings(options.context)
    by_encoding = {}
    for name in options.only or known:
        model = model_of(known[name], options)
        params = fit(model, corpus, options)
        by_encoding[name] = read_out(model, params, corpus, options)
        if name == "rotary":
            for other, encoding in stretched(options.context).items():
                by_encoding[other] = read_out(model_of(encoding, options), params, corpus, options)
        print(name, {n: round(float(x.mean()), 3) for n, x in by_encoding[name].items()}, flush=True)
    return by_encoding


def predictions(by_encoding: dict[str, dict[int, np.ndarray]], context: int) -> list[Prediction]:
    """Stated beforehand, from a pilot with four layers and 700 steps."""
    n = {times: times * context for times in TIMES}
    stated: list[Prediction] = []

    def predict(claim: str, needed: set[str], value: Any, relation: Any, threshold: float) -> None:
        if needed <= set(by_encoding):
            estimate = Estimate.of(value())
            stated.append(Prediction(claim=claim, found=estimate, relation=relation, threshold=threshold))

    def rise(name: str, times: int) -> np.ndarray:
        return by_encoding[name][n[times]] - by_encoding[name][n[1]]

    predict("sinusoidal at 2 T over T", {"sinusoidal"}, lambda: rise("sinusoidal", 2), "above", 0.5)
    predict("rotary at 4 T over T", {"rotary"}, lambda: rise("rotary", 4), "above", 0.5)
    predict("ALiBi at 8 T over T", {"alibi"}, lambda: rise("alibi", 8), "below", 0.05)
    predict("scalar at 2 T over T", {"scalar"}, lambda: rise("scalar", 2), "above", 0.5)
    predict(
        "rotary over sinusoidal at T",
        {"rotary", "sinusoidal"},
        lambda: by_encoding["rotary"][n[1]] - by_encoding["sinusoidal"][n[1]],
        "below",
        -0.1,
    )
    predict(
        "NTK at 4 T over half of rotary's rise at 4 T",
        {"rotary"},
        lambda: by_encoding["rotary, ntk"][n[4]] - by_encoding["rotary"][n[1]] - rise("rotary", 4) / 2,
        "below",
        0.0,
    )
    return stated


def figure(rows: list[dict[str, Any]], context: int) -> alt.TopLevelMixin:
    """Loss against length, one line an encoding; beside it, rotary positions stretched after training."""
    plain = [row for row in rows if "," not in row["encoding"]]
    turned = [row for row in rows if row["encoding"].startswith("rotary")]
    panels = [_panel("as trained", plain, context)]
    if len(turned) > len(TIMES):
        panels.append(_panel("rotary, stretched after training", turned, context))
    title = f"Trained on {context} bytes, read out on up to {max(TIMES) * context}"
    return alt.hconcat(*panels).resolve_scale(color="independent").properties(title=title)


def _panel(title: str, rows: list[dict[str, Any]], context: int) -> Any:
    ticks = alt.Axis(values=[times * context for times in TIMES])
    encode = {
        "x": alt.X("length:Q", title="context, bytes", scale=alt.Scale(type="log", base=2), axis=ticks),
        "color": alt.Color("encoding:N", title=None, scale=alt.Scale(scheme="tableau10"), sort=None),
    }
    base = alt.Chart(alt.Data(values=rows))
    y = alt.Y("loss:Q", title=f"loss of the last {READ} bytes, nats", scale=alt.Scale(zero=False))
    layers = [base.mark_line(point=True).encode(y=y, **encode)]
    if all(np.isfinite(row["low"]) for row in rows):
        layers.append(base.mark_rule(opacity=0.5).encode(y="low:Q", y2="high:Q", **encode))
    return alt.layer(*layers).properties(width=330, height=330, title=title)


def run(work: tuple[Options, Corpus], command: str) -> Path:
    """Train everything and write the finding; returns its page."""
    options, corpus = work
    by_encoding = measure(options, corpus)
    rows, lines = [], []
    for name, by_length in by_encoding.items():
        line = {"": name}
        for times in TIMES:
            losses = by_length.get(times * options.context)
            line[f"{times} T"] = "undefined" if losses is None else str(Estimate.of(losses))
        lines.append(line)
        for length, losses in by_length.items():
            numbers = asdict(Estimate.of(losses))
            row = {"encoding": name, "length": length, "loss": numbers["mean"]}
            rows.append({**row, "low": numbers["low"], "high": numbers["high"], "losses": losses.tolist()})
    text = (
        f"Decoders with {options.depth} layers of D = {options.d_model} and {options.n_heads} heads, trained for "
        f"{options.steps} steps of B = {options.batch} windows of T = {options.context} bytes of {corpus.name}, at a "
        f"learning rate of {options.learning_rate:g} (ten times that for tables of logits). Loss in nats of the last "
        f"{READ} bytes of {options.eval_windows} validation windows of T, 2 T, 4 T and 8 T bytes, which are the same "
        f"bytes at every length; 95 % intervals over {options.seeds} seeds. *Undefined*: the encoding has a table of T "
        "places and no more. *rotary, linear* to *rotary, yarn* are the trained rotary model with its frequencies "
        "changed afterwards."
    )
    return finding.write(
        options.out,
        question="Which positions go on working beyond the length they were trained on?",
        setting={**plain(options), "data": corpus.facts()},
        predictions=predictions(by_encoding, options.context),
        rows=rows,
        figures={"length": figure(rows, options.context)},
        text=finding.QUICK * options.quick + text + "\n\n" + finding.table(lines),
        provenance=environment.provenance(command, seeds=range(options.seeds)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    program = "experiments.length_extrapolation"
    return command_line.main(program, usual=USUAL, quick=QUICK, prepare=prepare, run=run, arguments=arguments)


if __name__ == "__main__":
    raise SystemExit(main())
