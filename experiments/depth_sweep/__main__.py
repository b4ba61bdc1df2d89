"""The main job: train every recipe at every depth and learning rate, and report which of them can be stacked.

    python -m experiments.depth_sweep
    python -m experiments.depth_sweep --task hops --context 17 --batch 64 --depths 0 1 2 3 --steps 3000
    python -m experiments.depth_sweep --depths 4 16 64 --recipes pre_norm my.module:recipe --seeds 3 --out runs/mine

Killed at any moment, the same command goes on. A larger grid in the same folder runs only what is new.
"""

import dataclasses
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import tyro
from rich.console import Console

from ..lab import command_line, compile_cache, extend, progress, tracker
from ..lab.command_line import FAILED, INTERRUPTED, OK, UNDONE, asked_to_stop
from ..lab.corpus import Corpus
from ..lab.data.found import printable
from ..lab.device_pool import best_at_once
from ..lab.grid import Grid, Setting
from ..lab.options import Text, one_or_more
from ..lab.results import Results
from ..lab.store import Folder, save_record
from ..lab.sweep import Interrupted, RunJobs, Sweep, run, run_jobs, undone
from . import hops, on_ray, on_slurm, report


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train every recipe at every depth and learning rate, and report which of them can be stacked.

    Exit status: 0 all cells ended (divergence is a result), 1 some failed, 2 bad usage, 3 cells are left undone by this
    worker, because others that live hold them, 130 interrupted.
    """

    grid: tyro.conf.OmitArgPrefixes[Grid] = Grid()
    setting: tyro.conf.OmitArgPrefixes[Setting] = Setting()
    text: tyro.conf.OmitArgPrefixes[Text] = Text()
    out: str = "runs/depth_sweep"
    """Folder of the run; a new one, or that of a sweep with the same setting and data."""
    lanes: Literal["vmap", "loop"] | None = None
    """Learning rates and seeds all at once; or one after another, with the temporary memory of one and by one program
    whatever their number. None: as in the folder so far; in a new one, one after another where this machine has only a
    CPU (and without --mesh), elsewhere all at once."""
    extend_rates: bool = True
    """Try the next learning rate on the side where a recipe's and depth's best is an end of those tried (up to three);
    then once halfway to its neighbours. Where all end within 0.01 nats of each other, or diverge, lower ones are tried
    first. A single --learning-rates is left alone."""
    hops: bool = True
    """Beside text, run a second sweep, in the folder hops of --out, that shows what stacking is for: pre-norm stacks of
    zero, one and two layers learn to follow a pointer three times. Its sizes, steps and learning rates are its own; the
    number of seeds and --mesh are those of the first. Other tasks than text have none."""
    dry_run: bool = False
    """Print what is read and what is left out, the grid, what it costs and what is done already; write nothing."""
    report_only: bool = False
    """Make results.csv, the finding and the report again from the cells that are there."""
    retry_failed: bool = False
    """Run failed cells again."""
    log: tracker.Name | None = None
    """Experiment tracker in which each cell that trains is a run: TensorBoard (pip install tensorboardX), with files in
    the folder tensorboard of --out; W&B (pip install wandb), also with WANDB_MODE=offline; or Trackio (pip install
    trackio). The last two have a project stackjax. Cells that have ended before are not logged."""
    keep_params: bool = False
    """Keep each cell's trained parameters, as params.npz."""
    checkpoint_seconds: float = 15.0
    """Least time between two checkpoints."""
    compile_cache: bool = True
    """Keep compiled programs in the user's cache folder."""
    devices: int = 1
    """Devices of this machine on which groups (a recipe at a depth) run at the same time; the numbers are those of one
    device, whatever the count."""
    at_once: int | None = None
    """Groups that run at the same time on each device, in as many times the memory; the numbers are those of one after
    another. None: one, but on a CPU alone one for each core, at most four."""
    scheduler: Literal["local", "ray", "slurm"] = "local"
    """Place where groups run: this process (several may share one folder), as tasks of a Ray cluster, that of
    RAY_ADDRESS or one begun here, or as an array job of Slurm."""
    slurm: tuple[str, ...] = ()
    """Options of sbatch, such as partition=main time=120 gres=gpu:1."""

    def __post_init__(self):
        one_or_more(self, "devices", *(() if self.at_once is None else ("at_once",)))
        several = {
            "--devices": self.devices > 1,
            "--at-once": (self.at_once or 1) > 1,
            "--mesh": self.setting.mesh is not None,
        }
        if self.scheduler != "local" and any(several.values()):
            raise ValueError(
                f"{' and '.join(name for name, given in several.items() if given)} takes devices of this machine, and "
                f"--scheduler {self.scheduler} gives each group a device of its own; leave one of them out"
            )
        if not 0 <= self.checkpoint_seconds < float("inf"):
            raise ValueError(f"--checkpoint-seconds must be 0 or more; got {self.checkpoint_seconds:g}")
        if wrong := [option for option in self.slurm if not re.fullmatch(r"[a-z][a-z-]*=.+", option)]:
            raise ValueError(f"--slurm takes options as name=value, such as partition=main; got {wrong[0]!r}")

    @property
    def groups_at_once(self) -> int:
        """Groups at the same time on each device."""
        if self.at_once is not None:
            return self.at_once
        return best_at_once() if self.devices == 1 and self.setting.mesh is None else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return command_line.command("experiments.depth_sweep", prepared, work, arguments)


def prepared(words: Sequence[str], line: str) -> tuple[Options, list[Sweep] | Results]:
    """The options, and the sweeps that they describe, checked; or with `--report-only` the results that are there.

    Raises:
        ValueError: what cannot be.
    """
    options = command_line.parse(words, Options, "experiments.depth_sweep")
    if options.scheduler != "local":
        {"ray": on_ray, "slurm": on_slurm}[options.scheduler].check()
    command_line.check_folder(options.out)
    if options.report_only:
        results = Results.of(options.out)
        command_line.make_folder(options.out)
        return options, results
    main, *beside = sweeps = planned(options, line)
    complaints = dict.fromkeys([*main.check(), *(warning for sweep in beside for warning in hops.check(sweep))])
    groups = max(len(sweep.jobs()) for sweep in sweeps)
    if options.devices > groups:
        idle = options.devices - groups
        complaints[f"there are {groups} groups for --devices {options.devices}: {idle} stay idle"] = None
    if not options.dry_run:
        command_line.make_folder(options.out)
    for warning in complaints:
        warnings.warn(warning, stacklevel=1)
    return options, sweeps


def work(made: tuple[Options, list[Sweep] | Results]) -> int:
    """Do what the options ask for; returns the exit status."""
    options, subject = made
    if isinstance(subject, Results):
        return _report(subject)
    if options.dry_run:
        print(*map(dry_run, subject), "Nothing was written.", sep="\n\n")
        return OK
    if options.compile_cache:
        compile_cache.enable()
    ways: dict[str, RunJobs] = {
        "local": run_jobs,
        "ray": on_ray.run_jobs,
        "slurm": partial(on_slurm.run_jobs, options=options.slurm),
    }
    return _run(subject, options.retry_failed, ways[options.scheduler])


def planned(options: Options, command: str) -> list[Sweep]:
    """The sweep that the options describe and, beside text, that of three hops."""
    sweep = prepare(options, command)
    return [sweep, hops.beside(sweep)] if options.hops and options.setting.task == "text" else [sweep]


def prepare(options: Options, command: str) -> Sweep:
    """The sweep that the options describe, its data read.

    Raises:
        ValueError: the data cannot be used.
    """
    corpus = options.text.corpus(options.setting.task)
    return Sweep(
        folder=Folder(options.out),
        grid=options.grid,
        setting=options.setting,
        corpus=corpus,
        mode=options.lanes,
        extend_rates=options.extend_rates,
        command=command,
        checkpoint_seconds=options.checkpoint_seconds,
        keep_params=options.keep_params,
        devices=options.devices,
        at_once=options.groups_at_once,
        log=options.log,
    )


def dry_run(sweep: Sweep) -> str:
    """Text that says what would run, and what it costs."""
    setting = sweep.setting
    lines = [
        progress.header(sweep),
        *(map(printable, sweep.corpus.origin.lines()) if isinstance(sweep.corpus, Corpus) else ()),
        "",
        f"{'recipe':<20}{'depth':>6}{'cells':>7}{'done':>6}{'params':>13}{'FLOPs':>10}{'memory':>11}",
    ]
    total, most = 0, 0
    for job in sweep.jobs():
        group = job.group
        done = sum(sweep.folder.summary(name) is not None for name in job.cell_names)
        try:
            model = setting.model(job.recipe, group.depth, sweep.corpus.vocab)
            flops = len(group.cells) * setting.steps * sweep.flops_per_step(job.recipe, group.depth)
        except Exception as error:
            lines.append(f"{group.recipe:<20}{group.depth:>6}  cannot be built: {type(error).__name__}")
            continue
        total += 0 if done == len(group.cells) else flops
        most += sweep.grid.seeds * extend.MOST * flops // len(group.cells)
        memory = sweep.memory_estimate(job)
        lines.append(
            f"{group.recipe:<20}{group.depth:>6}{len(group.cells):>7}{done:>6}{model.n_params:>13,}{flops:>10.1e}"
            f"{memory / 2**20:>7.0f} MiB"
        )
    together = "" if setting.mesh is None else ", of all devices together"
    lines += ["", f"{total:.2e} model FLOPs are left to do. Memory is an estimate, to a factor of two{together}."]
    if (n := sweep.devices * sweep.at_once) > 1:
        lines.append(f"{n} groups run at the same time.")
    steps = extend.ladder(sweep.grid.learning_rates)
    if sweep.extend_rates and len(steps) > 1:
        lines.append(
            f"Learning rates may be added where the best is an end of those tried, or all end alike, from {steps[0]:g} "
            f"to {steps[-1]:g}, and halfway to its neighbours: at most {extend.MOST} for a recipe and depth, "
            f"{most:.2e} FLOPs in all."
        )
    return "\n".join(lines)


def _run(sweeps: Sequence[Sweep], retry_failed: bool, begin: RunJobs) -> int:
    left = []
    for sweep in sweeps:
        if retry_failed:
            _forget_failed(sweep.folder)
        console = Console()
        show = progress.Screen(console) if console.is_terminal else progress.Plain()
        try:
            with asked_to_stop() as stop:
                jobs = run(dataclasses.replace(sweep, stop=stop), show, begin)
        except (Interrupted, KeyboardInterrupt):
            show.close()
            print(f"\nInterrupted. This goes on from there:\n  {sweep.command}")
            return INTERRUPTED
        finally:
            show.close()
        left += [undone(sweep, jobs)] if jobs else []
    status = _report(Results.of(sweeps[0].folder.path))
    for line in left:
        print(line)
    return UNDONE if left else status


def _forget_failed(folder: Folder) -> None:
    for config in folder.configs():
        if (folder.summary(config["cell"]) or {}).get("status") == "failed":
            folder.remove(config["cell"])


def _report(results: Results) -> int:
    parts = [part for part in (results, hops.read(results)) if part is not None]
    for part in parts:
        save_record(part.folder, part.base, part.folder.groups())
        part.save()
    report.write_finding(results)
    path = report.write_report(results)
    headline = "\n".join(f"- {line}" for line in report.headlines(results))
    print(f"\n{headline}\n\nThe report: {path}")
    return FAILED if any(cell["status"] == "failed" for part in parts for cell in part.cells) else OK


if __name__ == "__main__":
    sys.exit(main())
