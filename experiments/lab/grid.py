"""The grid of a sweep: cells, the lane groups that run them, and the jobs that a worker takes.

A cell is one (recipe, depth, learning rate, seed) under one setting. Cells that share recipe and depth, and are new
at the same time, form a group: the unit of work, of resumption and of naming, because the width of a vmap changes the
last bits of its lanes, where they run at once.
"""

import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import jax
from jax.sharding import Mesh

import stackjax as sj
from stackjax import sequence
from stackjax.recipe import PreNorm, Recipe
from stackjax.tensor_parallel import BATCH_AXES

from . import names
from .lanes import Mode
from .made import TASKS
from .optimizer import optimizer_named
from .options import MeshAxes, Recipes, Sizes, at_least, one_or_more, positive, some
from .task import Filled
from .train import Hyper, NextToken, Task, Trainer

SCHEMA = 2
"""Version of what a cell's numbers depend on, and of the files that hold them."""
MOST_CELLS = 1_000_000
"""Largest number of cells in one grid."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The grid of comparisons: every recipe at every depth, learning rate and seed."""

    depths: tuple[int, ...] = (0, 1, 10)
    """Numbers of layers, 0 or more; zero layers are what the others are compared with."""
    recipes: Recipes = field(default_factory=lambda: names.recipes("pre_norm", "post_norm", "deepnorm"))
    """Names, or dotted paths of your own (my.module:recipe)."""
    learning_rates: tuple[float, ...] = (2e-3, 6e-3, 1.8e-2)
    """Peaks of the schedule; every recipe and depth gets all of them."""
    seeds: int = 1
    """Number of seeds: 3 means 0, 1 and 2. A seed sets the init and the order of the data."""

    def __post_init__(self):
        some(self, "depths", "recipes", "learning_rates")
        at_least(0, self, "depths")
        if not all(0 < rate < float("inf") for rate in self.learning_rates):
            raise ValueError(
                f"--learning-rates must be positive; got {' '.join(f'{r:g}' for r in self.learning_rates)}"
            )
        one_or_more(self, "seeds")
        cells = len(self.depths) * len(self.recipes) * len(self.learning_rates) * self.seeds
        if cells > MOST_CELLS:
            raise ValueError(f"a grid has {MOST_CELLS} cells at most; got {cells}, with --seeds {self.seeds}")

    def cells(self) -> list["Cell"]:
        """All cells, shallow ones first."""
        axes = (sorted(set(self.depths)), self.recipes, dict.fromkeys(self.learning_rates))
        return [
            Cell(recipe=recipe, depth=depth, learning_rate=rate, seed=seed)
            for depth, recipe, rate, seed in itertools.product(*axes, range(self.seeds))
        ]


@dataclass(frozen=True, kw_only=True)
class Setting(Sizes):
    """The setting that all cells share and that, with the data, determines their numbers."""

    context: int = 64
    """Tokens T of a window that are predicted."""
    steps: int = 400
    """Updates in a run, the same for all."""
    task: Literal["text", "hops", "three_hops", "tree", "copy"] = "text"
    """The next token of text; or a task made by rule: chasing pointers for 1, 2, 4 and 8 hops or for three, finding a
    grandparent, copying."""
    position: str | None = None
    """Position encoding: a name or a dotted path; None is what the task needs, rotary for text."""
    optimizer: str = "adamw"
    """Optimiser, with the recipe's own multipliers by role and layer: adamw, muon, or a dotted path (optax:lion)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after warm-up; cosine and linear end at zero."""
    warmup: int | None = None
    """Steps over which the learning rate rises linearly; None is a tenth of all."""
    weight_decay: float = 0.1
    """Weight decay of matrices and embeddings, times the learning rate."""
    clip_norm: float = 1.0
    """Global gradient norm to which larger ones are scaled down."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the stream; parameters stay float32."""
    remat: Literal["none", "layer", "nested", "offload"] = "layer"
    """Rematerialisation in the backward pass; on CPUs "layer" takes up to a fifth more time than "none" for shallow
    stacks, in a fraction of the memory; with "offload" what is dear to compute again waits in the host's memory."""
    eval_every: int = 100
    """Steps between evaluations and looks into the layers; also the steps in a compiled chunk."""
    eval_batches: int = 32
    """Batches of validation windows in an evaluation, the same for all: one half of them chooses the learning rate, the
    other half is reported."""
    metrics: str | None = None
    """Dotted path of a function (task, params, batch) -> {name: number, or array over layers}, recorded beside the
    loss."""
    mesh: MeshAxes = None
    """Axes of a mesh of devices with their sizes, on which a model is trained, such as data=4 model=2: the batch is
    split over replica and data, tokens over sequence, the width of the parameters over data and sequence, heads, hidden
    features, experts and vocabulary over model. None: a sweep trains on one device, train on data=DEVICES."""

    def __post_init__(self):
        super().__post_init__()
        one_or_more(self, "steps", "eval_every")
        at_least(2, self, "eval_batches")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(f"--warmup must be 0 or more and less than --steps {self.steps}; got {self.warmup}")
        optimizer_named(self.optimizer)
        if self.metrics is not None:
            names.metrics_named(self.metrics)
        if self.mesh is not None:
            names.mesh_sizes(self.mesh)
        positive(self, "clip_norm")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"--weight-decay must be 0 or more and finite; got {self.weight_decay:g}")

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up."""
        return self.steps // 10 if self.warmup is None else self.warmup

    @functools.cached_property
    def device_mesh(self) -> Mesh | None:
        """The mesh of devices; None is one device.

        Raises:
            ValueError: more devices than there are.
        """
        return None if self.mesh is None else sj.shard.mesh(**names.mesh_sizes(self.mesh))

    def check_mesh(self, on: Mesh, accumulate: int = 1) -> None:
        """Refuse a mesh with axes that nothing is split over, and sizes that do not divide by its devices.

        Args:
            on: the mesh.
            accumulate: parts of a batch that are computed one after another.

        Raises:
            ValueError: as said.
        """
        sj.shard.check(on, sj.shard.RULES)
        shares = accumulate * math.prod(on.shape.get(axis, 1) for axis in BATCH_AXES)
        if self.batch % shares:
            times = f"--accumulate {accumulate} times " if accumulate > 1 else ""
            raise ValueError(
                f"--batch {self.batch} must divide by {shares}: {times}the devices of {' and '.join(BATCH_AXES)} in "
                f"the mesh {dict(on.shape)}"
            )
        if self.context % (n_shards := on.shape.get(sequence.AXIS, 1)):
            raise ValueError(f"--context {self.context} must divide by {n_shards}, the devices of {sequence.AXIS}")

    def check(self, vocab: int) -> None:
        """Refuse sizes and positions with which no model can be run, whatever its recipe.

        Args:
            vocab: V.

        Raises:
            ValueError: see `model`.
        """
        model = self.model(PreNorm(), 1, vocab)
        if self.task in TASKS:
            return
        tokens = jax.ShapeDtypeStruct((1, self.context), "int32")
        jax.eval_shape(lambda tokens: model.apply(model.init(jax.random.key(0)), tokens)[0], tokens)

    def model(self, recipe: Recipe, depth: int, vocab: int, *, fused: bool = True) -> sj.Model:
        """The model of a cell: a decoder, or an encoder where the task reads in both directions.

        Args:
            recipe: how its branches join the stream, and all that goes with it.
            depth: L.
            vocab: V.
            fused: whether attention may use a fused kernel; False to count its FLOPs.

        Raises:
            ValueError: an unknown position, or sizes that do not fit.
        """
        made, position = TASKS.get(self.task), self.position
        if made is None or position is not None:
            encoding = names.position_named("rotary" if position is None else position, self.context)
        else:
            encoding = made.position(self.context)
        return sj.decoder(
            vocab=vocab,
            d_model=self.d_model,
            depth=depth,
            n_heads=self.n_heads,
            recipe=recipe,
            position=encoding,
            attention=None if fused else sj.Attention(n_heads=self.n_heads, backend="plain"),
            side="decoder" if made is None else made.side,
        )

    def learned(self, recipe: Recipe, depth: int, vocab: int, *, fused: bool = True) -> Task:
        """The task that a cell learns; the arguments are those of `model`."""
        kind = NextToken if self.task == "text" else Filled
        return kind(model=self.model(recipe, depth, vocab, fused=fused), dtype=self.dtype)

    def trainer(self, recipe: Recipe, depth: int, vocab: int) -> Trainer:
        """The trainer of a cell."""
        task = self.learned(recipe, depth, vocab)
        return Trainer(
            task=task, optimizer=self.optimizer, schedule=self.schedule, remat=self.remat, metrics=self.metrics
        )

    def hyper(self, *, learning_rate: float, seed: int) -> Hyper:
        """The numbers of one run."""
        return Hyper(
            learning_rate=learning_rate,
            seed=seed,
            steps=self.steps,
            warmup=self.warmup_steps,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
        )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run.

    Args:
        recipe: its name.
        depth: L.
        learning_rate: at its peak.
        seed: of init and data.
    """

    recipe: str
    depth: int
    learning_rate: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cells that one program runs together.

    Args:
        cells: in the order of their lanes, alike in recipe and depth.
        mode: how the lanes are run.
    """

    cells: tuple[Cell, ...]
    mode: Mode

    @property
    def recipe(self) -> str:
        """Name of the recipe."""
        return self.cells[0].recipe

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return self.cells[0].depth


@dataclass(frozen=True, kw_only=True)
class Job:
    """A group with its recipe, and the names that stand for it and for its cells in a folder.

    Args:
        group: what is run together.
        recipe: that all its cells train.
        name: of the group.
        cell_names: of its cells.
    """

    group: Group
    recipe: Recipe
    name: str
    cell_names: tuple[str, ...]

    @classmethod
    def of(cls, group: Group, recipe: Recipe, common: Mapping[str, Any]) -> "Job":
        """Names are readable, and end in a hash of all that determines the numbers.

        Args:
            group: what is run together.
            recipe: that all its cells train.
            common: the setting, the data's hash and whatever else all cells share.
        """
        everything = {
            "schema": SCHEMA,
            "recipe": names.describe(recipe),
            "lanes": [asdict(cell) for cell in group.cells],
            "mode": group.mode,
            **common,
        }
        kind = f"{re.sub(r'[^A-Za-z0-9_.-]', '-', group.recipe)}-L{group.depth}"
        cell_names = tuple(
            f"{kind}-lr{cell.learning_rate:g}-s{cell.seed}-{digest({**everything, 'lane': i})}"
            for i, cell in enumerate(group.cells)
        )
        return cls(group=group, recipe=recipe, name=f"{kind}-{digest(everything)}", cell_names=cell_names)

    @property
    def title(self) -> str:
        """Recipe and depth, for people."""
        return f"{self.group.recipe} L={self.group.depth}"


def digest(value: Any) -> str:
    """Ten hexadecimal digits of a hash of plain JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def plan(
    grid: Grid, known: Sequence[Group], mode: Mode, common: Mapping[str, Any], more: Iterable[Cell] = ()
) -> list[Job]:
    """The jobs that hold a grid's cells: groups already begun, and new ones for the cells that are in none.

    Args:
        grid: whose cells are wanted; they run in its order.
        known: groups begun earlier.
        mode: of the new groups.
        common: see `Job.of`.
        more: cells of the grid's recipes and depths that are wanted beside its own.
    """
    begun = {cell: group for group in known for cell in group.cells}
    new: dict[tuple[str, int], list[Cell]] = {}
    order: dict[Any, None] = {}
    for cell in (*grid.cells(), *more):
        if cell in begun:
            order[begun[cell]] = None
        else:
            new.setdefault((cell.recipe, cell.depth), []).append(cell)
            order[cell.recipe, cell.depth] = None
    groups = [item if isinstance(item, Group) else Group(cells=tuple(new[item]), mode=mode) for item in order]
    return [Job.of(group, grid.recipes[group.recipe], common) for group in groups]
