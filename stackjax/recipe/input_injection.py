"""Input injection: the stream that entered a loop over layers is given again at every turn."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from stackjax.parameter import Spec
from stackjax.recipe.around import Around
from stackjax.recipe.base import Coefficients, Geometry
from stackjax.recipe.form import Branch, Form, FormCoefficients, Function
from stackjax.sublayer import Aux, Params


@dataclass(frozen=True, kw_only=True)
class Outside(Form):
    """The outer form of a layer outside the loop: the input of the loop is the stream so far."""

    @property
    def kind(self) -> Hashable:
        return "a stream and the input of its loop"

    def check(self, layers: tuple[Any, ...], looped: bool) -> None:
        if not looped:
            raise ValueError("an input is injected into a loop, and this stack has none: see `stackjax.recurrence`")

    def enter(self, x: jax.Array) -> Any:
        return {"x": x, "input": x}

    def update(self, x: Any, f: Function, c: FormCoefficients) -> Any:
        y = f(x["x"])
        return {"x": y, "input": y}

    def leave(self, stream: Any) -> jax.Array:
        return stream["x"]

    def truncated(self, entered: Any, reached: Any) -> Any:
        return {**reached, "input": entered["input"]}

    def view(self, stream: Any) -> jax.Array:
        return stream["x"]


@dataclass(frozen=True, kw_only=True)
class Inside(Outside):
    """The outer form of a layer inside the loop, f(s)."""

    def update(self, x: Any, f: Function, c: FormCoefficients) -> Any:
        return {"x": f(x["x"]), "input": x["input"]}


@dataclass(frozen=True, kw_only=True)
class Injected(Outside):
    """The outer form of the layer that begins a turn, f(s + e) or f([s; e] A); s = 0 before the first turn.

    The coefficient `opens` is 1 at the first turn.

    Args:
        joined: "sum", or "linear" with A (2D, D).
        noise: standard deviation of s before the first turn in training.
    """

    joined: Literal["sum", "linear"] = "sum"
    noise: float = 0.0

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        return {"join": Spec(shape=(2 * d_model, d_model), role="mix")} if self.joined == "linear" else {}

    def update(self, x: Any, f: Function, c: FormCoefficients, join: jax.Array | None = None) -> Any:
        def joined(s: jax.Array, e: jax.Array) -> jax.Array:
            return s + e if join is None else jnp.concatenate((s, e), -1) @ join.astype(s.dtype)

        return {"x": f(jax.tree.map(joined, x["x"], x["input"])), "input": x["input"]}

    def apply(
        self, params: Params, c: FormCoefficients, stream: Any, branch: Branch, key: jax.Array | None = None
    ) -> tuple[Any, Aux]:
        states, tree = jax.tree.flatten(stream["x"])
        starts = [jnp.zeros_like(s) for s in states]
        if key is not None and self.noise:
            keys = jax.random.split(key, len(states))
            starts = [self.noise * jax.random.normal(k, s.shape, s.dtype) for k, s in zip(keys, states, strict=True)]
        states = [jnp.where(c.opens > 0, start, s) for start, s in zip(starts, states, strict=True)]
        return super().apply(params, c, {**stream, "x": jax.tree.unflatten(tree, states)}, branch, key)


@dataclass(frozen=True, kw_only=True)
class InputInjection(Around):
    """s_0 = 0, s_t = core(s_{t-1} + e) or core([s_{t-1}; e] A), around any recipe with a loop.

    e is the stream that entered the loop: the embedding, or what the layers before made of it. With the sum, one turn
    is the base recipe.

    Args:
        joined: "sum", or "linear" with a matrix A (2D, D) that all turns share.
        noise: standard deviation of s_0 in training (where there is a key); in evaluation s_0 is its mean, 0.

    Raises:
        ValueError: a stack without a loop; a base with an outer form of its own.

    Source: the sum: Yang et al. 2024, section 4, arXiv:2311.12424. Linear: Geiping et al. 2025, section 3,
    arXiv:2502.05171, who draw s_0 in evaluation too, and put the final norm behind the loop as well.
    """

    joined: Literal["sum", "linear"] = "sum"
    noise: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.joined not in ("sum", "linear") or not self.noise >= 0:
            raise ValueError(
                f"joined must be 'sum' or 'linear', and noise 0 or more; got {self.joined!r} and {self.noise}"
            )

    def outer(self, layer: int, geometry: Geometry) -> Form:
        taken, loop = self.base.outer(layer, geometry), geometry.loop
        if taken is not None:
            raise ValueError(f"InputInjection is an outer form, and its base has one already: {taken}")
        if loop is None or not loop.before <= layer < loop.stop:
            return Outside()
        begins = (layer - loop.before) % loop.length == 0
        return Injected(joined=self.joined, noise=self.noise) if begins else Inside()

    def coefficients(self, geometry: Geometry) -> Coefficients:
        coefficients, loop = self.base.coefficients(geometry), geometry.loop
        first = -1 if loop is None else loop.before
        opens = (jnp.arange(geometry.depth) == first).astype(jnp.float32)
        return {**coefficients, "outer": {**coefficients["outer"], "opens": opens}}
