"""nGPT: every vector on the unit sphere, and every layer a step along it."""

from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp

from stackjax.attention import Attention
from stackjax.embedding import Head
from stackjax.feed_forward import FeedForward
from stackjax.norm import NoNorm, upcast
from stackjax.parameter import Constant, Declared, Spec, is_spec, ones
from stackjax.recipe.base import Coefficients, Geometry, Multiplier, Recipe
from stackjax.recipe.form import Form, FormCoefficients, Function
from stackjax.sublayer import Aux, Params, SideInputs, Sublayer

EPS = 1e-12
INWARD = frozenset({"query", "key", "value", "cross_query", "cross_key", "cross_value", "up", "gate", "unembed"})
"""Roles of matrices (in, out) that read the stream: their columns lie on the sphere."""
OUTWARD = frozenset({"out", "cross_out", "down", "embed"})
"""Roles of matrices that write to the stream: their rows lie on the sphere."""


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
    """x / |x| along an axis; zero stays zero."""
    h = upcast(x)
    return (h * jax.lax.rsqrt(jnp.sum(h * h, axis, keepdims=True) + EPS)).astype(x.dtype)


@dataclass(frozen=True, kw_only=True)
class Sphere(Form):
    """unit(alpha h + beta |a| (unit(f(gamma h)) - h)), with a learned step a (D,), and no norm anywhere else.

    Args:
        step: initial a. The parameter itself starts at 1/sqrt(D) and is multiplied by step sqrt(D): how far Adam moves
            it depends on the former alone (the paper's a_scale and a_init).

    Source: Loshchilov et al. 2024, eq. (10) and (11), arXiv:2410.01131.
    """

    step: float = 0.05

    def spec(self, d_model: int, depth: int) -> dict[str, Any]:
        return {"step": Spec(shape=(d_model,), role="residual", init=Constant(d_model**-0.5))}

    def enter(self, x: jax.Array) -> jax.Array:
        return unit(x)

    def update(self, x: jax.Array, f: Function, c: FormCoefficients, step: jax.Array) -> jax.Array:
        h = upcast(x)
        step = jnp.abs(step * (self.step * x.shape[-1] ** 0.5))
        return unit(c.alpha * h + c.beta * step * (upcast(unit(f(c.gamma * x))) - h)).astype(x.dtype)


@dataclass(frozen=True, kw_only=True)
class SphereAttention(Attention):
    """Attention between unit queries and keys, sqrt(K) (s q)·(s k), with a learned s (H, K), 1 at first.

    Source: Loshchilov et al. 2024, eq. (15) and (16), arXiv:2410.01131. Normalised after the rotation, as in its code.
    s² multiplies the query, so that it is defined for grouped keys as well.
    """

    numbers = Attention.numbers

    def spec(self, d_model: int) -> dict[str, Any]:
        width = self.head_width(d_model)
        scale = Spec(shape=(self.n_heads, width), role="norm", init=Constant(d_model**-0.5))
        return {**super().spec(d_model), "query_key_scale": scale}

    def rotate(self, params: Params, table: Any, side: str, x: jax.Array) -> jax.Array:
        x = unit(super().rotate(params, table, side, x))
        if side == "key":
            return x
        s = params["query_key_scale"] * params["query"].shape[0] ** 0.5
        return (s * s * upcast(x)).astype(x.dtype)


@dataclass(frozen=True, kw_only=True)
class SphereFeedForward(FeedForward):
    """A feed-forward network whose hidden inputs are u s_u and v s_v sqrt(D), with learned s_u, s_v (F,), 1 at first.

    Source: Loshchilov et al. 2024, eq. (20) and (21), arXiv:2410.01131, where v goes through the activation; without a
    gate there is only v.
    """

    def spec(self, d_model: int) -> dict[str, Any]:
        width = self.width(d_model)
        names = ("up", "gate") if self.gated else ("up",)
        scales = {f"{name}_scale": Spec(shape=(width,), role="norm", init=ones) for name in names}
        return {**super().spec(d_model), **scales}

    def apply(self, params: Params, x: jax.Array, side_inputs: SideInputs) -> tuple[jax.Array, Aux]:
        activated = "gate" if self.gated else "up"
        scaled = {**params, "up": params["up"] * params["up_scale"]}
        if self.gated:
            scaled["gate"] = params["gate"] * params["gate_scale"]
        scaled[activated] = scaled[activated] * x.shape[-1] ** 0.5
        return super().apply(scaled, x, side_inputs)


@dataclass(frozen=True, kw_only=True)
class SphereHead(Head):
    """A head whose logits each have a learned factor s_z, 1 at first.

    It is stored as 1/sqrt(D) of its value, so that Adam moves it sqrt(D) times as far.

    Source: Loshchilov et al. 2024, eq. (3), arXiv:2410.01131.
    """

    def spec(self, d_model: int, vocab: int) -> dict[str, Any]:
        n_outputs = vocab if self.n_outputs is None else self.n_outputs
        scale = Spec(shape=(n_outputs,), role="final_norm", init=Constant(d_model**-0.5))
        return {**super().spec(d_model, vocab), "scale": scale}

    def scaled(self, params: Params, logits: jax.Array, d_model: int) -> jax.Array:
        return logits * (d_model**0.5 * params["scale"])


@dataclass(frozen=True, kw_only=True)
class NGPT(Recipe):
    """The stream, the embeddings and the vectors of all matrices have norm 1; layers turn the stream.

    `project` puts the matrices back on the sphere after every step. No weight decay; train without warm-up.

    Args:
        residual: the form; its initial step is 0.05 at every depth, as in the paper, whose depths are 24 and 36.

    Raises:
        ValueError: sublayers it has no rule for, or with biases or norms inside, or a scale; a head with any of these.

    Source: Loshchilov et al. 2024, section 2.6, arXiv:2410.01131. The released code's rotary encoding is no rotation;
    stackjax's is.
    """

    residual: Form = Sphere()

    def adapt(self, sublayer: Sublayer, geometry: Geometry) -> Sublayer:
        settings = {field.name: getattr(sublayer, field.name) for field in fields(sublayer)}
        norms = [name for name in ("qk_norm", "value_norm", "inner_norm") if settings.get(name, NoNorm()) != NoNorm()]
        if norms or settings.get("bias") or settings.get("sinks"):
            raise ValueError(
                "nGPT has no biases, sinks or norms inside sublayers; "
                f"got bias={settings.get('bias')}, sinks={settings.get('sinks')}, norms={norms}"
            )
        if type(sublayer) is Attention:
            if sublayer.scale is not None:
                raise ValueError(
                    f"nGPT's attention scale is sqrt(K); got scale={sublayer.scale}, leave it to the recipe"
                )
            return SphereAttention(**{**settings, "scale": sublayer.head_width(geometry.d_model) ** 0.5})
        if type(sublayer) is FeedForward:
            return SphereFeedForward(**settings)
        if isinstance(sublayer, (SphereAttention, SphereFeedForward)):
            return sublayer
        raise ValueError(f"nGPT has rules for Attention and FeedForward; got {type(sublayer).__name__}")

    def adapt_head(self, head: Head, geometry: Geometry) -> Head:
        if head.bias or head.transform is not None or head.norm != NoNorm():
            raise ValueError("nGPT's output is a matrix on the sphere and a scale, without bias, dense layer or norm")
        if isinstance(head, SphereHead):
            return head
        return SphereHead(**{field.name: getattr(head, field.name) for field in fields(head)})

    def coefficients(self, geometry: Geometry) -> Coefficients:
        coefficients = super().coefficients(geometry)
        return {**coefficients, "embed": coefficients["embed"] * geometry.d_model**-0.5}

    def multiplier(self, role: str, geometry: Geometry) -> Multiplier:
        return Multiplier(weight_decay=0.0)

    def project(self, params: Params, declaration: Any) -> Params:
        def place(declared: Declared, weight: jax.Array) -> jax.Array:
            if declared.spec.role in INWARD:
                return unit(weight, -2)
            return unit(weight) if declared.spec.role in OUTWARD else weight

        return jax.tree.map(place, declaration, params, is_leaf=is_spec)
