"""ResiDual: a post-norm stream that the branches read, and a plain sum of their outputs that they do not."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import jax

from stackjax.recipe.base import Recipe
from stackjax.recipe.form import Form, FormCoefficients, Function, add
from stackjax.recipe.residual import Normed


@dataclass(frozen=True, kw_only=True)
class TwoStreams(Normed):
    """a' = norm(alpha a + beta f(gamma a)) and b' = b + beta f(gamma a); a + norm(b) at the end.

    Source: Xie et al. 2023, section 2, arXiv:2304.14802.
    """

    @property
    def kind(self) -> Hashable:
        return "a post-norm stream and a sum"

    @property
    def leave_norms(self) -> tuple[str, ...]:
        return ("norm",)

    def enter(self, x: jax.Array) -> Any:
        return {"post": x, "sum": x}

    def update(self, x: Any, f: Function, c: FormCoefficients, norm: Function) -> Any:
        a, b = x["post"], x["sum"]
        y = f(c.gamma * a)
        return {"post": norm(add(c.alpha, a, c.beta, y)), "sum": add(1.0, b, c.beta, y)}

    def leave(self, stream: Any, norm: Function) -> jax.Array:
        return stream["post"] + norm(stream["sum"])

    def view(self, stream: Any) -> jax.Array:
        return stream["post"]


@dataclass(frozen=True, kw_only=True)
class ResiDual(Recipe):
    """norm(a + f(a)) carried beside the sum of all f(a), joined at the end as a + norm(sum).

    Post-norm's different layers without its vanishing gradient, which flows through the sum.

    Source: Xie et al. 2023, section 2, arXiv:2304.14802.
    """

    residual: Form = TwoStreams()
