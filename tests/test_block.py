"""Blocks of an axis, and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from stackjax.block import from_blocks, to_blocks
from stackjax.testing import normal
from tests.helpers import daily


@pytest.mark.parametrize(("n", "block"), [(12, 4), (11, 4), (3, 4), (4, 1)])
@pytest.mark.parametrize("axis", daily([0, 1, -2, -1], 0, -2))
def test_blocks_hold_their_part_of_the_axis(axis, n, block):
    shape = [2, 3, 5]
    shape[axis] = n
    x = normal(*shape)
    blocks = to_blocks(x, block, axis, filler=7)
    for i, part in enumerate(blocks):
        wanted = jnp.take(x, jnp.arange(i * block, min(n, (i + 1) * block)), axis=axis)
        np.testing.assert_array_equal(jnp.take(part, jnp.arange(wanted.shape[axis]), axis=axis), wanted)
    assert np.sum(np.asarray(blocks) == 7) == (-n % block) * x.size // n
    np.testing.assert_array_equal(from_blocks(blocks, n, axis), x)
