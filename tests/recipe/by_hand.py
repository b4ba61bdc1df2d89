"""A two-sublayer layer in a few lines of float64 NumPy, for the recipes' formulas to be written around."""

from collections.abc import Callable
from typing import Any

import numpy as np

Params = dict[str, Any]
N_HEADS = 2


def norm(p: Params, x: np.ndarray) -> np.ndarray:
    """Layer norm over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def dyt(p: Params, x: np.ndarray) -> np.ndarray:
    """Dynamic tanh."""
    return p["scale"] * np.tanh(p["alpha"] * x) + p["bias"]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))


def nothing(p: Params, x: np.ndarray) -> np.ndarray:
    """x."""
    return x


def attention(
    p: Params,
    x: np.ndarray,
    *,
    qkv: Callable = nothing,
    heads: Callable = nothing,
    kernel: Callable | None = None,
    scale: float | None = None,
) -> np.ndarray:
    """Causal attention with two heads; `qkv` on each head's projections, `heads` on all of them before W_out."""

    def split(name: str) -> np.ndarray:
        return (x @ p[name]).reshape(*x.shape[:-1], N_HEADS, -1)

    q, k, v = (qkv(p[f"{name}_norm"], split(name)) for name in ("query", "key", "value"))
    n = x.shape[-2]
    logits = np.einsum("bthk,bshk->bhts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen = np.tril(np.ones((n, n), bool))
    weights = np.exp(np.where(seen, logits, -np.inf))
    weights = weights / weights.sum(-1, keepdims=True)
    weights = weights if kernel is None else kernel(weights, seen)
    y = np.einsum("bhts,bshk->bthk", weights, v).reshape(*x.shape[:-1], -1)
    return heads(p["inner_norm"], y) @ p["out"]


def feed_forward(
    p: Params, x: np.ndarray, *, hidden: Callable = nothing, activation: Callable | None = None
) -> np.ndarray:
    """ReLU network; `hidden` on its hidden layer."""
    h = x @ p["up"]
    h = np.maximum(h, 0) if activation is None else activation(h)
    return hidden(p["inner_norm"], h) @ p["down"]
