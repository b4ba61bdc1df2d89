"""Longer memory: a buffer of what earlier layers made, and the scan that keeps only one copy of it.

A plain scan saves all that it carries, at every layer, for the backward pass; a buffer of L slots then costs O(L²)
memory. But each slot is written once, and read only after that. So the buffer as it stands at the end serves the
backward pass of every layer, and O(L) is enough: `run` saves it once, and beside it only what else is carried.

What it costs: each layer is computed a second time in the backward pass (as with remat="layer", whatever remat is
asked for), and forward-mode derivatives (`jax.jvp`) are refused; the Python loop (`loop=True`) has them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from stackjax.norm import upcast


@struct.dataclass
class History:
    """A buffer in the stream whose slots are written once.

    Three rules make one copy enough. A slot is set, never added to (`write` does so). A form reads no slot that is not
    yet written: it gives them a weight of zero, or a logit of -inf. Where to write travels in the recipe's schedule.

    Args:
        slots: (N, ..., T, D)
    """

    slots: jax.Array

    @classmethod
    def start(cls, x: jax.Array, n: int) -> "History":
        """N = n slots, x (..., T, D) in the first."""
        return cls(slots=jnp.zeros((n, *x.shape), x.dtype).at[0].set(x))

    def write(self, slot: jax.Array, x: jax.Array, *, when: Any = True) -> "History":
        """Set slot () to x (..., T, D); where `when` () is false, leave it for later.

        A slot that is not there, which jax would move to the nearest one, takes NaN to it.
        """
        inside = (slot >= 0) & (slot < self.slots.shape[0])
        x = jnp.where(when, jnp.where(inside, x, jnp.nan), self.slots[slot])
        return History(slots=jax.lax.dynamic_update_index_in_dim(self.slots, x.astype(self.slots.dtype), slot, 0))

    def written(self, n: jax.Array) -> jax.Array:
        """The mask of the slots before slot n (): booleans (N,)."""
        return jnp.arange(self.slots.shape[0]) < n

    def sum(self, weights: jax.Array) -> jax.Array:
        """sum_n weights_n slots_n in float32.

        Args:
            weights: (N,), or (N, ..., T) with a weight for each token.

        Returns:
            (..., T, D)
        """
        missing = self.slots.ndim - weights.ndim
        return jnp.sum(weights.reshape(*weights.shape, *(1,) * missing) * upcast(self.slots), 0)


def holds_history(carry: Any) -> bool:
    """True if there is a `History` in a pytree."""
    return any(_is_history(leaf) for leaf in jax.tree.leaves(carry, is_leaf=_is_history))


def without_histories(carry: Any) -> Any:
    """A pytree with None in place of every `History`."""
    return jax.tree.map(lambda node: None if _is_history(node) else node, carry, is_leaf=_is_history)


def fill(some: Any, whole: Any) -> Any:
    """`some` with its Nones replaced by what stands there in `whole`."""
    return jax.tree.map(lambda a, b: b if a is None else a, some, whole, is_leaf=lambda a: a is None)


def run(body: Any, carry: Any, xs: Any, n: int, *, unroll: int = 1) -> tuple[Any, Any]:
    """`jax.lax.scan` with a backward pass that keeps one copy of each `History` in the carry.

    Args:
        body: `body(carry, x) -> (carry, y)`; it may close over anything.
        carry: pytree of floats, some of them in `History`.
        xs: pytree of arrays with leading axis n.
        n: number of repeats.
        unroll: iterations per scan step.

    Returns:
        The carry, and the ys stacked on axis 0.
    """
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
    closed, shapes = jax.make_jaxpr(body, return_shape=True)(carry, x)

    def step(consts: Any, carry: Any, x: Any) -> tuple[Any, Any]:
        flat = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))(*jax.tree.leaves((carry, x)))
        return jax.tree.unflatten(jax.tree.structure(shapes), flat)

    @jax.custom_vjp
    def scan(consts: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
        return jax.lax.scan(lambda c, x: step(consts, c, x), carry, xs, n, unroll=unroll)

    def forward(*primals: Any) -> tuple[Any, Any]:
        consts, carry, xs = jax.tree.map(lambda p: p.value, primals, is_leaf=lambda p: hasattr(p, "perturbed"))

        def keep(carry: Any, x: Any) -> tuple[Any, Any]:
            new, y = step(consts, carry, x)
            return new, (y, without_histories(carry))

        last, (ys, carries) = jax.lax.scan(keep, carry, xs, n, unroll=unroll)
        return (last, ys), (consts, carries, last, xs)

    def backward(saved: Any, cotangent: Any) -> tuple[Any, Any, Any]:
        consts, carries, last, xs = saved
        d_last = jax.tree.map(_instantiate, cotangent[0], last)
        d_ys = jax.tree.map(lambda d: None if _is_zero(d) else d, cotangent[1])

        def pull(state: Any, at: Any) -> tuple[Any, Any]:
            d_carry, d_consts = state
            carry, x, d_y = at
            inputs = (consts, fill(carry, last), x)

            def wanted(floats: Any) -> Any:
                carry, y = step(*fill(floats, inputs))
                return carry, _where(d_y, y)

            _, pull_one = jax.vjp(wanted, _floats(inputs))
            ((more, d_carry, d_x),) = pull_one((d_carry, d_y))
            return (d_carry, jax.tree.map(jnp.add, d_consts, more)), d_x

        zeros = jax.tree.map(jnp.zeros_like, _floats(consts))
        (d_carry, d_consts), d_xs = jax.lax.scan(
            pull, (d_last, zeros), (carries, xs, d_ys), n, reverse=True, unroll=unroll
        )
        return d_consts, d_carry, d_xs

    scan.defvjp(forward, backward, symbolic_zeros=True)
    return scan(closed.consts, carry, xs)


def _is_history(node: Any) -> bool:
    return isinstance(node, History)


def _floats(tree: Any) -> Any:
    """The leaves that have a gradient, None in place of the others."""
    return jax.tree.map(lambda a: a if jnp.issubdtype(a.dtype, jnp.inexact) else None, tree)


def _where(some: Any, whole: Any) -> Any:
    """`whole` with None wherever `some` has None."""
    return jax.tree.map(lambda a, b: None if a is None else b, some, whole, is_leaf=lambda a: a is None)


def _is_zero(cotangent: Any) -> bool:
    """True if nothing flows back: what only an observer looks at must not be differentiated (0 times inf is NaN)."""
    return isinstance(cotangent, SymbolicZero) or cotangent.dtype == jax.dtypes.float0


def _instantiate(cotangent: Any, like: jax.Array) -> jax.Array:
    return jnp.zeros_like(like) if _is_zero(cotangent) else cotangent
