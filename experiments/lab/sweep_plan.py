"""A sweep, described and checked: what it compares, where, and which groups that makes."""

import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.recipe import Recipe

from . import cost, environment, extend, names, tracker
from .corpus import Corpus
from .grid import SCHEMA, Grid, Job, Setting, plan
from .lanes import Mode, best_mode
from .made import Made
from .outcome import failure
from .results import Results
from .store import Folder, Json, save_record


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep, checked and ready to run.

    Args:
        folder: where everything is kept.
        grid: what is compared.
        setting: what all cells share.
        corpus: what they read.
        mode: how lanes of new groups are run; None: as in the folder so far, in a new one `lanes.best_mode`.
        extend_rates: whether learning rates are added where the best one is an end of those tried, see `extend`.
        command: the line that started it.
        checkpoint_seconds: time between checkpoints, which are made between chunks.
        keep_params: whether trained parameters are kept.
        devices: how many of this machine's devices run groups at the same time.
        at_once: how many groups run at the same time on each.
        log: the experiment tracker in which each cell under way is a run; None is no tracker.
        stop: asked between chunks whether to stop.
        versions: of what may change a number.
        device: where it is computed.
    """

    folder: Folder
    grid: Grid
    setting: Setting
    corpus: Corpus | Made
    mode: Mode | None = None
    extend_rates: bool = False
    command: str = ""
    checkpoint_seconds: float = 15.0
    keep_params: bool = False
    devices: int = 1
    at_once: int = 1
    log: tracker.Name | None = None
    stop: Callable[[], bool] = lambda: False
    versions: dict[str, str] = field(default_factory=environment.versions)
    device: str = field(default_factory=environment.device)

    @property
    def common(self) -> Json:
        """Facts that every cell's name hashes beside its own options."""
        return {"setting": asdict(self.setting), "data": self.corpus.sha256}

    def check(self) -> list[str]:
        """Refuse what cannot work before anything is written.

        Returns:
            Warnings.

        Raises:
            ValueError: unknown names, sizes that do not fit, too little data, too few devices, devices and a mesh, a
                tracker that is not installed, a folder that holds something else.
        """
        if self.devices > jax.local_device_count():
            raise ValueError(
                f"--devices must be {jax.local_device_count()} or less on this machine; got {self.devices}"
            )
        if (on := self.setting.device_mesh) is not None:
            if self.devices * self.at_once > 1:
                one = f"--devices {self.devices}" if self.devices > 1 else f"--at-once {self.at_once}"
                raise ValueError(
                    f"{one} trains groups side by side, and --mesh one group on several devices; leave one of them out"
                )
            self.setting.check_mesh(on)
        tracker.check(self.log)
        self.corpus.check(batch=self.setting.batch, context=self.setting.context)
        self.setting.check(self.corpus.vocab)
        return [*self._check_models(), *self._check_folder()]

    def _check_models(self) -> list[str]:
        warnings = []
        for name, recipe in self.grid.recipes.items():
            for depth in self.grid.depths:
                try:
                    self.setting.trainer(recipe, depth, self.corpus.vocab)
                except ValueError:
                    raise
                except Exception as error:
                    warnings.append(f"{name} at depth {depth} cannot be built: {failure(error)['message']}")
        return warnings

    def _check_folder(self) -> list[str]:
        path = self.folder.path
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is not a folder; choose another --out")
        before = self.folder.base()
        if before is None:
            if path.exists() and any(not inside.name.startswith(".") for inside in path.iterdir()):
                raise ValueError(f"{path} holds files that are no sweep; choose another --out")
            return []
        setting = {**asdict(self.setting), "data": self.corpus.sha256[:10]}
        theirs = {**before["setting"], "data": before["data"]["sha256"][:10]}
        changed = [name for name in setting if setting[name] != theirs.get(name)]
        if before["schema"] != SCHEMA:
            raise ValueError(f"{path} was written by another version of this program; choose another --out")
        if changed:
            differences = ", ".join(
                f"{name.replace('_', '-')} {theirs.get(name)} (now {setting[name]})" for name in changed
            )
            raise ValueError(f"{path} holds a sweep with {differences}; choose another --out, or its options")
        self.folder.groups()
        for config in self.folder.configs():
            name = config["recipe"]
            self.folder.summary(config["cell"])
            if name in self.grid.recipes and config["description"] != names.describe(self.grid.recipes[name]):
                raise ValueError(f"recipe {name} has changed since {path} was begun; choose another --out")
        now = {**self.versions, "device": self.device}
        then = {**before["versions"], "device": before["device"]}
        moved = [f"{name} {then.get(name)} (now {now[name]})" for name in now if now[name] != then.get(name)]
        return [f"{path} was begun with {', '.join(moved)}; last digits may differ"] if moved else []

    def jobs(self) -> list[Job]:
        """The groups of the grid's cells, those already begun as they were begun; and of the rates that follow."""
        more = extend.cells(self.grid, self._ran()) if self._begun and self.extend_rates else ()
        mode = self.mode or self._recorded_mode() or best_mode(self.setting.device_mesh)
        return plan(self.grid, list(self.folder.groups().values()), mode, self.common, more)

    def _recorded_mode(self) -> Mode | None:
        """The mode of the group last put on record, for all who share a folder must name its cells alike."""
        groups = (self.folder.base() or {}).get("groups", {})
        return [group["mode"] for group in groups.values()][-1] if groups else None

    def at(self, job: Job) -> "Sweep":
        """The part of the sweep at a job's recipe and depth."""
        group = job.group
        grid = dataclasses.replace(self.grid, depths=(group.depth,), recipes={group.recipe: job.recipe})
        return dataclasses.replace(self, grid=grid)

    def _ran(self) -> list[Json]:
        """The folder's cells of the grid's recipes and depths."""
        grid = self.grid
        return Results.of(
            self.folder.path, lambda cell: cell["recipe"] in grid.recipes and cell["depth"] in grid.depths
        ).cells

    @property
    def _begun(self) -> bool:
        return self.folder.base() is not None

    def done(self, job: Job) -> bool:
        """True if all cells of a job have ended."""
        return all(self.folder.summary(name) is not None for name in job.cell_names)

    def configs(self, job: Job) -> list[Json]:
        """The config.json of each cell of a job."""
        shared = {
            "description": names.describe(job.recipe),
            "group": {
                "name": job.name,
                "mode": job.group.mode,
                "cells": [asdict(cell) for cell in job.group.cells],
                "names": list(job.cell_names),
            },
            **self.base(),
        }
        cells = zip(job.cell_names, job.group.cells, strict=True)
        return [{"cell": name, **asdict(cell), **shared} for name, cell in cells]

    def flops_per_step(self, recipe: Recipe, depth: int) -> int:
        """Model FLOPs of one training step of one cell."""
        task = self.setting.learned(recipe, depth, self.corpus.vocab, fused=False)
        first = self.corpus.batch(seed=0, step=0, batch=self.setting.batch, context=self.setting.context)
        return cost.step_flops(task, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), first))

    def memory_estimate(self, job: Job) -> int:
        """About how many bytes a job's group needs while training, see `cost.memory_estimate`."""
        setting, group = self.setting, job.group
        return cost.memory_estimate(
            setting.model(job.recipe, group.depth, self.corpus.vocab),
            n_heads=setting.n_heads,
            lanes=len(group.cells),
            batch=setting.batch,
            context=setting.context,
            remat=setting.remat,
            at_once=group.mode == "vmap",
            item_bytes=jnp.dtype(setting.dtype).itemsize,
        )

    def base(self) -> Json:
        """Facts that all cells share, for the record."""
        return {
            "schema": SCHEMA,
            "setting": asdict(self.setting),
            "data": self.corpus.facts(),
            "versions": self.versions,
            "device": self.device,
        }

    def save(self, jobs: Sequence[Job]) -> None:
        """Write sweep.json: what all cells share, the groups, and every command so far."""
        command = {
            "command": self.command,
            "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": self.versions,
            "device": self.device,
        }
        groups = {job.name: job.group for job in jobs}
        save_record(self.folder, self.folder.base() or self.base(), groups, command)


def vary(sweep: Sweep, **axes: Sequence[Any]) -> list[Sweep]:
    """A sweep for each combination of values of fields of the setting, each in a folder of its own below the sweep's.

    Args:
        sweep: what they have in common.
        **axes: {field of `Setting`: its values}, such as d_model=(32, 64), warmup=(0, 20).

    Raises:
        ValueError: no field of the setting, the task (which belongs to the data), no values, or values that do not fit.
    """
    fields = {field.name for field in dataclasses.fields(sweep.setting)} - {"task"}
    if unknown := set(axes) - fields:
        raise ValueError(f"axes are {', '.join(sorted(fields))}; got {', '.join(sorted(unknown))}")
    if empty := [name for name, values in axes.items() if not values]:
        raise ValueError(f"an axis needs at least one value; {', '.join(empty)} has none")
    varied = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        title = re.sub(r"[^A-Za-z0-9_.,=-]", "-", ",".join(f"{name}={value}" for name, value in chosen.items()))
        setting = dataclasses.replace(sweep.setting, **chosen)
        varied.append(dataclasses.replace(sweep, folder=Folder(sweep.folder.path / title), setting=setting))
    return varied
