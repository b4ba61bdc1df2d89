"""Sublayers side by side on one input, instead of one after the other."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax

from stackjax.norm import NoNorm, Norm
from stackjax.sublayer import Given, Out, Params, Past, Sublayer, add_losses, dropout


@dataclass(frozen=True, kw_only=True)
class Parallel(Sublayer):
    """sum of f_i(norm_i(x)).

    With `PreNorm` and no norm here this is GPT-J's and PaLM's x + attention(norm(x)) + feed_forward(norm(x)). GPT-NeoX
    has a norm for each: give `norm`, and a recipe whose own form has none before the branch
    (`PlainResidual(residual=Plain(final=LayerNorm()))`).

    Args:
        subs: the sublayers, with distinct names.
        norm: of each one's input, with parameters of its own.
        dropout: rate on the sum while training.

    Source: Chowdhery et al. 2022, section 2, arXiv:2204.02311; Black et al. 2022, section 2.1.2, arXiv:2204.06745.
    """

    name: str = "parallel"
    subs: tuple[Sublayer, ...]
    norm: Norm = NoNorm()

    def __post_init__(self):
        names = [sub.name for sub in self.subs]
        if not names or len(set(names)) < len(names) or "norm" in names:
            raise ValueError(f"parallel sublayers need distinct names, other than 'norm'; got {names}")

    def spec(self, d_model: int) -> dict[str, Any]:
        norms = {sub.name: self.norm.spec(d_model) for sub in self.subs}
        return {**{sub.name: sub.spec(d_model) for sub in self.subs}, "norm": norms}

    def shared(self, d_model: int) -> dict[str, Any]:
        return {name: specs for sub in self.subs for name, specs in sub.shared(d_model).items()}

    def each(self, change: Callable[[Sublayer], Sublayer]) -> Sublayer:
        return replace(self, subs=tuple(sub.each(change) for sub in self.subs))

    def prepare(self, shared: Params, given: Given, n_tokens: int, d_model: int, past: Past | None = None) -> Any:
        return {sub.name: sub.prepare(shared, given, n_tokens, d_model, past) for sub in self.subs}

    def cache(self, batch: int, slots: int, d_model: int, dtype: Any) -> Any:
        caches = {sub.name: sub.cache(batch, slots, d_model, dtype) for sub in self.subs}
        return {name: cache for name, cache in caches.items() if cache is not None} or None

    def remember(self, params: Params, memory: jax.Array) -> Any:
        kept = {sub.name: sub.remember(params[sub.name], memory) for sub in self.subs}
        return {name: tree for name, tree in kept.items() if tree is not None} or None

    def apply(self, params: Params, x: jax.Array, given: Given) -> tuple[jax.Array, Out]:
        """Apply all of them.

        Args:
            params: as declared by `spec`.
            x: (..., T, D)
            given: what travels beside x.

        Returns:
            (..., T, D). Losses are summed, state is kept by sublayer; what has been seen is put together, and where
            two have seen something of the same name, the first one's counts.
        """
        ys = []
        loss: dict[str, jax.Array] = {}
        state: dict[str, Any] = {}
        seen: dict[str, Any] = {}
        for i, sub in enumerate(self.subs):
            own = replace(
                given,
                table=given.table[sub.name],
                cache=None if given.cache is None else given.cache.get(sub.name),
                key=None if given.key is None else jax.random.fold_in(given.key, i),
            )
            y, out = sub.apply(params[sub.name], self.norm.apply(params["norm"][sub.name], x), own)
            ys.append(y)
            loss = add_losses(loss, out.loss)
            for kind, value in out.state.items():
                state[kind] = {**state.get(kind, {}), sub.name: value}
            seen = {**out.seen, **seen}
        return dropout(given.key, sum(ys[1:], ys[0]), self.dropout), Out(loss=loss, state=state, seen=seen)
