"""Random checkpoints, saved and changed, for tests of what is read from them."""

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from stackjax.interop import hf
from stackjax.interop.hf import folder
from stackjax.parameter import is_spec
from tests.interop.configs import CONFIGS


def random_params(config, dtype=jnp.float32):
    random = np.random.default_rng(0)
    declaration = hf.describe(config).declaration()
    return jax.tree.map(
        lambda d: jax.device_put(random.normal(size=d.shape).astype(dtype)), declaration, is_leaf=is_spec
    )


def checkpoint(kind, path, dtype=jnp.float32, **more):
    """Save a random checkpoint; returns its parameters."""
    params = random_params(CONFIGS[kind], dtype)
    hf.save(path, params, CONFIGS[kind], **more)
    return params


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        jax.tree.leaves(jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b))
    )


def rewrite(path, change):
    """Change the tensors of a saved checkpoint with the format's own library."""
    file = path / folder.SINGLE
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file)
