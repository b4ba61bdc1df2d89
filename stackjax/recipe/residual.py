"""Residual forms: how a branch joins the stream, each one function that reads like its formula.

    x            the stream, what all layers share
    f            the branch: a sublayer, called once
    alpha, beta  multiply the skip and the branch
    gamma        multiplies the input of the branch

The stream may be any pytree of float arrays of fixed shape; a buffer of what earlier layers made is a `History`.
Residual sums are taken in float32; the stack casts the stream back to the dtype in which it entered.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import jax

from stackjax.display import Description
from stackjax.norm import LayerNorm, NoNorm, Norm, wide
from stackjax.parameter import Spec, zeros
from stackjax.sublayer import Out, Params

Branch = Callable[..., tuple[jax.Array, Out]]
"""`branch(x, **more) -> (y, Out)`; `more` sets fields of `Given`. A form calls it once and passes the Out through."""

Scale = dict[str, jax.Array]
"""This sublayer's numbers from the recipe's schedule: alpha, beta, gamma and whatever the recipe adds."""


@dataclass(frozen=True, kw_only=True)
class Form(Description):
    """Base of every residual form: no parameters, a stream that is x itself, and `apply` left to write."""

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        """Parameters beside each sublayer, in a stack of `depth` layers."""
        return {}

    def ends(self, d_model: int, depth: int) -> dict[str, Any]:
        """Parameters of `enter` and `leave`, the final norm included: {enter: specs, leave: specs}."""
        return {"enter": {}, "leave": {}}

    @property
    def kind(self) -> Hashable:
        """What the stream is; only forms of equal kind may meet in one stack."""
        return "one stream"

    def enter(self, params: Params, x: jax.Array) -> Any:
        """Open the stream from x (..., T, D)."""
        return x

    def leave(self, params: Params, stream: Any) -> jax.Array:
        """Close the stream to (..., T, D)."""
        return stream

    def view(self, stream: Any) -> jax.Array:
        """The (..., T, D) that an observer calls x_l."""
        return stream

    def apply(
        self, params: Params, scale: Scale, stream: Any, branch: Branch, key: jax.Array | None = None
    ) -> tuple[Any, Out]:
        """One sublayer: stream to stream.

        Args:
            params: as declared by `spec`.
            scale: this sublayer's numbers from the schedule.
            stream: as opened by `enter`.
            branch: the sublayer, to be called once.
            key: PRNG key, for forms that draw (stochastic depth); None means evaluation.

        Returns:
            The stream, with the same shapes, and the branch's `Out`, with what the form adds to it.
        """
        raise NotImplementedError(f"{type(self).__name__} must override apply")

    def statistics(self, side: str, params: Params, x: Any) -> Params:
        """New values of the statistics among the parameters of `enter` or `leave`, given what that reads."""
        return {}

    def check(self, layers: tuple[Any, ...], looped: bool) -> None:
        """Raise a ValueError if this form cannot live in such a stack.

        Args:
            layers: the stack's different layers, dressed.
            looped: whether they share one copy of the parameters.
        """


def add(alpha: Any, x: jax.Array, beta: Any, y: jax.Array) -> jax.Array:
    """alpha x + beta y, summed in float32, in the dtype of x."""
    return (alpha * wide(x) + beta * wide(y)).astype(x.dtype)


def times(gamma: Any, x: jax.Array) -> jax.Array:
    """gamma x in the dtype of x."""
    return (gamma * wide(x)).astype(x.dtype)


def with_state(out: Out, name: str, state: Params) -> Out:
    """`out` with new values of a norm's statistics, if it has any, under the form's parameter `name`."""
    if not state:
        return out
    return replace(out, state={**out.state, "residual": {**out.state.get("residual", {}), name: state}})


@dataclass(frozen=True, kw_only=True)
class NoResidual(Form):
    """f(gamma x): the control that shows what the skip is for."""

    def apply(self, params, scale, stream, branch, key=None):
        return branch(times(scale["gamma"], stream))


@dataclass(frozen=True, kw_only=True)
class Plain(Form):
    """alpha x + beta f(gamma x): a skip, and no norm but perhaps one at the end of the stack.

    Args:
        final: of the stack's output.
    """

    final: Norm = NoNorm()

    def ends(self, d_model, depth):
        return {"enter": {}, "leave": {"norm": self.final.spec(d_model)}}

    def leave(self, params, stream):
        return self.final.apply(params["norm"], stream)

    def apply(self, params, scale, stream, branch, key=None):
        y, out = branch(times(scale["gamma"], stream))
        return add(scale["alpha"], stream, scale["beta"], y), out


@dataclass(frozen=True, kw_only=True)
class Ended(Form):
    """Base of the forms around which a stack ends with a norm.

    Args:
        norm: all of the form's norms.
        final: whether the stack ends with one.
    """

    norm: Norm = LayerNorm()
    final: bool = True

    def ends(self, d_model, depth):
        return {"enter": {}, "leave": {"norm": self.norm.spec(d_model)} if self.final else {}}

    def leave(self, params, stream):
        return self.norm.apply(params["norm"], stream) if self.final else stream

    def statistics(self, side, params, x):
        state = self.norm.state(params["norm"], x) if side == "leave" and self.final else {}
        return {"norm": state} if state else {}


@dataclass(frozen=True, kw_only=True)
class Pre(Ended):
    """alpha x + beta f(gamma norm(x)), and a norm at the end of the stack.

    Source: Xiong et al. 2020, table 1, arXiv:2002.04745.
    """

    def spec(self, d_model, depth):
        return {"norm": self.norm.spec(d_model)}

    def apply(self, params, scale, stream, branch, key=None):
        y, out = branch(times(scale["gamma"], self.norm.apply(params["norm"], stream)))
        out = with_state(out, "norm", self.norm.state(params["norm"], stream))
        return add(scale["alpha"], stream, scale["beta"], y), out


@dataclass(frozen=True, kw_only=True)
class Post(Form):
    """norm(alpha x + beta f(gamma x)); no norm at the end.

    Args:
        norm: of the sum.

    Source: Vaswani et al. 2017, section 3.1, arXiv:1706.03762; with alpha: Wang et al. 2022, arXiv:2203.00555.
    """

    norm: Norm = LayerNorm()

    def spec(self, d_model, depth):
        return {"norm": self.norm.spec(d_model)}

    def apply(self, params, scale, stream, branch, key=None):
        y, out = branch(times(scale["gamma"], stream))
        total = add(scale["alpha"], stream, scale["beta"], y)
        out = with_state(out, "norm", self.norm.state(params["norm"], total))
        return self.norm.apply(params["norm"], total), out


@dataclass(frozen=True, kw_only=True)
class PrePost(Form):
    """norm_out(alpha x + beta f(gamma norm_in(x))); no norm at the end.

    Args:
        norm: both of them.

    Source: Chen & Wei 2026, arXiv:2601.19895.
    """

    norm: Norm = LayerNorm()

    def spec(self, d_model, depth):
        return {"norm_in": self.norm.spec(d_model), "norm_out": self.norm.spec(d_model)}

    def apply(self, params, scale, stream, branch, key=None):
        y, out = branch(times(scale["gamma"], self.norm.apply(params["norm_in"], stream)))
        total = add(scale["alpha"], stream, scale["beta"], y)
        out = with_state(out, "norm_in", self.norm.state(params["norm_in"], stream))
        out = with_state(out, "norm_out", self.norm.state(params["norm_out"], total))
        return self.norm.apply(params["norm_out"], total), out


@dataclass(frozen=True, kw_only=True)
class BranchNormed(Ended):
    """alpha x + beta norm(f(gamma x)), and a norm at the end.

    Source: Liu et al. 2021, section 3.2 (res-post-norm), arXiv:2111.09883; OLMo 2 2024, eq. (1) and (2),
    arXiv:2501.00656.
    """

    def spec(self, d_model, depth):
        return {"norm": self.norm.spec(d_model)}

    def apply(self, params, scale, stream, branch, key=None):
        y, out = branch(times(scale["gamma"], stream))
        out = with_state(out, "norm", self.norm.state(params["norm"], y))
        return add(scale["alpha"], stream, scale["beta"], self.norm.apply(params["norm"], y)), out


@dataclass(frozen=True, kw_only=True)
class SkipNormed(Ended):
    """alpha h + beta f(gamma h) with h = norm(x), the norm on skip and branch alike, and one at the end.

    Post-norm with each norm moved to where the next sublayer reads it.

    Source: Zhuo et al. 2025, section 3, arXiv:2503.04598.
    """

    def spec(self, d_model, depth):
        return {"norm": self.norm.spec(d_model)}

    def apply(self, params, scale, stream, branch, key=None):
        h = self.norm.apply(params["norm"], stream)
        y, out = branch(times(scale["gamma"], h))
        out = with_state(out, "norm", self.norm.state(params["norm"], stream))
        return add(scale["alpha"], h, scale["beta"], y), out


@dataclass(frozen=True, kw_only=True)
class Sandwich(Ended):
    """alpha x + beta norm_out(f(gamma norm_in(x))), a norm on the embedding if asked for, and one at the end.

    Args:
        embedding: whether the stream is normalised as it enters (peri-LN).

    Source: Ding et al. 2021, section 2.4, arXiv:2105.13290 (sandwich); Kim et al. 2025, section 3,
    arXiv:2502.02732 (peri-LN).
    """

    embedding: bool = False

    def spec(self, d_model, depth):
        return {"norm_in": self.norm.spec(d_model), "norm_out": self.norm.spec(d_model)}

    def ends(self, d_model, depth):
        enter = {"norm": self.norm.spec(d_model)} if self.embedding else {}
        return {**super().ends(d_model, depth), "enter": enter}

    def enter(self, params, x):
        return self.norm.apply(params["norm"], x) if self.embedding else x

    def statistics(self, side, params, x):
        state = self.norm.state(params["norm"], x) if side == "enter" and self.embedding else {}
        return {"norm": state} if state else super().statistics(side, params, x)

    def apply(self, params, scale, stream, branch, key=None):
        y, out = branch(times(scale["gamma"], self.norm.apply(params["norm_in"], stream)))
        out = with_state(out, "norm_in", self.norm.state(params["norm_in"], stream))
        out = with_state(out, "norm_out", self.norm.state(params["norm_out"], y))
        return add(scale["alpha"], stream, scale["beta"], self.norm.apply(params["norm_out"], y)), out


@dataclass(frozen=True, kw_only=True)
class Gated(Form):
    """alpha x + beta g f(gamma x), with one learned number g for the sublayer, zero at first, and no norm.

    Source: Bachlechner et al. 2020, eq. (1), arXiv:2003.04887; De & Smith 2020 (SkipInit), arXiv:2002.10444.
    """

    def spec(self, d_model, depth):
        return {"gate": Spec(shape=(), role="residual", init=zeros)}

    def apply(self, params, scale, stream, branch, key=None):
        y, out = branch(times(scale["gamma"], stream))
        return add(scale["alpha"], stream, scale["beta"] * params["gate"], y), out


@dataclass(frozen=True, kw_only=True)
class Through(Form):
    """f(x): the outer form of a layer whose sublayers already join the stream themselves."""

    @property
    def kind(self) -> Hashable:
        return "through"

    def apply(self, params, scale, stream, branch, key=None):
        return branch(stream)
