"""Mixture of experts: a router sends each token to a few of many feed-forward networks.

`route` decides, `run_ragged` and its reference `run_dense` compute, `balance_loss` and `z_loss` keep the router well,
and `MixtureOfExperts` is the sublayer. No token is ever dropped, so decoding equals the full forward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from stackjax.check import positive
from stackjax.feed_forward import Activation, identity, silu
from stackjax.norm import NoNorm, Norm, upcast
from stackjax.parameter import FanIn, Spec, is_spec, linear, zeros
from stackjax.sublayer import Aux, Params, SideInputs, Sublayer

Score = Literal["softmax", "sigmoid"]
Dispatch = Literal["ragged", "dense"]


def route(
    logits: jax.Array,
    bias: jax.Array | None = None,
    *,
    top_k: int,
    score: Score = "softmax",
    normalised: bool = True,
    scale: float = 1.0,
    n_groups: int = 1,
    top_groups: int = 1,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Choose the top_k experts by score + bias, and weigh them by their scores.

    Args:
        logits: (N, E), of N tokens.
        bias: (E,), decides who is chosen and does not change the weights; None for none.
        top_k: experts per token.
        score: softmax over the experts, or each expert's sigmoid.
        normalised: whether the chosen scores are divided by their sum.
        scale: factor on the weights.
        n_groups: groups that the experts fall into, in order.
        top_groups: groups in which a token may choose: those with the highest sum of their two best scores.

    Returns:
        Weights (N, top_k), experts (N, top_k), and the probabilities (N, E): all scores, divided by their sum.

    Source: Shazeer et al. 2017, arXiv:1701.06538; sigmoid, bias and groups: DeepSeek-AI 2024, eq. (12) to (16),
    arXiv:2412.19437.
    """
    chex.assert_rank(logits, 2)
    n_tokens, n_experts = logits.shape
    scores = jax.nn.softmax(logits, -1) if score == "softmax" else jax.nn.sigmoid(logits)
    wanted = jax.lax.stop_gradient(scores if bias is None else scores + bias)
    if n_groups > 1:
        grouped = wanted.reshape(n_tokens, n_groups, -1)
        group_score = jnp.sum(jax.lax.top_k(grouped, 2)[0], -1)
        best = jax.lax.top_k(group_score, top_groups)[1]
        open_groups = jnp.any(best[:, :, None] == jnp.arange(n_groups), 1)
        wanted = jnp.where(open_groups[:, :, None], grouped, -jnp.inf).reshape(n_tokens, n_experts)
    chosen = jax.lax.top_k(wanted, top_k)[1]
    weights = jnp.take_along_axis(scores, chosen, -1)
    if normalised:
        weights = weights / (jnp.sum(weights, -1, keepdims=True) + 1e-20)
    return scale * weights, chosen, scores / jnp.sum(scores, -1, keepdims=True)


def run_ragged(
    params: Params,
    x: jax.Array,
    weights: jax.Array,
    chosen: jax.Array,
    *,
    activation: Activation = silu,
    up_activation: Activation = identity,
    norm: Norm = NoNorm(),
) -> jax.Array:
    """Sum over a token's experts of weight * gated feed-forward, each expert on its own tokens alone.

    Tokens are sorted by expert, so that each matrix of an expert is one block of a `jax.lax.ragged_dot`.

    Args:
        params: gate (E, D, F), up (E, D, F), down (E, F, D); perhaps gate_bias (E, F), up_bias and down_bias (E, D);
            inner_norm for `norm`, leading axis E.
        x: (N, D)
        weights: (N, top_k)
        chosen: (N, top_k) experts.
        activation: elementwise, on the gate.
        up_activation: elementwise, on what the gate multiplies.
        norm: on the hidden layer.

    Returns:
        (N, D), dtype of x.
    """
    n_tokens, top_k = chosen.shape
    expert = chosen.reshape(-1)
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=params["up"].shape[0]).astype(jnp.int32)

    def dot(rows: jax.Array, name: str) -> jax.Array:
        y = jax.lax.ragged_dot(rows, params[name].astype(x.dtype), sizes)
        bias = params.get(f"{name}_bias")
        return y if bias is None else y + bias.astype(x.dtype)[expert[order]]

    rows = x[order // top_k]
    hidden = activation(dot(rows, "gate")) * up_activation(dot(rows, "up"))
    norm_params = jax.tree.map(lambda p: p[expert[order]], params.get("inner_norm", {}))
    y = dot(jax.vmap(norm.apply)(norm_params, hidden), "down")
    back = jnp.argsort(order)
    return jnp.einsum("nkd,nk->nd", y[back].reshape(n_tokens, top_k, -1), weights.astype(x.dtype))


def run_dense(
    params: Params,
    x: jax.Array,
    weights: jax.Array,
    chosen: jax.Array,
    *,
    activation: Activation = silu,
    up_activation: Activation = identity,
    norm: Norm = NoNorm(),
) -> jax.Array:
    """Run every expert on every token: the plain reference, and the faster one without a ragged kernel.

    Args:
        params: as `run_ragged` takes them, and so are the others.
        x: (N, D)
        weights: (N, top_k)
        chosen: (N, top_k)
        activation: on the gate.
        up_activation: on what the gate multiplies.
        norm: on the hidden layer.

    Returns:
        (N, D), dtype of x.
    """
    each = jnp.sum(weights[:, :, None] * (chosen[:, :, None] == jnp.arange(params["up"].shape[0])), 1).astype(x.dtype)

    def into(name: str) -> jax.Array:
        y = jnp.einsum("nd,edf->enf", x, params[name].astype(x.dtype))
        bias = params.get(f"{name}_bias")
        return y if bias is None else y + bias.astype(x.dtype)[:, None]

    hidden = activation(into("gate")) * up_activation(into("up"))
    hidden = jax.vmap(norm.apply)(params.get("inner_norm", {}), hidden)
    y = jnp.einsum("enf,ne,efd->nd", hidden, each, params["down"].astype(x.dtype))
    bias = params.get("down_bias")
    return y if bias is None else y + each @ bias.astype(x.dtype)


def expert_hits(chosen: jax.Array, counted: jax.Array, n_experts: int) -> jax.Array:
    """Number of choices that fall on each expert, (E,).

    Args:
        chosen: (N, top_k) experts.
        counted: (N,) booleans, False for padding.
        n_experts: E.
    """
    return jnp.sum((chosen[:, :, None] == jnp.arange(n_experts)) & counted[:, None, None], (0, 1))


def balance_loss(load: jax.Array, probabilities: jax.Array, counted: jax.Array) -> jax.Array:
    """E sum_e load_e mean probability_e: 1 when all experts are used alike.

    Args:
        load: (E,) share of all choices that falls on each expert; carries no gradient.
        probabilities: (N, E)
        counted: (N,) booleans, False for padding.

    Source: Fedus et al. 2021, eq. (4), arXiv:2101.03961, with the share of all top_k choices as the load.
    """
    n_counted = jnp.maximum(jnp.sum(counted), 1)
    mean = jnp.sum(jnp.where(counted[:, None], probabilities, 0), 0) / n_counted
    return load.shape[0] * jnp.sum(load * mean)


def z_loss(logits: jax.Array, counted: jax.Array) -> jax.Array:
    """Mean of (log sum_e exp logit_e)² over the counted tokens.

    Source: Zoph et al. 2022 (ST-MoE), eq. (5), arXiv:2202.08906.
    """
    square = jnp.square(jax.nn.logsumexp(logits, -1))
    return jnp.sum(jnp.where(counted, square, 0)) / jnp.maximum(jnp.sum(counted), 1)


@dataclass(frozen=True, kw_only=True)
class MixtureOfExperts(Sublayer):
    """sum over the chosen experts of weight * gated feed-forward(x), plus a shared feed-forward that all tokens pass.

    Args:
        n_experts: E.
        top_k: experts per token.
        d_hidden: F, of one expert.
        activation: elementwise, on the gate.
        up_activation: elementwise, on what the gate multiplies.
        bias: whether the router and the experts' matrices have biases (gpt-oss).
        shared_expert: a feed-forward beside the routed experts; None for none. Several shared experts are one that is
            several times as wide.
        score: see `route`.
        normalised: see `route`.
        scale: see `route`.
        n_groups: see `route`.
        top_groups: see `route`.
        balance_loss: factor on the loss `balance`; 0 for none.
        z_loss: factor on the loss `router_z`; 0 for none.
        bias_rate: step of the balancing bias, a parameter of role `statistic` that goes up for experts with less than
            their share and down for the others (Wang et al. 2024, algorithm 1, arXiv:2408.15664); None for no bias.
        inner_norm: on each expert's hidden layer, with parameters for each (sub-LN).
        dispatch: how the experts run; None takes "dense" on a CPU, whose ragged_dot computes more, else "ragged".
        dropout: rate on the output while training.

    Raises:
        ValueError: numbers of experts and groups that do not fit together.
    """

    name: str = "experts"
    n_experts: int
    top_k: int = 2
    d_hidden: int
    activation: Activation = silu
    up_activation: Activation = identity
    bias: bool = False
    shared_expert: Sublayer | None = None
    score: Score = "softmax"
    normalised: bool = True
    scale: float = 1.0
    n_groups: int = 1
    top_groups: int = 1
    balance_loss: float = 0.01
    z_loss: float = 0.001
    bias_rate: float | None = None
    inner_norm: Norm = NoNorm()
    dispatch: Dispatch | None = None

    def __post_init__(self):
        super().__post_init__()
        positive(self, "n_experts", "d_hidden", "scale", "bias_rate")
        if self.n_groups < 1 or self.n_experts % self.n_groups or (self.n_groups > 1 and self.group_size < 2):
            raise ValueError(
                "n_groups must divide n_experts into groups of two or more; "
                f"got n_experts={self.n_experts}, n_groups={self.n_groups}"
            )
        if not 1 <= self.top_groups <= self.n_groups:
            raise ValueError(f"top_groups must be 1 to n_groups={self.n_groups}; got {self.top_groups}")
        if not 1 <= self.top_k <= self.top_groups * self.group_size:
            raise ValueError(
                f"top_k must be 1 to {self.top_groups * self.group_size}, the experts of the open groups; "
                f"got {self.top_k}"
            )
        if self.top_k == 1 and self.normalised:
            raise ValueError(
                "the normalised weight of a single expert is always 1, so the router could not learn; use "
                "normalised=False with top_k=1"
            )

    @property
    def mixes_tokens(self) -> bool:
        return self.shared_expert is not None and self.shared_expert.mixes_tokens

    @property
    def group_size(self) -> int:
        """Experts in a group."""
        return self.n_experts // self.n_groups

    def spec(self, d_model: int) -> dict[str, Any]:
        wide_in, wide_out = (self.n_experts, d_model, self.d_hidden), (self.n_experts, self.d_hidden, d_model)
        specs: dict[str, Any] = {
            "router": Spec(shape=(d_model, self.n_experts), role="router", init=FanIn()),
            "gate": Spec(shape=wide_in, role="gate"),
            "up": Spec(shape=wide_in, role="up"),
            "down": Spec(shape=wide_out, role="down"),
            "inner_norm": jax.tree.map(
                lambda spec: replace(spec, shape=(self.n_experts, *spec.shape)),
                self.inner_norm.spec(self.d_hidden),
                is_leaf=is_spec,
            ),
        }
        if self.bias:
            for name in ("gate", "up", "down"):
                shape = (self.n_experts, specs[name].shape[-1])
                specs[f"{name}_bias"] = Spec(shape=shape, role="bias", init=zeros)
            specs["router_bias"] = Spec(shape=(self.n_experts,), role="bias", init=zeros)
        if self.bias_rate is not None:
            specs["bias"] = Spec(shape=(self.n_experts,), role="statistic", init=zeros)
        if self.shared_expert is not None:
            specs["shared"] = self.shared_expert.spec(d_model)
        return specs

    def map(self, change: Callable[[Sublayer], Sublayer]) -> Sublayer:
        inner = None if self.shared_expert is None else self.shared_expert.map(change)
        return change(replace(self, shared_expert=inner))

    def apply(self, params: Params, x: jax.Array, side_inputs: SideInputs) -> tuple[jax.Array, Aux]:
        """Route and compute.

        Args:
            params: as declared by `spec`.
            x: (..., T, D)
            side_inputs: what travels beside x; padded tokens do not count in losses and load.

        Returns:
            (..., T, D). Loss: `balance`, `router_z`. State: the new `bias` under `statistic`. Intermediates:
            `probabilities` (N, E), `load` (E,) and `counted` (N,), with all tokens as one N.
        """
        chex.assert_shape(x, (..., params["router"].shape[0]))
        rows = x.reshape(-1, x.shape[-1])
        counted = jnp.ones(x.shape[:-1], bool)
        if side_inputs.position is not None:
            counted = jnp.broadcast_to(side_inputs.position["index"] >= 0, x.shape[:-1])
        counted = counted.reshape(-1)

        logits = linear(params, "router", upcast(rows))
        weights, chosen, probabilities = route(
            logits,
            params.get("bias"),
            top_k=self.top_k,
            score=self.score,
            normalised=self.normalised,
            scale=self.scale,
            n_groups=self.n_groups,
            top_groups=self.top_groups,
        )
        dense = jax.default_backend() == "cpu" if self.dispatch is None else self.dispatch == "dense"
        run = run_dense if dense else run_ragged
        options = {"activation": self.activation, "up_activation": self.up_activation, "norm": self.inner_norm}
        y = run(params, rows, weights, chosen, **options).reshape(x.shape)
        if self.shared_expert is not None:
            key = None if side_inputs.key is None else jax.random.fold_in(side_inputs.key, 1)
            y = y + self.shared_expert.apply(params["shared"], x, replace(side_inputs, key=key))[0]
        y = self.dropped(y, side_inputs)

        hits = expert_hits(chosen, counted, self.n_experts)
        load = hits / jnp.maximum(jnp.sum(hits), 1)
        loss, state = {}, {}
        if self.balance_loss:
            loss["balance"] = self.balance_loss * balance_loss(load, probabilities, counted)
        if self.z_loss:
            loss["router_z"] = self.z_loss * z_loss(logits, counted)
        if self.bias_rate is not None:
            step = self.bias_rate * jnp.sign(jnp.sum(hits) - self.n_experts * hits)
            state["statistic"] = {"bias": params["bias"] + step.astype(params["bias"].dtype)}
        return y, Aux(
            loss=loss, state=state, intermediates={"probabilities": probabilities, "load": load, "counted": counted}
        )
