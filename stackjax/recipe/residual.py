"""Residual forms: how a branch joins the stream, each one line that reads like its formula.

    x            the stream, what all layers share
    f            the branch: a sublayer, called once
    c.alpha, c.beta     multiply the skip and the branch
    c.gamma      multiplies the input of the branch

`stackjax.recipe.form` says how to write one of your own.
"""

from dataclasses import dataclass
from typing import Any

import jax

from stackjax.norm import LayerNorm, NoNorm, Norm
from stackjax.parameter import Spec, zeros
from stackjax.recipe.form import Form, FormCoefficients, Function, add


@dataclass(frozen=True, kw_only=True)
class NoResidual(Form):
    """f(gamma x): the control that shows what the skip is for."""

    def update(self, x: jax.Array, f: Function, c: FormCoefficients) -> jax.Array:
        return f(c.gamma * x)


@dataclass(frozen=True, kw_only=True)
class Plain(Form):
    """alpha x + beta f(gamma x): a skip, and no norm but perhaps one at the end of the stack.

    Args:
        final: of the stack's output.
    """

    final: Norm = NoNorm()

    @property
    def leave_norms(self) -> tuple[str, ...]:
        return ("norm",)

    def norm_called(self, name: str) -> Norm:
        return self.final

    def update(self, x: jax.Array, f: Function, c: FormCoefficients) -> jax.Array:
        return add(c.alpha, x, c.beta, f(c.gamma * x))

    def leave(self, stream: jax.Array, norm: Function) -> jax.Array:
        return norm(stream)


@dataclass(frozen=True, kw_only=True)
class Normed(Form):
    """Base of the forms with a norm beside each sublayer.

    Args:
        norm: all of the form's norms.
    """

    norm: Norm = LayerNorm()
    norms = ("norm",)


@dataclass(frozen=True, kw_only=True)
class Ended(Normed):
    """Base of the forms around which a stack ends with a norm.

    Args:
        norm: all of the form's norms.
        final: whether the stack ends with one.
    """

    final: bool = True

    @property
    def leave_norms(self) -> tuple[str, ...]:
        return ("norm",) if self.final else ()

    def leave(self, stream: jax.Array, **norms: Function) -> jax.Array:
        return norms["norm"](stream) if self.final else stream


@dataclass(frozen=True, kw_only=True)
class Pre(Ended):
    """alpha x + beta f(gamma norm(x)), and a norm at the end of the stack.

    Source: Xiong et al. 2020, table 1, arXiv:2002.04745.
    """

    def update(self, x: jax.Array, f: Function, c: FormCoefficients, norm: Function) -> jax.Array:
        return add(c.alpha, x, c.beta, f(c.gamma * norm(x)))


@dataclass(frozen=True, kw_only=True)
class Post(Normed):
    """norm(alpha x + beta f(gamma x)); no norm at the end.

    Source: Vaswani et al. 2017, section 3.1, arXiv:1706.03762; with alpha: Wang et al. 2022, arXiv:2203.00555.
    """

    def update(self, x: jax.Array, f: Function, c: FormCoefficients, norm: Function) -> jax.Array:
        return norm(add(c.alpha, x, c.beta, f(c.gamma * x)))


@dataclass(frozen=True, kw_only=True)
class PrePost(Normed):
    """norm_out(alpha x + beta f(gamma norm_in(x))); no norm at the end.

    Source: Chen & Wei 2026, arXiv:2601.19895.
    """

    norms = ("norm_in", "norm_out")

    def update(
        self, x: jax.Array, f: Function, c: FormCoefficients, norm_in: Function, norm_out: Function
    ) -> jax.Array:
        return norm_out(add(c.alpha, x, c.beta, f(c.gamma * norm_in(x))))


@dataclass(frozen=True, kw_only=True)
class BranchNormed(Ended):
    """alpha x + beta norm(f(gamma x)), and a norm at the end.

    Source: Liu et al. 2021, section 3.2 (res-post-norm), arXiv:2111.09883; OLMo 2 2024, eq. (1) and (2),
    arXiv:2501.00656.
    """

    def update(self, x: jax.Array, f: Function, c: FormCoefficients, norm: Function) -> jax.Array:
        return add(c.alpha, x, c.beta, norm(f(c.gamma * x)))


@dataclass(frozen=True, kw_only=True)
class SkipNormed(Ended):
    """alpha h + beta f(gamma h) with h = norm(x), the norm on skip and branch alike, and one at the end.

    Post-norm with each norm moved to where the next sublayer reads it.

    Source: Zhuo et al. 2025, section 3, arXiv:2503.04598.
    """

    def update(self, x: jax.Array, f: Function, c: FormCoefficients, norm: Function) -> jax.Array:
        h = norm(x)
        return add(c.alpha, h, c.beta, f(c.gamma * h))


@dataclass(frozen=True, kw_only=True)
class Sandwich(Ended):
    """alpha x + beta norm_out(f(gamma norm_in(x))), a norm on the embedding if asked for, and one at the end.

    Args:
        norm: all of the form's norms.
        final: whether the stack ends with one.
        embedding: whether the stream is normalised as it enters (peri-LN).

    Source: Ding et al. 2021, section 2.4, arXiv:2105.13290 (sandwich); Kim et al. 2025, section 3,
    arXiv:2502.02732 (peri-LN).
    """

    embedding: bool = False
    norms = ("norm_in", "norm_out")

    @property
    def enter_norms(self) -> tuple[str, ...]:
        return ("norm",) if self.embedding else ()

    def enter(self, x: jax.Array, **norms: Function) -> jax.Array:
        return norms["norm"](x) if self.embedding else x

    def update(
        self, x: jax.Array, f: Function, c: FormCoefficients, norm_in: Function, norm_out: Function
    ) -> jax.Array:
        return add(c.alpha, x, c.beta, norm_out(f(c.gamma * norm_in(x))))


@dataclass(frozen=True, kw_only=True)
class Gated(Form):
    """alpha x + beta g f(gamma x), with one learned number g for the sublayer, zero at first, and no norm.

    Source: Bachlechner et al. 2020, eq. (1), arXiv:2003.04887; De & Smith 2020 (SkipInit), arXiv:2002.10444.
    """

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        return {"gate": Spec(shape=(), role="residual", init=zeros)}

    def update(self, x: jax.Array, f: Function, c: FormCoefficients, gate: jax.Array) -> jax.Array:
        return add(c.alpha, x, c.beta * gate, f(c.gamma * x))
