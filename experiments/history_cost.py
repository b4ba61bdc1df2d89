"""Cost of a buffer of all earlier layers in a scan: memory, compile time and step time, against depth.

    python -m experiments.history_cost --out runs/history_cost

Recipes that read earlier layers carry a `History`, of which stackjax's scan keeps one copy for the backward pass. Here
they are compiled that way (`one copy`), through a plain scan (`scan`, with each rematerialisation) and as a Python loop
(`loop`), beside pre-norm, which has no such buffer. Memory is what XLA reserves for temporaries in the gradient of a
loss, also in units of one (B, T, D) array of activations.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import altair
import jax
import jax.numpy as jnp

import stackjax as sj
from stackjax.history import History
from stackjax.recipe.around import Around, AroundForm

from .lab import command_line, compile_cache, environment, finding
from .lab.names import recipe_named
from .lab.options import Finding, Sizes, at_least, one_or_more, plain, some

Remat = Literal["none", "layer", "nested"]


@dataclass(frozen=True, kw_only=True)
class Options(Finding, Sizes):
    """Measure what history buffers cost.

    Exit status: 0 done; 2 bad usage; 130 interrupted.
    """

    recipes: tuple[str, ...] = ("pre_norm", "dense_former", "attention_residuals", "block_attention_residuals")
    """Recipes that read earlier layers, and pre-norm beside them."""
    depths: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Layers."""
    repeats: int = 5
    """Gradients to time; the median counts."""
    loop_depth: int = 16
    """The deepest stack that is also compiled as a loop, which takes time in proportion to its depth."""

    def __post_init__(self):
        super().__post_init__()
        some(self, "recipes", "depths")
        one_or_more(self, "repeats", "depths")
        at_least(0, self, "loop_depth")
        if unknown := set(self.recipes) - set(RECIPES):
            raise ValueError(f"--recipes knows {', '.join(RECIPES)}; got {min(unknown)}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement."""

    recipe: str
    way: str
    depth: int
    temp_bytes: int
    units: float
    compile_seconds: float
    step_seconds: float


@dataclass(frozen=True, kw_only=True)
class PlainForm(AroundForm):
    """A form whose `History` is hidden from the scan, which then treats it like anything else that it carries."""

    def enter(self, x, **parameters):
        return hide(self.inner.enter(x, **parameters))

    def leave(self, stream, **parameters):
        return self.inner.leave(show(stream), **parameters)

    def view(self, stream):
        return self.inner.view(show(stream))

    def apply(self, params, c, stream, branch, key=None):
        stream, aux = self.inner.apply(params, c, show(stream), branch, key)
        return hide(stream), aux


@dataclass(frozen=True, kw_only=True)
class Plain(Around):
    """Any recipe through a plain scan: the control."""

    def form(self, sublayer, index, layer, geometry):
        return PlainForm(inner=self.base.form(sublayer, index, layer, geometry))

    def outer(self, layer, geometry):
        outer = self.base.outer(layer, geometry)
        return None if outer is None else PlainForm(inner=outer)


def hide(stream: Any) -> Any:
    """The stream with each `History` as a tuple of one array."""
    known = _is(History)
    return jax.tree.map(lambda node: (node.slots,) if known(node) else node, stream, is_leaf=known)


def show(stream: Any) -> Any:
    """The inverse of `hide`."""
    known = _is(tuple)
    return jax.tree.map(lambda node: History(slots=node[0]) if known(node) else node, stream, is_leaf=known)


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda node: isinstance(node, kind)


NAMES = ("pre_norm", "dense_former", "attention_residuals", "block_attention_residuals")
RECIPES = {name: recipe_named(name) for name in NAMES}
USUAL = Options(out="runs/history_cost", context=64, batch=2)
QUICK = replace(USUAL, quick=True, recipes=tuple(RECIPES)[:2], depths=(2,), d_model=16, batch=1, context=8, repeats=1)


def gradient(rule: sj.recipe.Recipe, depth: int, options: Options, *, remat: Remat, loop: bool) -> tuple[Any, Any]:
    """A function of (params, x) that returns the gradient of a loss through a stack, and its arguments."""
    layer = sj.Layer(sublayers=(sj.Attention(n_heads=options.n_heads), sj.FeedForward()))
    stack = sj.Stack.of(layer, depth=depth, d_model=options.d_model, recipe=rule)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(stack.apply(params, x, remat=remat, loop=loop)[0]))

    x = jax.random.normal(jax.random.key(1), (options.batch, options.context, options.d_model))
    return jax.grad(loss), (stack.init(jax.random.key(0)), x)


@compile_cache.off()
def measure(name: str, way: str, rule: sj.recipe.Recipe, depth: int, options: Options, **how: Any) -> Row:
    """Compile, weigh and time one gradient."""
    function, arguments = gradient(rule, depth, options, **how)
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    times = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    memory: Any = compiled.memory_analysis()
    temp = memory.temp_size_in_bytes
    return Row(
        recipe=name,
        way=way,
        depth=depth,
        temp_bytes=temp,
        units=temp / arguments[1].nbytes,
        compile_seconds=compile_seconds,
        step_seconds=sorted(times)[len(times) // 2],
    )


def ways(name: str, depth: int, options: Options) -> dict[str, dict[str, Any]]:
    """Ways to compile a recipe: {label: arguments of `gradient`, and whether the history is hidden}."""
    plain: dict[str, dict[str, Any]] = {
        f"scan, {remat}": {"remat": remat, "loop": False, "hidden": True} for remat in ("none", "layer", "nested")
    }
    runs = plain if name == "pre_norm" else {"one copy": {"remat": "none", "loop": False, "hidden": False}, **plain}
    return {**runs, "loop": {"remat": "none", "loop": True, "hidden": False}} if depth <= options.loop_depth else runs


def chart(rows: list[Row]) -> altair.VConcatChart:
    """Memory, step time and compile time against depth, a column for each recipe."""
    data = altair.Data(values=[asdict(row) for row in rows])
    base = altair.Chart(data, width=190, height=170).mark_line(point=True)
    depth = altair.X("depth:Q", scale=altair.Scale(type="log", base=2), title="layers")
    panels = [
        base.encode(
            x=depth,
            y=altair.Y(f"{field}:Q", scale=altair.Scale(type="log"), title=title),
            color=altair.Color("way:N", title=None),
        ).facet(column=altair.Column("recipe:N", sort=list(RECIPES), title=None))
        for field, title in (
            ("units", "temporaries / (B, T, D)"),
            ("step_seconds", "seconds a gradient"),
            ("compile_seconds", "seconds to compile"),
        )
    ]
    return altair.vconcat(*panels)


def prepare(options: Options) -> Options:
    """The options, once stacks of their sizes can be made.

    Raises:
        ValueError: sizes that do not fit.
    """
    for name in options.recipes:
        jax.eval_shape(lambda rule=RECIPES[name]: gradient(rule, 1, options, remat="none", loop=False)[1])
    return options


def run(options: Options, command: str) -> Path:
    """Measure everything and write the finding; returns its page."""
    rows = []
    for name, depth in itertools.product(options.recipes, options.depths):
        for way, how in ways(name, depth, options).items():
            rule = Plain(base=RECIPES[name]) if how.pop("hidden") else RECIPES[name]
            rows.append(measure(name, way, rule, depth, options, **how))
            print(f"{name}, {depth} layers, {way}: {rows[-1].units:.0f} (B, T, D)", flush=True)
    lines = [
        {
            "recipe": row.recipe,
            "way": row.way,
            "layers": row.depth,
            "temporaries MiB": f"{row.temp_bytes / 2**20:.1f}",
            "in (B, T, D)": f"{row.units:.0f}",
            "compile s": f"{row.compile_seconds:.1f}",
            "gradient s": f"{row.step_seconds:.3f}",
        }
        for row in rows
    ]
    text = (
        f"The gradient of a loss through a stack, with B = {options.batch}, T = {options.context}, "
        f"D = {options.d_model}. dense_former and both kinds of attention_residuals read the outputs of all earlier "
        "layers, or of blocks of them, from a buffer that goes through the scan; pre_norm has no such buffer. Ways: "
        "*one copy* is stackjax's own, which keeps one copy of the buffer for the backward pass; *scan* a plain "
        "`jax.lax.scan`, which keeps the buffer of every layer, with its rematerialisation (none, of each layer, "
        "nested); *loop* a Python loop without rematerialisation, compiled up to "
        f"{options.loop_depth} layers. Temporaries are XLA's own count of temporary memory, in the next column in "
        "units of one (B, T, D) array of activations; seconds are of the wall, those of a gradient the median of "
        f"{options.repeats}."
    )
    return finding.write(
        options.out,
        question="What does a memory of all earlier layers cost in a scan?",
        setting=plain(options),
        predictions=(),
        rows=[asdict(row) for row in rows],
        figures={"history_cost": chart(rows)},
        text=f"{finding.QUICK * options.quick}{text}\n\n{finding.table(lines)}",
        provenance=environment.provenance(command),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    program = "experiments.history_cost"
    return command_line.main(program, usual=USUAL, quick=QUICK, prepare=prepare, run=run, arguments=arguments)


if __name__ == "__main__":
    raise SystemExit(main())
