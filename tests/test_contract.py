"""Contracts of the whole: program size, copies, retracing, imports, documentation."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest

import stackjax as sj
from stackjax.testing import normal

D, T = 16, 5
LAYER = sj.Layer(sublayers=(sj.Attention(n_heads=2, position=sj.position.Rotary()), sj.FeedForward(d_hidden=24)))


def stack(depth):
    return sj.Stack.of(LAYER, depth=depth, d_model=D, recipe=sj.recipe.DeepNorm())


def train_step(stack, remat):
    """Init, forward and backward pass, measures, clipping and the optimiser, all in one."""
    tx = sj.optim.muon(stack, learning_rate=0.1)

    def step(key, x):
        params = stack.init(key)

        def loss(params, taps):
            y, result = stack.apply(params, x, taps=taps, measure=sj.probe.standard, remat=remat)
            return jnp.sum(y**2), result.measure

        gradient, measure = jax.grad(loss, (0, 1), has_aux=True)(params, jnp.zeros(stack.depth + 1))
        clipped, _ = sj.optim.clip_by_layer_norm(stack, 1.0).update(gradient[0], (), params)
        updates, _ = tx.update(clipped, tx.init(params), params)
        return jax.tree.map(jnp.add, params, updates), measure

    return step


def equations(jaxpr):
    """Number of equations, those of inner programs included."""
    inner = [
        sublayer
        for equation in jaxpr.eqns
        for value in equation.params.values()
        for sublayer in jax.tree.leaves(value, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr"))
        if hasattr(sublayer, "eqns") or hasattr(sublayer, "jaxpr")
    ]
    return len(jaxpr.eqns) + sum(equations(getattr(sublayer, "jaxpr", sublayer)) for sublayer in inner)


@pytest.mark.parametrize("remat", ["none", "layer", "nested"])
def test_the_program_does_not_grow_with_depth(remat):
    key, x = jax.random.key(0), normal(2, T, D)
    shallow, deep = (jax.make_jaxpr(train_step(stack(depth), remat))(key, x).jaxpr for depth in (4, 529))
    assert equations(shallow) == equations(deep) > 500


def test_the_compiled_program_does_not_grow_with_depth():
    def lines(depth):
        deep = stack(depth)

        def loss(params, x):
            return jnp.sum(deep.apply(params, x, remat="layer")[0])

        params = jax.eval_shape(deep.init, jax.random.key(0))
        return jax.jit(jax.grad(loss)).lower(params, normal(2, T, D)).compile().as_text().count("\n")

    assert abs(lines(512) / lines(4) - 1) < 0.01


def scans(jaxpr):
    """All scan equations, inner programs included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        for value in equation.params.values():
            for sublayer in jax.tree.leaves(value, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
                if hasattr(sublayer, "eqns") or hasattr(sublayer, "jaxpr"):
                    yield from scans(getattr(sublayer, "jaxpr", sublayer))


def test_no_scan_hands_the_parameters_on():
    """A scan whose body returns its parameters, or a cast of them, makes XLA stack a second copy of all weights."""
    deep = stack(64)
    params = jax.eval_shape(deep.init, jax.random.key(0))
    sizes = {leaf.shape for leaf in jax.tree.leaves(params["segments"]) if leaf.ndim > 2}
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.zeros((2, T, D), dtype)
        run = jax.make_jaxpr(partial(deep.apply, measure=sj.probe.standard))(params, x)
        (scan,) = scans(run.jaxpr)
        outputs = [variable.aval.shape for variable in scan.outvars]
        assert not sizes & set(outputs)
        casts = [
            e for e in run.jaxpr.eqns if e.primitive.name == "convert_element_type" and e.outvars[0].aval.shape in sizes
        ]
        assert not casts


def test_an_equal_model_built_again_does_not_retrace():
    @partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=1)
    def run(model, params, tokens):
        return model.apply(params, tokens)[0]

    def build():
        return sj.decoder(
            vocab=7, d_model=D, depth=2, attention=sj.Attention(n_heads=2, qk_norm=sj.RMSNorm()),
            recipe=sj.recipe.CompleteP(residual=sj.residual.Pre(norm=sj.RMSNorm())),
        )  # fmt: skip

    chex.clear_trace_counter()
    assert build() == build() and hash(build()) == hash(build()) and build() is not build()
    params = build().init(jax.random.key(0))
    for _ in range(2):
        run(build(), params, jnp.zeros((1, T), int))


def test_learning_rate_and_multipliers_are_data():
    """A change of numbers alone does not retrace."""
    deep = stack(2)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, x, alpha, rate):
        coefficients = sj.recipe.base.with_coefficients(deep.coefficients(), alpha=alpha)
        gradient = jax.grad(lambda p: jnp.sum(deep.apply(p, x, coefficients=coefficients)[0]))(params)
        tx = sj.optim.adamw(deep, learning_rate=rate)
        return tx.update(gradient, tx.init(params), params)[0]

    chex.clear_trace_counter()
    params = deep.init(jax.random.key(0))
    for alpha, rate in ((1.0, 0.1), (2.0, 0.01)):
        step(params, normal(2, T, D), jnp.float32(alpha), jnp.float32(rate))


ROOT = pathlib.Path(sj.__file__).parent
COMMAND = {"__main__", "experiments"}
"""Modules that make `stackjax` a command of the laboratory: no part of the library."""

MODULES = {
    name: importlib.import_module(name)
    for _, name, _ in pkgutil.walk_packages([str(ROOT)], "stackjax.")
    if not name.startswith("stackjax.interop") and name.split(".")[1] not in COMMAND
}


def imports(name):
    """Modules that the source of a module imports, wherever in it but for the type checker."""
    path = ROOT.joinpath(*name.split(".")[1:])
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    found = set()
    tree = ast.parse(source)
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floors():
    """{module: (floor, place on it)}, from the map that the package's docstring shows; higher imports lower."""
    (drawing,) = re.findall(r"\n\nModules by floor;.*?:\n\n(.*?)\n\n", sj.__doc__, re.DOTALL)
    rows = [line.split(":")[0].split()[1:] for line in reversed(drawing.splitlines())]
    return {name: (floor, place) for floor, row in enumerate(rows) for place, name in enumerate(row)}


def test_the_map_has_every_module():
    names = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(floors()) == names - {"__init__", *COMMAND}


def test_arrows_point_one_way():
    """leaves <- layer <- stack <- model; a module imports only from floors below, and from modules to its left."""
    level = floors()
    for name in MODULES:
        own = name.split(".")[1]
        for imported in imports(name):
            parts = imported.split(".")
            assert parts[0] != "experiments", name
            if parts[0] == "stackjax":
                assert len(parts) > 1, f"{name} imports the package itself"
                assert level[parts[1]] <= level[own], f"{name} imports {imported}"
            if parts[0] == "optax":
                assert own == "optim", f"{name} imports optax"
            if parts[0] in ("torch", "transformers", "equinox", "haiku"):
                assert own == "interop", f"{name} imports {imported}"


def public():
    """Every public function, class and method that stackjax defines."""
    for module_name, module in MODULES.items():
        for name, thing in vars(module).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != module_name:
                continue
            if inspect.isfunction(thing) or inspect.isclass(thing):
                yield f"{module_name}.{name}", thing
            if inspect.isclass(thing):
                for method_name, method in vars(thing).items():
                    function = method.fget if isinstance(method, property) else getattr(method, "__func__", method)
                    if method_name.startswith("_") or getattr(function, "__module__", None) != module_name:
                        continue
                    if inspect.isfunction(function):
                        yield f"{module_name}.{name}.{method_name}", getattr(thing, method_name)


PUBLIC = dict(public())


def test_everything_public_has_a_docstring():
    silent = [name for name, thing in PUBLIC.items() if not inspect.getdoc(thing)]
    assert not silent
    assert all(module.__doc__ for module in MODULES.values())
    assert len(PUBLIC) > 150


def test_documented_arguments_exist():
    """Names under Args are the parameters, in their order; none is left out."""
    wrong = []
    for name, thing in PUBLIC.items():
        own = thing.fget if isinstance(thing, property) else thing
        if "Args:" not in (own.__doc__ or ""):
            continue
        section = re.split(r"\n\s*(?:Returns|Raises|Source)\b", inspect.getdoc(own).split("Args:\n")[1])[0]
        documented = re.findall(r"^    \**(\w+):", section, re.MULTILINE)
        actual = [n for n in inspect.signature(own).parameters if n not in ("self", "cls", "_")]
        if inspect.isclass(own):
            # What a field means may stand with the base class.
            inherited = {n for base in own.__mro__[1:] for n in getattr(base, "__annotations__", {})}
            documented += [n for n in actual if n in inherited and n not in documented]
        if set(documented) != set(actual):
            wrong.append((name, documented, actual))
    assert not wrong


def test_functions_of_many_arguments_document_them():
    """More than four arguments want an Args section, in the function or in what it overrides."""
    silent = []
    for name, thing in PUBLIC.items():
        if inspect.isfunction(thing):
            names = [n for n in inspect.signature(thing).parameters if n != "self"]
            if len(names) > 4 and "Args:" not in (inspect.getdoc(thing) or ""):
                silent.append(name)
    assert not silent


PAPERS = re.compile(r"arXiv:\d{4}\.\d{4,5}|Source: ")


def test_every_recipe_and_position_names_its_source():
    bundles = [
        thing
        for name, thing in PUBLIC.items()
        if inspect.isclass(thing)
        and issubclass(thing, (sj.recipe.Recipe, sj.position.Position))
        and thing not in (sj.recipe.Recipe, sj.position.Position)
    ]
    own_ideas = {"PlainResidual", "WithoutResidual", "Around", "NoPosition", "Both", "Scalar", "LearnedBias"}
    unsourced = []
    for bundle in bundles:
        text = (
            (bundle.__doc__ or "")
            + (inspect.getmodule(bundle).__doc__ or "")
            + inspect.getsource(inspect.getmodule(bundle))
        )
        if bundle.__name__ not in own_ideas and not PAPERS.search(text):
            unsourced.append(bundle.__name__)
    assert not unsourced


def test_every_recipe_and_position_is_in_its_table():
    """Exported by its package, and a row of the table that the package begins with."""
    for package, base in ((sj.recipe, sj.recipe.Recipe), (sj.position, sj.position.Position)):
        kinds = {thing.__name__ for thing in PUBLIC.values() if inspect.isclass(thing) and issubclass(thing, base)}
        assert kinds <= set(package.__all__)
        words = set(re.findall(r"\w+", package.__doc__))
        shortened = {"ManifoldHyperConnections", "AttentionResiduals"}
        assert kinds - words == {base.__name__} | (shortened | {"Around"} if package is sj.recipe else {"LearnedBias"})


def test_files_stay_small():
    long = {path.name: n for path in ROOT.rglob("*.py") if (n := len(path.read_text().splitlines())) > 350}
    assert not long


def test_what_only_some_programs_need_is_imported_where_it_is_named():
    code = (
        "import sys, stackjax as sj\n"
        "assert not [name for name in sj.LATER if f'stackjax.{name}' in sys.modules], 'imported at once'\n"
        "assert 'optax' not in sys.modules and set(sj.LATER) < set(dir(sj)) and set(sj.LATER) < set(sj.__all__)\n"
        "assert all(getattr(sj, name) is sys.modules[f'stackjax.{name}'] for name in sj.LATER)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="module 'stackjax' has no attribute 'nothing'"):
        sj.nothing  # noqa: B018
