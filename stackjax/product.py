"""Products whose results are kept in float32, whatever the dtype of their factors."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def wide_einsum(equation: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum` of two arrays of one dtype, at least float32.

    Factors of 16 bits are multiplied as they are and added up in float32. So are those of the backward pass, whose
    cotangent is rounded to 16 bits first: left in float32, it would make every product there one of float32, at a
    quarter of the speed or less on hardware with units for 16 bits.
    """
    if a.dtype == jnp.promote_types(a.dtype, jnp.float32):
        return jnp.einsum(equation, a, b)
    return _wide(equation, a, b)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _wide(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


@_wide.defjvp
def _(
    equation: str, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (a, b), (da, db) = primals, tangents
    y = _wide(equation, a, b)
    return y, jnp.einsum(equation, da, b).astype(y.dtype) + jnp.einsum(equation, a, db).astype(y.dtype)
