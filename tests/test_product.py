"""Products of 16-bit factors that are kept in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stackjax.product import wide_einsum
from stackjax.testing import normal

EQUATION = "btk,kn->btn"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_sum_is_kept_in_float32(dtype):
    a, b = normal(2, 3, 64, dtype=dtype), normal(64, 5, key=1, dtype=dtype)
    found = wide_einsum(EQUATION, a, b)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.einsum(EQUATION, *(np.float64(x) for x in (a, b))), rtol=1e-5, atol=1e-5)


def test_the_backward_pass_multiplies_in_16_bits():
    a, b = normal(2, 3, 64, dtype=jnp.bfloat16), normal(64, 5, key=1, dtype=jnp.bfloat16)
    weights = normal(2, 3, 5, key=2, dtype=jnp.float32)
    gradient = jax.grad(lambda a, b: jnp.sum(weights * wide_einsum(EQUATION, a, b)), (0, 1))
    exact = np.einsum("btn,kn->btk", weights, np.float32(b)), np.einsum("btn,btk->kn", weights, np.float32(a))
    for found, expected in zip(gradient(a, b), exact, strict=True):
        assert found.dtype == jnp.bfloat16
        assert np.linalg.norm(np.float32(found) - expected) < 0.01 * np.linalg.norm(expected)
    products = [line for line in str(jax.make_jaxpr(gradient)(a, b)).splitlines() if "dot_general" in line]
    assert len(products) >= 2 and sum("f32" in line for line in products) <= 1  # the forward pass's, if it is left


def test_float32_is_left_alone(x64):
    for dtype in ("float32", "float64"):
        a, b = normal(2, 3, 4, dtype=dtype), normal(4, 5, key=1, dtype=dtype)
        found, tangent = jax.jvp(lambda a, b=b: wide_einsum(EQUATION, a, b), (a,), (a,))
        assert found.dtype == a.dtype and jnp.array_equal(found, tangent)
