"""Parameters, declared once.

A sublayer or a residual form describes its parameters as a nested dict whose leaves are `Spec(shape, role, init)`.
Everything that is ever done to parameters as a class (init, init gains, optimiser multipliers, weight-decay masks,
partition specs, counts, conversion) is one `jax.tree.map` over that declaration.

Matrices are stored (in, out) and applied as `x @ w`: the last two axes of a matrix are its fans, any axes before
them (experts, layers) are stacks of matrices.
"""

import difflib
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stackjax.check import floating, prng_key
from stackjax.sequence import shards
from stackjax.tensor_parallel import between

Init = Callable[[jax.Array, tuple[int, ...], jax.Array], jax.Array]
"""`init(key, shape, layer) -> array`; `layer` is the traced index of the layer that the parameter belongs to."""

Gain = float | jax.Array
"""A factor on an init: one number, or one for each layer, shape (L,)."""

_SELF = frozenset({"query", "key", "value", "out", "up", "gate", "down"})
MATRICES = _SELF | {f"cross_{role}" for role in ("query", "key", "value", "out")}
"""Roles of the hidden matrices inside a sublayer, those that width and depth rules speak of."""

ROLES = MATRICES | {
    *("embed", "unembed", "position", "final_norm", "head_bias", "embed_scale"),
    *("bias", "norm", "residual", "mix", "relative", "relative_bias", "router", "adapter", "statistic"),
}
"""All roles; what each is for stands with `Spec`."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One parameter, without its layer axis.

    Args:
        shape: of one layer's copy.
        role: what the parameter is for. Hidden matrices: query, key, value, out (attention; cross_query .. cross_out
            in cross-attention), up, gate, down (feed-forward). The ends of the model: embed, unembed, position,
            final_norm, head_bias, embed_scale (a factor on the whole stream). The rest of a layer: bias, norm, residual
            (what a residual form learns), mix (matrices with which a residual form computes its weights from the
            stream, or joins two streams), relative (vectors and matrices of positions inside attention), relative_bias
            (tables of logits), router, adapter (a low-rank factor beside a matrix), and statistic (not trained by the
            gradient; see `Aux.state`).
        init: initialiser; None uses the recipe's default for weight matrices.

    Raises:
        ValueError: a role that nothing here knows, so that no recipe, optimiser or mesh could treat it right.
    """

    shape: tuple[int, ...]
    role: str
    init: Init | None = None

    def __post_init__(self):
        if self.role not in ROLES:
            near = difflib.get_close_matches(str(self.role), ROLES, 1)
            advice = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"role must be one of {', '.join(sorted(ROLES))}; got {self.role!r}{advice}")

    @property
    def is_matrix(self) -> bool:
        """True for a hidden matrix (or a stack of them)."""
        return self.role in MATRICES


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A `Spec` in its place in a model.

    Args:
        spec: the declaration.
        name: path below the layer (or below the model's end), e.g. `attention/query`. With the layer's index it
            determines the parameter's PRNG key.
        layers: indices of the layers it belongs to; empty outside the layers.
        stacked: whether the stored array has a leading axis over `layers`; a looped layer's has not.
    """

    spec: Spec
    name: str
    layers: tuple[int, ...] = ()
    stacked: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stored array, layer axis included."""
        return (len(self.layers), *self.spec.shape) if self.stacked else self.spec.shape

    def spread(self, value: Any) -> jax.Array:
        """Broadcast a number per role, () or (L,), against the stored array.

        Raises:
            ValueError: more axes than one, or too few numbers for the layers.
        """
        value = jnp.asarray(value, jnp.float32)
        if value.ndim == 0:
            return value
        least = max(self.layers, default=-1) + 1
        if value.ndim > 1 or len(value) < least:
            raise ValueError(
                f"{self.name} needs one number, or one for each layer of the stack, of which there are {least} or "
                f"more; got the shape {value.shape}"
            )
        if not self.stacked:
            return value[self.layers[0] if self.layers else 0]
        return value[jnp.asarray(self.layers, jnp.int32)].reshape(-1, *(1,) * len(self.spec.shape))


def per_layer(what: str, number: Any, depth: int) -> None:
    """Refuse what is neither one number nor one for each layer.

    Args:
        what: the message calls it.
        number: (), or (L,)
        depth: L.

    Raises:
        ValueError: another shape.
    """
    if np.shape(number) not in ((), (depth,)):
        raise ValueError(
            f"{what} has the shape {np.shape(number)}; it must be one number, (), or one for each layer of the stack, "
            f"({depth},)"
        )


def declare(specs: Any, *, prefix: str = "", layers: tuple[int, ...] = (), stacked: bool = False) -> Any:
    """Put a tree of `Spec` in its place: a tree of `Declared` with the same structure."""
    return jax.tree_util.tree_map_with_path(
        lambda path, spec: Declared(spec=spec, name=prefix + path_name(path), layers=layers, stacked=stacked),
        specs,
        is_leaf=is_spec,
    )


def share(shared: dict[str, Any], more: dict[str, Any]) -> None:
    """Add to the declarations that a stack's sublayers share; one name means one set of parameters.

    Raises:
        ValueError: one name, declared differently.
    """
    for name, specs in more.items():
        if shared.setdefault(name, specs) != specs:
            raise ValueError(
                f"two sublayers share parameters {name!r} and declare them differently; rename one of them"
            )


def zeros(key: jax.Array, shape: tuple[int, ...], layer: jax.Array) -> jax.Array:
    """An initialiser: all zeros."""
    return jnp.zeros(shape, jnp.float32)


def ones(key: jax.Array, shape: tuple[int, ...], layer: jax.Array) -> jax.Array:
    """An initialiser: all ones."""
    return jnp.ones(shape, jnp.float32)


@dataclass(frozen=True)
class Constant:
    """Every entry equal to `value`."""

    value: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], layer: jax.Array) -> jax.Array:
        return jnp.full(shape, self.value, jnp.float32)


@dataclass(frozen=True)
class Normal:
    """Gaussian entries of standard deviation `std`, whatever the shape (GPT-2 uses 0.02)."""

    std: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], layer: jax.Array) -> jax.Array:
        return self.std * jax.random.normal(key, shape, jnp.float32)


@dataclass(frozen=True)
class FanIn:
    """Gaussian entries of variance `scale / fan_in`; 1 is LeCun's, 2 He's for ReLU (arXiv:1502.01852, eq. 10)."""

    scale: float = 1.0

    def __call__(self, key: jax.Array, shape: tuple[int, ...], layer: jax.Array) -> jax.Array:
        return jnp.sqrt(self.scale / shape[-2]) * jax.random.normal(key, shape, jnp.float32)


def xavier(key: jax.Array, shape: tuple[int, ...], layer: jax.Array) -> jax.Array:
    """Gaussian entries of variance 2 / (fan_in + fan_out).

    Source: Glorot & Bengio 2010, eq. (16), as a normal distribution.
    """
    return jnp.sqrt(2 / (shape[-2] + shape[-1])) * jax.random.normal(key, shape, jnp.float32)


def is_spec(leaf: Any) -> bool:
    """Leaf predicate for trees of `Spec` or `Declared`."""
    return isinstance(leaf, (Spec, Declared))


def path_name(path: tuple) -> str:
    """A tree path as text, e.g. `segments/0/0/attention/query`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def restrict(tree: Any, part: Any) -> Any:
    """The leaves of `tree` at the places where `part` has a leaf, in the structure of `part`.

    A part of the parameters is what optimisers see of them when others are frozen: subtrees may be missing, None, or
    masked by empty nodes.

    Args:
        tree: like the parameters of a whole description: a declaration, factors, labels.
        part: parameters, gradients or updates, or a part of them.

    Raises:
        ValueError: `part` has a leaf where `tree` has none, or of another shape than is declared.
    """
    leaves = dict(jax.tree_util.tree_leaves_with_path(tree))

    def at(path: tuple, leaf: Any) -> Any:
        if path not in leaves:
            raise ValueError(
                f"there is no parameter {path_name(path)!r}; give parameters, gradients or updates of this very "
                "description, or a part of them in the same nesting"
            )
        if isinstance(leaves[path], Declared) and leaves[path].shape != jnp.shape(leaf):
            raise ValueError(
                f"parameter {path_name(path)!r} has the shape {jnp.shape(leaf)}, and {leaves[path].shape} is declared: "
                "it belongs to another description. After surgery make the optimiser of the new one"
            )
        return leaves[path]

    return jax.tree_util.tree_map_with_path(at, part)


def realise(
    key: jax.Array,
    declaration: Any,
    *,
    default_init: Init = xavier,
    gain: Callable[[str], Gain] = lambda role: 1.0,
    dtype: Any = jnp.float32,
) -> Any:
    """Draw the parameters that a tree of `Declared` describes.

    The key of a parameter depends on its name below the layer and on its layer's index alone, so the layers of a
    shallow stack are, bit for bit, the first layers of a deep one (up to gains that depend on the depth).

    Args:
        key: PRNG key.
        declaration: tree of `Declared`.
        default_init: init of every `Spec` that names none.
        gain: factor on the init by role; () or (L,), where L is the depth of the whole stack.
        dtype: of the result.

    Returns:
        The same tree with arrays; leaves with a layer axis carry it first.

    Raises:
        ValueError: no PRNG key; a dtype that is not of floating point.
    """
    prng_key(key)
    floating("parameters", dtype)

    def draw(declared: Declared) -> jax.Array:
        spec = declared.spec
        init = spec.init or default_init
        leaf_key = jax.random.fold_in(key, zlib.crc32(declared.name.encode()))

        def one(layer: Any) -> jax.Array:
            return init(jax.random.fold_in(leaf_key, layer), spec.shape, jnp.asarray(layer, jnp.int32))

        if declared.stacked:
            value = jax.vmap(one)(jnp.asarray(declared.layers, jnp.int32))
        else:
            value = one(declared.layers[0] if declared.layers else 0)
        factor = gain(spec.role)
        scaled = value if isinstance(factor, float) and factor == 1 else value * declared.spread(factor)
        return scaled.astype(dtype)

    return jax.tree.map(draw, declaration, is_leaf=is_spec)


def count(declaration: Any) -> int:
    """Number of trained parameters (statistics left out)."""
    leaves = jax.tree.leaves(declaration, is_leaf=is_spec)
    return sum(math.prod(leaf.shape) for leaf in leaves if leaf.spec.role != "statistic")


def matrix(n_in: int, n_out: int, role: str, *, name: str | None = None, bias: bool = False) -> dict[str, Spec]:
    """Declare a matrix and, where asked for, its bias, under the names that `linear` looks for.

    Args:
        n_in: rows.
        n_out: columns.
        role: of the matrix; the bias has the role bias.
        name: of the matrix; None means its role.
        bias: whether there is one.

    Returns:
        {name: spec}, and {name_bias: spec}.
    """
    name = name or role
    declared = {name: Spec(shape=(n_in, n_out), role=role)}
    if bias:
        declared[f"{name}_bias"] = Spec(shape=(n_out,), role="bias", init=zeros)
    return declared


def as_rows(x: jax.Array) -> jax.Array:
    """(..., D) as rows (n, D), whose products are faster on a CPU; as it is where tokens are split over devices."""
    return x if shards(x) > 1 or between(x)[1] else x.reshape(-1, x.shape[-1])


def linear(params: Any, name: str, x: jax.Array) -> jax.Array:
    """x @ w + b, with the parameters cast to the dtype of x where they are used.

    Args:
        params: holds `name` (I, O) and perhaps `name_bias` (O,).
        name: of the matrix.
        x: (..., I)

    Returns:
        (..., O), dtype of x.

    Raises:
        ValueError: x of whole numbers, to which the weights would be rounded.
    """
    floating("x", x.dtype)
    weight = params[name].astype(x.dtype)
    y = (as_rows(x) @ weight).reshape(*x.shape[:-1], weight.shape[-1])
    bias = params.get(f"{name}_bias")
    return y if bias is None else y + bias.astype(x.dtype)
