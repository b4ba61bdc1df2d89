"""Reading a stack: what each layer does to the stream, to the gradient and to itself.

A measure is a pure function of one layer's `Trace`; pass it to `apply(measure=...)` and its results come back with a
leading layer axis. Measures run inside the scan and reduce at once, so nothing of size (L, B, T, D) is ever kept.

Means are over every position of a batch, those that a mask hides included: give sequences without padding.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.abstract_model import AbstractModel, Path, at
from stackjax.layer import Trace
from stackjax.norm import upcast
from stackjax.parameter import Declared, is_spec, path_name
from stackjax.segment import Measure
from stackjax.stack import Stack
from stackjax.sublayer import Params

EPS = 1e-30


def _scaled(x: jax.Array, axis: Any = None) -> tuple[jax.Array, jax.Array]:
    """x divided by its largest entry, and that entry: squares of the streams of exploding controls overflow."""
    x = upcast(x)
    top = jnp.max(jnp.abs(x), axis, keepdims=True, initial=0)
    top = jnp.where(top == 0, 1, top)
    return x / top, top


def _unit(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis, 0 for 0."""
    x, _ = _scaled(x, -1)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1))


def rms(x: jax.Array) -> jax.Array:
    """sqrt(mean x²) over everything, ()."""
    x, top = _scaled(x)
    return top.reshape(()) * jnp.sqrt(jnp.mean(x * x))


def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean over tokens of the cosine between x and y (..., T, D), ().

    1 - cosine(x_l, x_{l+1}) is the Block Influence of Men et al. 2024, eq. (1), arXiv:2403.03853.
    """
    return jnp.mean(jnp.sum(_unit(x) * _unit(y), -1))


def token_similarity(x: jax.Array) -> jax.Array:
    """Mean cosine between different tokens of a sequence, (); 1 is rank collapse.

    Computed in O(T D) from the sum of the unit vectors: (|Σ x̂|² - T) / (T (T - 1)). 1 for a single token.

    Args:
        x: (..., T, D)
    """
    n_tokens = x.shape[-2]
    if n_tokens < 2:
        return jnp.ones((), upcast(x).dtype)
    total = jnp.sum(jnp.square(jnp.sum(_unit(x), -2)), -1)
    return jnp.mean((total - n_tokens) / (n_tokens * (n_tokens - 1)))


def rank_residual(x: jax.Array) -> jax.Array:
    """|X - 1 mean_t X|_F / |X|_F, (): how much of the tokens is not shared by all of them.

    Source: after Dong et al. 2021, section 2, arXiv:2103.03404, with Frobenius norms.
    """
    x, _ = _scaled(x)
    away = x - jnp.mean(x, -2, keepdims=True)
    return jnp.sqrt(jnp.sum(away * away) / (jnp.sum(x * x) + EPS))


def attention_entropy(weights: jax.Array) -> jax.Array:
    """Mean entropy of attention weights (..., T, S) in nats, ().

    Source: Zhai et al. 2023, arXiv:2303.06296 (entropy collapse).
    """
    weights = jnp.where(weights == 0, 1, weights)  # of no entropy either, and with a finite gradient
    return jnp.mean(jnp.sum(jax.scipy.special.entr(weights), -1))


def stream(trace: Trace) -> dict[str, jax.Array]:
    """Measure the stream: stream_rms and token_similarity of x_{l+1}, cosine of x_l and x_{l+1}."""
    return {
        "stream_rms": rms(trace.after),
        "cosine": cosine(trace.before, trace.after),
        "token_similarity": token_similarity(trace.after),
    }


def branches(trace: Trace) -> dict[str, jax.Array]:
    """Measure each branch: branch_rms, and branch_ratio, its size against the stream that it joins."""
    measures = {}
    for name, seen in trace.intermediates.items():
        size = rms(seen["output"])
        measures[f"branch_rms/{name}"] = size
        measures[f"branch_ratio/{name}"] = size / (rms(seen["view"]) + EPS)
    return measures


def attention(trace: Trace) -> dict[str, jax.Array]:
    """Measure attention: attention_entropy in nats, and max_logit, the largest in absolute value, by sublayer.

    A sublayer of your own has the one if it returns `weights` among its intermediates, and the other for `logits`.
    """
    measures = {}
    for name, seen in trace.intermediates.items():
        if "weights" in seen:
            measures[f"attention_entropy/{name}"] = attention_entropy(seen["weights"])
        if "logits" in seen:
            finite = jnp.where(jnp.isfinite(seen["logits"]), jnp.abs(seen["logits"]), 0)
            measures[f"max_logit/{name}"] = jnp.max(finite)
    return measures


def routing(trace: Trace) -> dict[str, jax.Array]:
    """Measure experts: router_entropy and load_entropy in nats, and max_load, 1 when all are used alike.

    The router's entropy is that of one token's probabilities, averaged; the load's is that of all choices together.
    """
    measures = {}
    for name, seen in trace.intermediates.items():
        if "load" in seen:
            each = jnp.sum(jax.scipy.special.entr(seen["probabilities"]), -1)
            counted = seen["counted"]
            measures[f"router_entropy/{name}"] = jnp.sum(each * counted) / jnp.maximum(jnp.sum(counted), 1)
            measures[f"load_entropy/{name}"] = jnp.sum(jax.scipy.special.entr(seen["load"]))
            measures[f"max_load/{name}"] = seen["load"].shape[-1] * jnp.max(seen["load"])
    return measures


def expert_load(trace: Trace) -> dict[str, jax.Array]:
    """Measure experts: the share of all choices that falls on each, (E,), by sublayer."""
    return {f"expert_load/{name}": seen["load"] for name, seen in trace.intermediates.items() if "load" in seen}


def standard(trace: Trace) -> dict[str, jax.Array]:
    """`stream`, `branches`, `attention` and `routing` together."""
    return {**stream(trace), **branches(trace), **attention(trace), **routing(trace)}


def everything(trace: Trace) -> dict[str, jax.Array]:
    """`standard`, and rank_residual of x_{l+1}."""
    return {**standard(trace), "rank_residual": rank_residual(trace.after)}


def values(*sites: str) -> Measure:
    """A measure that reduces nothing: what an edit would see at these sites, {site: (L, ...)}.

    Of a stream that is a pytree, each leaf has its path behind the site's name.

    Args:
        *sites: out of `Stack.sites`.
    """

    def whole(trace: Trace) -> dict[str, jax.Array]:
        found = {}
        for site in sites:
            sublayer, _, name = site.partition("/")
            seen = trace.intermediates.get(sublayer, {})
            for path, leaf in jax.tree_util.tree_leaves_with_path(seen.get(name)):
                found["/".join(filter(None, (site, path_name(path))))] = leaf
        return found

    return whole


def last_token(trace: Trace) -> dict[str, jax.Array]:
    """The last token before and after the layer, (..., D): what `angular_distance` reads."""
    return {"before": trace.before[..., -1, :], "after": trace.after[..., -1, :]}


def angular_distance(before: jax.Array, after: jax.Array) -> jax.Array:
    """arccos(cos(x_l, x_m)) / pi between all of x_0 .. x_L, averaged, (L + 1, L + 1).

    Args:
        before: (L, ..., D), as `last_token` measures it.
        after: likewise.

    Source: Gromov et al. 2024, arXiv:2403.17887, who read the last token because it is the one that predicts.
    """
    x = _unit(jnp.concatenate((before[:1], after)))
    cosines = jnp.einsum("l...d,m...d->lm...", x, x)
    angles = jnp.arccos(jnp.clip(cosines, -1, 1)) / jnp.pi
    return jnp.mean(angles, tuple(range(2, angles.ndim)))


def layer_norms(tree: Params, declaration: Any, depth: int) -> jax.Array:
    """Norm of a parameter-like tree (gradients, updates, weights) in each layer, (L,).

    A stacked leaf is reduced over all axes but the layer's. The squares of these, plus those of the two ends, sum to
    the square of the global norm.

    Args:
        tree: like the parameters.
        declaration: the same tree of `Declared`.
        depth: L.

    Raises:
        ValueError: a depth of fewer layers than are declared.
    """
    return _norms(_pairs(tree, declaration), depth)


def role_norms(tree: Params, declaration: Any, depth: int) -> dict[str, jax.Array]:
    """`layer_norms` split by role: {role: (L,)}."""
    pairs = _pairs(tree, declaration)
    roles = sorted({declared.spec.role for _, declared in pairs if declared.layers})
    return {role: _norms([pair for pair in pairs if pair[1].spec.role == role], depth) for role in roles}


def _norms(pairs: list[tuple[jax.Array, Declared]], depth: int) -> jax.Array:
    """Norm of these leaves in each layer, (L,). Those of the same layers are added up before one scatter."""
    sums: dict[tuple[int, ...], jax.Array] = {}
    for leaf, declared in pairs:
        if layers := declared.layers:
            square = jnp.square(upcast(leaf))
            each = jnp.sum(square, tuple(range(1, leaf.ndim))) if declared.stacked else jnp.sum(square)
            sums[layers] = sums[layers] + each if layers in sums else each
    if (deepest := max((max(layers) for layers in sums), default=-1)) >= depth:
        raise ValueError(f"depth must be the stack's, {deepest + 1} or more; got {depth}")
    squares = jnp.zeros(depth, jnp.result_type(jnp.float32, *sums.values()))
    for layers, each in sums.items():
        squares = squares.at[jnp.asarray(layers)].add(each)
    return jnp.sqrt(squares)


def update_ratio(updates: Params, params: Params, declaration: Any, depth: int) -> jax.Array:
    """|update| / |weights| in each layer, (L,)."""
    return layer_norms(updates, declaration, depth) / (layer_norms(params, declaration, depth) + EPS)


def stream_gradients(loss: Callable[[jax.Array], jax.Array], depth: int) -> jax.Array:
    """|dLoss/dx_l| for x_0 .. x_L, (L + 1,), in O(L) memory.

    Args:
        loss: function of taps (L + 1,) that passes them on to `apply(taps=...)` and returns the loss.
        depth: L.
    """
    return jnp.sqrt(jax.grad(loss)(jnp.zeros(depth + 1, jnp.float32)))


def look(
    model: AbstractModel,
    params: Params,
    batch: Any,
    loss: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    **options: Any,
) -> dict[str, Any]:
    """Everything about every layer, from one forward pass and two backward ones.

    Args:
        model: a stack, a model or an encoder-decoder.
        params: its parameters.
        batch: what its `apply` reads: x (..., T, D), tokens (..., T), or a tuple (source, tokens).
        loss: of what `apply` returns.
        key: PRNG key of the directions of `jacobian_gain`.
        **options: of `apply`; `measure` is `standard` and `rank_residual` if it is not given.

    Returns:
        What `measure` reduces each layer to; stream_gradient, |dLoss/dx_l| for x_0 .. x_L, (L + 1,); jacobian_gain
        (L,); grad_norm (L,), and by role as grad_norm/query, grad_norm/down and so on. Of an encoder-decoder
        {encoder: these, decoder: these}.
    """
    options = {"measure": everything, **options}
    inputs = batch if isinstance(batch, tuple) else (batch,)

    def objective(params: Params, taps: Any) -> tuple[jax.Array, Any]:
        y, result = model.apply(params, *inputs, taps=taps, **options)
        return loss(y), result.measure

    gradient = jax.grad(objective, (0, 1), has_aux=True)
    (gradients, squares), measured = gradient(params, zero_taps(model))
    gain = jacobian_gain(model, params, batch, key, **{**options, "measure": None})
    declaration = model.declaration()

    def of(path: Path, stack: Stack) -> dict[str, jax.Array]:
        in_stack = at(gradients, path), at(declaration, path), stack.depth
        return {
            **model.of_stack(measured, path),
            "stream_gradient": jnp.sqrt(model.of_stack(squares, path)),
            "jacobian_gain": model.of_stack(gain, path),
            "grad_norm": layer_norms(*in_stack),
            **{f"grad_norm/{role}": norms for role, norms in role_norms(*in_stack).items()},
        }

    return model.per_stack(of)


def zero_taps(model: AbstractModel) -> Any:
    """Taps for `apply`: zeros (L + 1,) for each stack, whose gradient is |dLoss/dx_l|²."""
    return model.per_stack(lambda _, stack: jnp.zeros(stack.depth + 1, jnp.float32))


def jacobian_gain(model: AbstractModel, params: Params, batch: Any, key: jax.Array, **options: Any) -> Any:
    """|J_lᵀ u| / |u| in each layer, (L,), u a random direction at the output carried back through all later layers.

    J_l is the Jacobian of layer l's whole stream; the product of all is what a gradient grows by on its way down.

    Args:
        model: a stack, a model or an encoder-decoder.
        params: its parameters.
        batch: what its `apply` reads.
        key: PRNG key of the direction.
        **options: of `apply`.

    Returns:
        (L,), or {encoder: .., decoder: ..}.
    """
    inputs = batch if isinstance(batch, tuple) else (batch,)

    def along(taps: Any) -> jax.Array:
        y, _ = model.apply(params, *inputs, taps=taps, **options)
        return jnp.sum(y * jax.random.normal(key, y.shape, y.dtype))

    squares = jax.grad(along)(zero_taps(model))
    return jax.tree.map(lambda square: jnp.sqrt(square[:-1]) / (jnp.sqrt(square[1:]) + EPS), squares)


def _pairs(tree: Params, declaration: Any) -> list[tuple[jax.Array, Declared]]:
    leaves = jax.tree.leaves(declaration, is_leaf=is_spec)
    return list(zip(jax.tree.leaves(tree), leaves, strict=True))
