"""A sublayer and norms small enough to write a whole recipe in NumPy."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import stackjax as sj
from stackjax.testing import normal, perturbed


@dataclass(frozen=True, kw_only=True)
class Toy(sj.Sublayer):
    """tanh(x W)."""

    def spec(self, d_model):
        return sj.parameter.matrix(d_model, d_model, "up")

    def apply(self, params, x, side_inputs):
        return jnp.tanh(x @ params["up"]), sj.Aux()


LAYER = sj.Layer(sublayers=(Toy(name="one"), Toy(name="two")))


def toy_stack(recipe, depth, *, d_model=8, layer=LAYER, **options):
    """A stack of two toys a layer."""
    return sj.Stack.of(layer, depth=depth, d_model=d_model, recipe=recipe, **options)


def toy_run(recipe, depth=3, **options):
    """A stack, its perturbed parameters, an input and the output, in float64; and the layers' parameters in NumPy."""
    stack = toy_stack(recipe, depth, **options)
    params = perturbed(stack.init(jax.random.key(0), jnp.float64), size=0.3)
    x = normal(2, 5, stack.d_model, key=1)
    y, _ = jax.jit(stack.apply)(params, x)
    layers = [numpy(layer) for layer in sj.convert.unstack(stack, params)]
    return layers, numpy(params["leave"]["inner"]), np.asarray(x), np.asarray(y)


def numpy(tree: Any) -> Any:
    """A tree of NumPy arrays."""
    return jax.tree.map(np.asarray, tree)


def toy(params, name, x):
    """tanh(x W) in NumPy."""
    return np.tanh(x @ params[name]["up"])


def layer_norm(params, x, eps=1e-5):
    """Layer norm in NumPy."""
    h = x - x.mean(-1, keepdims=True)
    h = h / np.sqrt((h * h).mean(-1, keepdims=True) + eps)
    return h * params.get("scale", 1) + params.get("bias", 0)


def rms_norm(params, x, eps=1e-6):
    """RMS norm in NumPy."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * params.get("scale", 1)


def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def softmax(x, axis):
    """exp(x) over its sum."""
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)
