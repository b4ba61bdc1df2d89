"""Cost of a training step for each of eight devices, against an eighth of what one device alone would do.

    python -m experiments.scale

A step (forward, backward, AdamW) is compiled for eight devices, on a CPU for eight virtual ones, and XLA's own counts
of FLOPs and of temporary memory are read, and what its collectives exchange; nothing is run. Losses that are right say
nothing of this: they were right while every device computed the whole batch. The controls are compiled from shapes
without a mesh in use, so that the stream is not pinned to devices (`stackjax.pin`), and must miss the bounds, one in
FLOPs and one in temporaries. In a pipeline (`stackjax.pipeline`) a device also computes what is dropped at the ends,
the bubble, and theory says how much that is.
"""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import altair
import jax
import jax.numpy as jnp
import optax

import stackjax as sj
from stackjax import sequence

from ..lab import command_line, environment, finding
from ..lab.finding import Estimate, Prediction
from ..lab.options import Finding, Sizes, one_or_more, plain
from . import collectives

DEVICES = 8
MOST = 1.15
"""Times its ideal share that a device may compute or keep."""
MESHES: Mapping[str, Mapping[str, int]] = {
    "replicas": {"replica": 8},
    "fully sharded": {"data": 8},
    "tensors": {"model": 8},
    "sharded, tensors": {"data": 4, "model": 2},
    "replicas, sharded, tensors": {"replica": 2, "data": 2, "model": 2},
    "tokens": {"sequence": 8},
    "sharded, tokens": {"data": 2, "sequence": 4},
    "tokens, tensors": {"sequence": 4, "model": 2},
}
OTHERS = ("fully sharded", "tensors", "sharded, tensors", "replicas, sharded, tensors", "sharded, tokens")
"""Ways in which other models than the decoder are counted."""
CONTROLS = {"fully sharded, not pinned": "fully sharded", "tensors, not pinned": "tensors"}
"""Ways in which the stream is not pinned, and the way with the same mesh in which it is."""
PIPELINES: Mapping[str, Mapping[str, int]] = {"pipeline": {"stage": 8}, "pipeline, sharded": {"stage": 4, "data": 2}}
MICROBATCHES = 8
"""M, into which a pipeline cuts the batch."""
PIPED = ("flops_ratio", "temporary_ratio")
"""Ratios of a pipeline that grow with its bubble, by 1 / (1 - bubble)."""


@dataclass(frozen=True, kw_only=True)
class Options(Finding, Sizes):
    """Count what each of eight devices computes and keeps in a step of training.

    Exit status: 0 done; 2 bad usage; 130 interrupted.
    """

    out: str = "runs/scale"
    """Folder of the result: finding.md, result.json and figures."""
    d_model: int = 128
    """Width D."""
    n_heads: int = 8
    """Attention heads H, a divisor of the width."""
    context: int = 128
    """Tokens T."""
    batch: int = 32
    """Sequences B."""
    depth: int = 8
    """Layers L."""
    vocab: int = 512
    """Vocabulary V."""

    def __post_init__(self):
        super().__post_init__()
        one_or_more(self, "depth", "vocab")


USUAL = Options()
QUICK = replace(USUAL, d_model=32, context=16, batch=16, vocab=32, quick=True)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The work of one device in a step, by XLA's own counts.

    Args:
        flops: floating-point operations, the body of a loop once.
        temporary: bytes of temporary memory.
        arguments: bytes of parameters, moments and batch.
        gathered: bytes of what it receives whole from others, see `collectives.exchanged`.
        reduced: bytes of what is added up with others.
    """

    flops: float
    temporary: int
    arguments: int
    gathered: int
    reduced: int


def compiled(model: Any, shape: tuple[int, int], mesh: jax.sharding.Mesh | None, *, pinned: bool = True) -> Any:
    """A step of training, compiled from shapes alone.

    Args:
        model: a decoder, an encoder or an encoder-decoder.
        shape: (B, T) of the tokens.
        mesh: of devices; None compiles for one alone.
        pinned: whether the mesh is in use while it compiles.
    """
    optimizer = sj.optim.adamw(model, learning_rate=1e-3)
    params = jax.eval_shape(model.init, jax.random.key(0))
    carry, tokens = (params, jax.eval_shape(optimizer.init, params)), jax.ShapeDtypeStruct(shape, jnp.int32)
    n_inputs = 2 if isinstance(model, sj.EncoderDecoder) else 1

    def step(carry: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        inputs: Any = (tokens,) * n_inputs
        value, gradient = jax.value_and_grad(
            lambda params: sj.loss.next_token(model.apply(params, *inputs)[0], tokens)
        )(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    if mesh is None:
        return jax.jit(step, donate_argnums=0).lower(carry, tokens).compile()
    where = sj.shard.state(model, mesh, carry)
    places = {"in_shardings": (where, sj.shard.batch(mesh)), "out_shardings": (where, None)}
    with jax.set_mesh(mesh) if pinned else contextlib.nullcontext():
        return jax.jit(step, donate_argnums=0, **places).lower(carry, tokens).compile()


def compiled_layers(stack: sj.Stack, shape: tuple[int, int], mesh: jax.sharding.Mesh | None) -> Any:
    """The gradient of a function of a decoder's layers alone, compiled from shapes alone.

    Args:
        stack: the layers.
        shape: (B, T) of the stream.
        mesh: with an axis `stage`, for a pipeline; None compiles a scan for one device alone.
    """

    def value(params: Any, x: jax.Array) -> jax.Array:
        if mesh is None:
            return jnp.sum(jnp.square(stack.apply(params, x)[0]))
        return jnp.sum(jnp.square(sj.pipeline.apply(stack, params, x, on=mesh, microbatches=MICROBATCHES)[0]))

    params, x = jax.eval_shape(stack.init, jax.random.key(0)), jax.ShapeDtypeStruct((*shape, stack.d_model), "float32")
    if mesh is None:
        return jax.jit(jax.grad(value)).lower(params, x).compile()
    where = sj.shard.parameters(stack, mesh, sj.pipeline.RULES)
    places = {"in_shardings": (where, sj.shard.batch(mesh, sj.pipeline.RULES)), "out_shardings": where}
    return jax.jit(jax.grad(value), **places).lower(params, x).compile()


def cost(program: Any) -> Cost:
    """The counts of a compiled program."""
    memory = program.memory_analysis()
    return Cost(
        flops=program.cost_analysis()["flops"],
        temporary=memory.temp_size_in_bytes,
        arguments=memory.argument_size_in_bytes,
        **collectives.exchanged(program.as_text()),
    )


def models(options: Options) -> dict[str, Any]:
    """The models that are counted, by kind."""
    sizes: Any = {name: getattr(options, name) for name in ("vocab", "d_model", "depth", "n_heads")}
    experts = sj.MixtureOfExperts(n_experts=DEVICES, top_k=2, d_hidden=options.d_model, dispatch="dense")
    return {
        "decoder": sj.decoder(**sizes),
        "encoder": sj.encoder(**sizes),
        "encoder-decoder": sj.encoder_decoder(**sizes),
        "experts": sj.decoder(**sizes, feed_forward=experts),
    }


def prepare(options: Options) -> Options:
    """The options, once there are eight devices and the sizes fit.

    Raises:
        ValueError: sizes that do not fit, or fewer devices.
    """
    with contextlib.suppress(RuntimeError):  # devices are counted once, when the first is used
        jax.config.update("jax_num_cpu_devices", DEVICES)
    if jax.device_count() < DEVICES:
        raise ValueError(f"{DEVICES} devices are needed; there are {jax.device_count()}")
    models(options)
    for name in ("batch", "context", "d_model", "depth", "n_heads", "vocab"):
        if (size := getattr(options, name)) % DEVICES:
            raise ValueError(f"--{name.replace('_', '-')} must divide by {DEVICES}, the devices; got {size}")
    return options


def measured(options: Options) -> list[dict[str, Any]]:
    """A row for each model on each mesh: its counts, and their ratio to an eighth of those of one device alone."""
    rows, shape = [], (options.batch, options.context)
    for kind, model in models(options).items():
        alone = cost(compiled(model, shape, None))
        ways = [(name, sizes, True) for name, sizes in MESHES.items() if kind == "decoder" or name in OTHERS]
        ways = [way for way in ways if kind != "experts" or sequence.AXIS not in way[1]]
        ways += [(name, MESHES[way], False) for name, way in CONTROLS.items() if kind == "decoder"]
        for name, sizes, pinned in ways:
            each = cost(compiled(model, shape, sj.shard.mesh(**sizes), pinned=pinned))
            rows.append(_row(kind, name, sizes, each, alone, bubble=0.0))
    stack = models(options)["decoder"].stack
    alone = cost(compiled_layers(stack, shape, None))
    for name, sizes in PIPELINES.items():
        counted = cost(compiled_layers(stack, shape, sj.shard.mesh(**sizes)))
        n_stages = sizes["stage"]
        ticks = MICROBATCHES + n_stages - 1
        each = replace(counted, flops=counted.flops * ticks / n_stages)
        rows.append(_row("decoder's layers", name, sizes, each, alone, bubble=(n_stages - 1) / ticks))
    return rows


def _row(model: str, way: str, sizes: Mapping[str, int], each: Cost, alone: Cost, *, bubble: float) -> dict[str, Any]:
    """The counts of one device, and their ratio to an eighth of those of one device alone."""
    ratios = {key: DEVICES * asdict(each)[key] / asdict(alone)[key] for key in ("flops", "temporary", "arguments")}
    print(f"{model}, {way}: FLOPs {ratios['flops']:.2f}, temporaries {ratios['temporary']:.2f}", flush=True)
    return {
        **{"model": model, "way": way, "mesh": dict(sizes), **asdict(each)},
        **{f"{key}_ratio": ratio for key, ratio in ratios.items()},
        "bubble": bubble,
    }


def predictions(rows: Sequence[dict[str, Any]]) -> tuple[Prediction, ...]:
    """The predictions of the largest and, for the controls, of their ratios."""
    counted = [row for row in rows if row["way"] not in CONTROLS and not row["bubble"]]
    piped = [(1 - row["bubble"]) * row[name] for row in rows if row["bubble"] for name in PIPED]
    unpinned, replicated = (next(row for row in rows if row["way"] == name) for name in CONTROLS)

    return (
        Prediction(
            claim="on every mesh a device computes an eighth of the FLOPs of one alone (the largest ratio)",
            found=Estimate.exact(max(row["flops_ratio"] for row in counted)),
            relation="below",
            threshold=MOST,
        ),
        Prediction(
            claim="on every mesh it keeps an eighth of the temporaries of one alone (the largest ratio)",
            found=Estimate.exact(max(row["temporary_ratio"] for row in counted)),
            relation="below",
            threshold=MOST,
        ),
        Prediction(
            claim="in a pipeline it computes and keeps an eighth, and the bubble that theory says (the largest ratio)",
            found=Estimate.exact(max(piped)),
            relation="below",
            threshold=MOST,
        ),
        Prediction(
            claim="control: fully sharded, with the stream not pinned, it computes more than its share",
            found=Estimate.exact(unpinned["flops_ratio"]),
            relation="above",
            threshold=MOST,
        ),
        Prediction(
            claim="control: with tensors split, the stream not pinned, it keeps more than its share",
            found=Estimate.exact(replicated["temporary_ratio"]),
            relation="above",
            threshold=MOST,
        ),
    )


def run(options: Options, command: str) -> Path:
    """Count everything and write the finding; returns its page."""
    rows = measured(options)
    lines = [
        {
            "model": row["model"],
            "way": row["way"],
            "mesh": " ".join(f"{axis}={size}" for axis, size in row["mesh"].items()),
            "bubble": f"{row['bubble']:.0%}" if row["bubble"] else "",
            "MFLOPs": f"{row['flops'] / 1e6:,.1f}",
            "× an eighth": f"{row['flops_ratio']:.2f}",
            "temporaries MiB": f"{row['temporary'] / 2**20:,.2f}",
            "× an eighth ": f"{row['temporary_ratio']:.2f}",
            "arguments MiB": f"{row['arguments'] / 2**20:,.2f}",
            "× an eighth  ": f"{row['arguments_ratio']:.2f}",
            "gathered MiB": f"{row['gathered'] / 2**20:,.1f}",
            "reduced MiB": f"{row['reduced'] / 2**20:,.1f}",
        }
        for row in rows
    ]
    text = (
        f"A step of training (forward, backward, AdamW) of models with L = {options.depth}, D = {options.d_model}, "
        f"H = {options.n_heads}, T = {options.context}, B = {options.batch}, V = {options.vocab}, for one of {DEVICES} "
        "devices. An eighth is that of what one device alone does. FLOPs and temporaries are XLA's own counts, the "
        "body of the scan over layers once in every row; arguments are parameters, moments and batch. Replicas keep "
        "all parameters. The stream is split by batches (replica, data) and by tokens (sequence); where heads and "
        "hidden features are split (model), so is the stream between the sublayers. A mixture of experts gathers the "
        "tokens of a sequence and is not counted where they are split."
        "\n\nGathered and reduced are the results of the collectives of a whole step, all layers counted: all-gather, "
        "all-to-all and collective-permute; and all-reduce. With tensors split and no pins (the control), "
        "outputs of sublayers are all-reduced. With the stream pinned they are reduced and cut into pieces, and these "
        "gathered for the next sublayer, in the backward pass once more. For a CPU XLA compiles the first as an "
        "all-reduce and a slice. Where it makes one reduce-scatter of the two, the traffic of which is half of an "
        "all-reduce's, both together exchange what the control does."
        f"\n\nOf a pipeline only the layers are counted, forward and backward, without embedding and optimiser. With S "
        f"stages and M = {MICROBATCHES} microbatches, S - 1 of M + S - 1 ticks are bubble, and an eighth becomes an "
        "eighth / (1 - bubble): "
        + ", ".join(f"{1 / (1 - row['bubble']):.2f} with S = {row['mesh']['stage']}" for row in rows if row["bubble"])
        + ". XLA counts one tick, and in it one layer; the table has that × (M + S - 1) / S, the share of one layer. "
        "Arguments hold the stream, which stages do not split."
    )
    cases = [f"{row['model']}: {row['way']}" for row in rows]
    measures = {"FLOPs": "flops_ratio", "temporaries": "temporary_ratio"}
    bars = [
        {"case": case, "measure": name, "ratio": row[ratio]}
        for case, row in zip(cases, rows, strict=True)
        for name, ratio in measures.items()
    ]
    chart = (
        altair.Chart(altair.Data(values=bars))
        .mark_bar()
        .encode(
            x=altair.X("ratio:Q", title="times an eighth of one device alone"),
            y=altair.Y("case:N", sort=cases, title=None, axis=altair.Axis(labelLimit=320)),
            column=altair.Column("measure:N", title=None, sort=list(measures)),
        )
        .properties(width=220)
    )
    return finding.write(
        options.out,
        question="Does each of eight devices do an eighth of the work?",
        setting=plain(options),
        predictions=predictions(rows),
        rows=rows,
        figures={"scale": chart},
        text=f"{finding.QUICK * options.quick}{text}\n\n{finding.table(lines)}",
        provenance=environment.provenance(command),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    program = "experiments.scale"
    return command_line.main(program, usual=USUAL, quick=QUICK, prepare=prepare, run=run, arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
