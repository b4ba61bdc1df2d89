"""Four ways to run one body over n layers: scanned or looped, with every kind of rematerialisation.

The body is `body(carry, x) -> (carry, y)`, as for `jax.lax.scan`. All of them give the same values and gradients.

Rematerialisation is an argument of `apply`. Layers name what is dear to compute again (`NAMES`): `attention_heads`, the
heads' outputs (..., T, H K) before the projection, and `feed_forward_hidden`, the hidden layer (..., T, F) before the
second matrix. "offload" moves them to the host's memory in the forward pass and back in the backward pass, and computes
the rest of each layer again; a policy may keep some of them on the device:

    >>> import jax, jax.numpy as jnp, optax, stackjax as sj
    >>> model = sj.decoder(vocab=16, d_model=16, depth=2, n_heads=2)
    >>> params, tokens = jax.jit(model.init)(jax.random.key(0)), jnp.arange(8)[None]
    >>> policy = jax.checkpoint_policies.save_only_these_names("attention_heads")
    >>> def norm(remat):
    ...     loss = lambda params: sj.loss.next_token(model.apply(params, tokens, remat=remat)[0], tokens)
    ...     return optax.tree.norm(jax.jit(jax.grad(loss))(params))
    >>> bool(jnp.allclose(norm("none"), norm(policy), rtol=1e-5))
    True
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from stackjax import history
from stackjax.check import whole
from stackjax.norm import upcast

Remat = Literal["none", "layer", "nested", "offload"] | Callable[..., Any]
"""The layers that the backward pass recomputes: none, each, or blocks of about sqrt(n) layers and each layer in them;
each but what it names, which waits in the host's memory; or each with a `jax.checkpoint` policy that says what to
keep."""

NAMES = ("attention_heads", "feed_forward_hidden")
"""Names by which a policy knows activations."""

Body = Callable[[Any, Any], tuple[Any, Any]]


def rematerialise(layer: Body, remat: Remat, *, inlined: bool) -> Body:
    """Wrap one layer so that the backward pass recomputes what `remat` says.

    Args:
        layer: takes the carry and its own xs.
        remat: what to recompute.
        inlined: whether forward and backward pass of the layer may stand in one computation, not each in a loop of its
            own; there a compiler that finds the same work twice would keep the result and not recompute.

    Raises:
        ValueError: an unknown remat.
    """
    if remat == "none":
        return layer
    if remat == "offload":
        remat = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(NAMES),
            offload_src="device",
            offload_dst="pinned_host",
        )
    if not (callable(remat) or remat in ("layer", "nested")):
        raise ValueError(
            f"remat must be 'none', 'layer', 'nested', 'offload' or a jax checkpoint policy; got {remat!r}"
        )
    return jax.checkpoint(layer, policy=remat if callable(remat) else None, prevent_cse=inlined)


def run(
    body: Body, carry: Any, xs: Any, n: int, *, nested: bool = False, loop: bool = False, unroll: int = 1
) -> tuple[Any, Any]:
    """Run the body n times over the leading axis of xs.

    Args:
        body: one layer, or one repeat of a pattern of layers.
        carry: what the next layer needs.
        xs: pytree of arrays with leading axis n.
        n: number of repeats, 0 included.
        nested: whether the backward pass keeps only about sqrt(n) carries and recomputes the rest.
        loop: a Python loop, the plain reference, instead of `jax.lax.scan`.
        unroll: iterations per scan step.

    Returns:
        The carry, and the ys stacked on axis 0. A carry that holds a `History` goes through `history.run`, which
        keeps one copy of it and recomputes each layer, whatever `nested` says.

    Raises:
        ValueError: an `unroll` that is no positive integer; True would unroll all layers, and their rematerialisation
            be undone.
    """
    whole(unroll=unroll)
    if unroll < 1:
        raise ValueError(f"unroll must be 1 or more layers per scan step; got {unroll}")
    if n and not loop and history.holds_history(carry):
        return history.run(body, carry, xs, n, unroll=unroll)
    if nested and n > 1:
        return _drive_nested(body, carry, xs, n, loop, unroll)
    if not loop or n == 0:
        return jax.lax.scan(body, carry, xs, length=n, unroll=unroll)
    ys = []
    for i in range(n):
        carry, y = body(carry, jax.tree.map(lambda a, i=i: a[i], xs))
        ys.append(y)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)


def chunks(n: int) -> tuple[int, int, int]:
    """The split of n layers for nested rematerialisation: (number of chunks, their length, length of the tail).

    The divisors nearest sqrt(n) if they are within a factor of 2 of it, else chunks of ceil(sqrt(n)) and a tail.
    """
    root = math.isqrt(n)
    length = next((d for d in range(root, 0, -1) if n % d == 0), 1)
    if 2 * length > root:
        return n // length, length, 0
    length = math.ceil(math.sqrt(n))
    return n // length, length, n % length


def _drive_nested(body: Body, carry: Any, xs: Any, n: int, loop: bool, unroll: int):
    count, length, tail = chunks(n)
    split = count * length

    def chunk(carry: Any, xs: Any) -> tuple[Any, Any]:
        return run(body, carry, xs, length, loop=loop, unroll=unroll)

    head = jax.tree.map(lambda a: a[:split].reshape(count, length, *a.shape[1:]), xs)
    carry, ys = run(jax.checkpoint(chunk, prevent_cse=loop), carry, head, count, loop=loop)
    ys = jax.tree.map(lambda a: a.reshape(split, *a.shape[2:]), ys)
    if not tail:
        return carry, ys
    rest = jax.tree.map(lambda a: a[split:], xs)
    carry, more = run(body, carry, rest, tail, loop=loop, unroll=unroll)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate((a, b)), ys, more)


@jax.custom_vjp
def tap(stream: Any, t: jax.Array) -> Any:
    """The identity in `stream`; the gradient with respect to t () is the squared norm of the stream's cotangent."""
    return stream


def _tap_forward(stream: Any, t: jax.Array) -> tuple[Any, None]:
    return stream, None


def _tap_backward(_: None, cotangent: Any) -> tuple[Any, jax.Array]:
    return cotangent, jnp.sum(jnp.stack([jnp.sum(jnp.square(upcast(leaf))) for leaf in jax.tree.leaves(cotangent)]))


tap.defvjp(_tap_forward, _tap_backward)
