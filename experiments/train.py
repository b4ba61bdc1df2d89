"""Train one model, from one CPU core to many hosts, and go on bit for bit after any kill.

    python -m experiments.train --depth 12 --d-model 256 --out runs/mine
    python -m experiments.train --data train.bin --dtype bfloat16 --mesh data=4 model=2 --batch 64 --accumulate 4
    srun python -m experiments.train ...        # or mpirun: all processes run the same line
    python -m experiments.train ... --coordinator host0:9999 --processes 2 --process 0        # by hand, on each host

Each device holds its share of the parameters, of their moments and of the batch (`stackjax.shard`). Parameters and
moments are float32, also where the stream is bfloat16. A batch is a pure function of seed and step, so a checkpoint is
parameters, moments and the number of the step; Orbax writes it while training goes on. The same command goes on from
the last one with the same numbers: bit for bit on the same mesh, to rounding on another.

    OUT/run.json         all that determines the numbers, and what they were made with
    OUT/metrics.jsonl    a row for each step: loss, norm of the gradient; where it was evaluated, validation and layers
    OUT/checkpoints/     the last two, by step
    OUT/model/           the model with its trained parameters, for `stackjax.load`
"""

import contextlib
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tyro
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import stackjax as sj

from .lab import claim, command_line, compile_cache, environment, names, store
from .lab.command_line import FAILED, INTERRUPTED, OK
from .lab.corpus import Corpus
from .lab.grid import Setting
from .lab.lanes import behind
from .lab.made import Made
from .lab.options import Text, at_least, one_or_more, positive
from .lab.train import Batch, Hyper, State, Steps, Trainer

PROGRAM = "experiments.train"
LAUNCHED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
"""Variables in which srun and mpirun say how many processes they have started."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train one model, from one CPU core to many hosts, and go on bit for bit after any kill.

    Exit status: 0 done; 1 the loss is no longer finite; 2 bad usage; 3 another job trains into this folder; 130 asked
    to stop, after a last checkpoint.
    """

    setting: tyro.conf.OmitArgPrefixes[Setting] = Setting()
    text: tyro.conf.OmitArgPrefixes[Text] = Text()
    out: str = "runs/train"
    """Folder of the run; a new one, or that of the same run, which goes on."""
    depth: int = 12
    """Layers L."""
    recipe: str = "pre_norm"
    """Recipe: a name, or a dotted path of your own (my.module:recipe)."""
    learning_rate: float = 3e-3
    """Learning rate at its peak."""
    seed: int = 0
    """Seed of the init, of dropout and of the order of the data."""
    accumulate: int = 1
    """Parts of a batch whose gradients are computed one after another and averaged, in the memory of one."""
    log_every: int = 10
    """Steps between two lines of progress; a request to stop is heard there."""
    save_every: int = 100
    """Steps between two checkpoints."""
    coordinator: str | None = None
    """Address host:port of process 0, where processes are started by hand; srun and mpirun say it themselves."""
    processes: int = 1
    """Processes that are started by hand."""
    process: int = 0
    """Number of this one among them, from 0."""

    def __post_init__(self):
        at_least(0, self, "depth", "seed", "process")
        one_or_more(self, "accumulate", "log_every", "save_every", "processes")
        positive(self, "learning_rate")
        if self.coordinator is not None and not re.fullmatch(r"\S+:\d+", self.coordinator):
            raise ValueError(f"--coordinator must be host:port; got {self.coordinator!r}")
        if self.process >= self.processes or (self.processes > 1) != (self.coordinator is not None):
            raise ValueError(
                "--coordinator, --processes 2 or more and --process below it go together; got --coordinator "
                f"{self.coordinator}, --processes {self.processes}, --process {self.process}"
            )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, checked.

    Args:
        options: of the command line.
        command: that begins it.
        corpus: where the batches come from.
        trainer: the step.
        mesh: of the devices of all processes.
    """

    options: Options
    command: str
    corpus: Corpus | Made
    trainer: Trainer
    mesh: Mesh

    @property
    def hyper(self) -> Hyper:
        """The numbers of the run."""
        return self.options.setting.hyper(learning_rate=self.options.learning_rate, seed=self.options.seed)

    @property
    def determined_by(self) -> dict[str, Any]:
        """All that determines the numbers; the mesh and the accumulation change their rounding."""
        return {
            "setting": dataclasses.asdict(dataclasses.replace(self.options.setting, mesh=None)),
            "recipe": names.describe(self.trainer.task.model.stack.recipe),
            **{name: getattr(self.options, name) for name in ("depth", "learning_rate", "seed")},
            "data": self.corpus.sha256,
        }

    def placed(self, batches: Batch) -> Batch:
        """Batches with a leading axis, of which each process puts its rows on its devices."""
        where = behind(1, sj.shard.batch(self.mesh))
        return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, where, x.__getitem__), batches)

    def batch(self, step: int) -> Batch:
        """The batch of a step, with a leading axis of 1."""
        setting = self.options.setting
        made = self.corpus.batch(seed=self.options.seed, step=step, batch=setting.batch, context=setting.context)
        return self.placed(jax.tree.map(lambda x: x[None], made))


def prepare(words: Sequence[str], line: str) -> Run:
    """The run that the words describe; joins the other processes, and writes nothing.

    Raises:
        ValueError: what cannot be, or a folder that holds another run.
    """
    options = command_line.parse(words, Options, PROGRAM)
    command_line.check_folder(options.out)
    setting, recipe = options.setting, names.recipe_named(options.recipe)
    corpus = options.text.corpus(setting.task)
    corpus.check(batch=setting.batch, context=setting.context)
    if options.coordinator is not None:
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    elif any(int(os.environ.get(name, 1)) > 1 for name in LAUNCHED):
        jax.distributed.initialize()
    setting.check(corpus.vocab)
    trainer = setting.trainer(recipe, options.depth, corpus.vocab)
    sj.serialization.encode(trainer.task.model)
    mesh = setting.device_mesh or sj.shard.mesh(data=jax.device_count())
    setting.check_mesh(mesh, options.accumulate)
    run = Run(
        options=options,
        command=line,
        corpus=corpus,
        trainer=dataclasses.replace(trainer, accumulate=options.accumulate),
        mesh=mesh,
    )
    begun = store.read_sealed(Path(options.out) / "run.json")
    if begun is not None:
        then, now = begun["determined_by"], json.loads(json.dumps(run.determined_by))
        if changed := [name for name in now if then.get(name) != now[name]]:
            raise ValueError(
                f"--out {options.out} holds another run, with another {' and '.join(changed)}: {begun['command']}; "
                "give another folder"
            )
    command_line.make_folder(options.out)
    return run


def work(run: Run) -> int:
    """Train from the last checkpoint, or from the beginning, to the end; returns the exit status."""
    compile_cache.enable()
    out, model = Path(run.options.out).resolve(), run.trainer.task.model
    leader = jax.process_index() == 0
    say: Callable[[str], None] = (lambda line: print(line, flush=True)) if leader else (lambda line: None)
    policy = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
    with (
        held(out, leader, say),
        jax.set_mesh(run.mesh),
        ocp.CheckpointManager(out / "checkpoints", options=policy) as checkpoints,
        command_line.asked_to_stop() as stop,
    ):
        state, step = begun(run, checkpoints)
        say(f"{run.corpus.name}: {run.corpus.size}; {model.n_params:,} parameters on the mesh {dict(run.mesh.shape)}")
        if leader:
            origin = environment.provenance(run.command, seeds=[run.options.seed], packages=["orbax-checkpoint"])
            store.write_sealed(out / "run.json", {**origin, "determined_by": run.determined_by})
            rows = [row for row in store.read_rows(out / "metrics.jsonl") if row["step"] <= step]
            store.write(out / "metrics.jsonl", "".join(map(_line, rows)))
        state, step, status = train(run, state, step, checkpoints, stop, say, leader)
    if status == INTERRUPTED:
        say(f"Stopped after step {step}. This goes on from there:\n  {run.command}")
    if status == OK:
        params = jax.jit(lambda x: x, out_shardings=NamedSharding(run.mesh, PartitionSpec()))(state.params)
        if leader:
            sj.save(out / "model", model, params)
        say(f"The model: {out / 'model'}")
    return status


@contextlib.contextmanager
def held(out: Path, leader: bool, say: Callable[[str], None]) -> Iterator[None]:
    """The folder, for this job alone.

    The claim of a job that was killed is taken over: at once on the same host, on another one after its heartbeat has
    stopped for `claim.STALE` seconds. A job whose claim is taken over while it is suspended does not notice.

    Args:
        out: the folder.
        leader: whether this process answers for all of the job.
        say: tells people.

    Raises:
        Undone: another job, which lives, trains into the folder.
    """
    path, claims = out / "claims" / "job", []

    def settle(path: Path) -> bool:
        if taken := claim.Claim.take(path):
            claims.append(taken)
        return bool(claims)

    left = claim.share([path], path=lambda path: path, settle=settle, note=say) if leader else []
    if np.any(multihost_utils.process_allgather(np.asarray(bool(left)))):
        raise command_line.Undone(f"{claim.holder(path)} trains into {out}; this job has left it alone")
    try:
        yield
    finally:
        for one in claims:
            one.release()


def begun(run: Run, checkpoints: ocp.CheckpointManager) -> tuple[State, int]:
    """The state of the last checkpoint, laid on this mesh, or the first one; and its step."""

    def start(hyper: Hyper, batches: Batch) -> State:
        return run.trainer.start(hyper, jax.tree.map(lambda x: x[0], batches))

    first, step = run.batch(0), checkpoints.latest_step()
    shapes = jax.eval_shape(start, run.hyper, first)
    where = sj.shard.state(run.trainer.task.model, run.mesh, shapes)
    if step is None:
        return jax.jit(start, out_shardings=where)(run.hyper, first), 0
    placed = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, where)
    restored: Any = checkpoints.restore(step, args=ocp.args.StandardRestore(placed))
    return restored, step


def train(
    run: Run,
    state: State,
    step: int,
    checkpoints: ocp.CheckpointManager,
    stop: Callable[[], bool],
    say: Callable[[str], None],
    leader: bool,
) -> tuple[State, int, int]:
    """Every step that is left.

    Args:
        run: what is trained.
        state: where it stands.
        step: after how many steps.
        checkpoints: where states are kept.
        stop: tells if this process was asked to.
        say: tells people.
        leader: whether this process writes the rows.

    Returns:
        The state, its step, and the exit status.
    """
    options, setting, hyper = run.options, run.options.setting, run.hyper
    where, whole = jax.tree.map(lambda x: x.sharding, state), NamedSharding(run.mesh, PartitionSpec())
    advance = jax.jit(run.trainer.advance, out_shardings=(where, whole), donate_argnums=1)
    evaluate = jax.jit(run.trainer.evaluate_all, out_shardings=whole)
    valid = run.placed(run.corpus.valid_batches(setting.eval_batches, batch=setting.batch, context=setting.context))
    seen: list[Steps] = []
    said = time.monotonic()
    while step < setting.steps:
        state, steps = advance(hyper, state, run.batch(step))
        step, seen = step + 1, [*seen, steps]
        last = step == setting.steps
        evaluated, saved = (last or step % every == 0 for every in (setting.eval_every, options.save_every))
        if not (evaluated or saved or step % options.log_every == 0):
            continue
        rows = [_row(step - len(seen) + 1 + i, steps) for i, steps in enumerate(jax.device_get(seen))]
        finite = all(np.isfinite((row["train_loss"], row["gradient_norm"])).all() for row in rows)
        if evaluated and finite:
            losses, layers = jax.device_get(evaluate(state, valid))
            rows[-1] |= {"valid_loss": float(np.mean(losses)), **{name: x.tolist() for name, x in layers.items()}}
        if leader:
            with (Path(options.out) / "metrics.jsonl").open("a") as file:
                file.write("".join(map(_line, rows)))
        seconds, said = (time.monotonic() - said) / len(rows), time.monotonic()
        say(_progress(rows[-1], setting, seconds))
        seen = []
        if not finite:
            say(f"The loss is no longer finite; the last checkpoint is of step {checkpoints.latest_step()}.")
            return state, step, FAILED
        stopping = bool(np.any(multihost_utils.process_allgather(np.asarray(stop()))))
        if saved or stopping:
            checkpoints.save(step, args=ocp.args.StandardSave(state))
        if stopping and not last:
            return state, step, INTERRUPTED
    return state, step, OK


def _row(step: int, steps: Steps) -> dict[str, Any]:
    return {"step": step, "train_loss": float(steps.loss[0]), "gradient_norm": float(steps.gradient_norm[0])}


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _progress(row: dict[str, Any], setting: Setting, seconds: float) -> str:
    valid = f", validation {row['valid_loss']:.3f}" if "valid_loss" in row else ""
    rate, left = setting.batch * setting.context / seconds, seconds * (setting.steps - row["step"]) / 60
    return (
        f"step {row['step']} of {setting.steps}: loss {row['train_loss']:.3f}{valid}, gradient "
        f"{row['gradient_norm']:.2f}, {rate:,.0f} tokens/s, {left:.0f} min left"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status. A process of its own keeps its memory from step to step."""
    if arguments is None:
        sj.memory.keep()
    return command_line.command(PROGRAM, prepare, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
