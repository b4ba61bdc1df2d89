"""Sublayers side by side on one input, instead of one after the other."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax

from stackjax.norm import NoNorm, Norm
from stackjax.sublayer import Aux, CachedPositions, Params, SideInputs, Sublayer, add_losses, call


@dataclass(frozen=True, kw_only=True)
class Parallel(Sublayer):
    """sum of f_i(norm_i(x)).

    With `PreNorm` and no norm here this is GPT-J's and PaLM's x + attention(norm(x)) + feed_forward(norm(x)). GPT-NeoX
    has a norm for each: give `norm`, and a recipe whose own form has none before the branch
    (`PlainResidual(residual=Plain(final=LayerNorm()))`).

    Args:
        sublayers: the sublayers, with distinct names.
        norm: of each one's input, with parameters of its own.
        dropout: rate on the sum while training.

    Source: Chowdhery et al. 2022, section 2, arXiv:2204.02311; Black et al. 2022, section 2.1.2, arXiv:2204.06745.
    """

    name: str = "parallel"
    sublayers: tuple[Sublayer, ...]
    norm: Norm = NoNorm()
    numbers = ("sublayers",)

    def __post_init__(self):
        super().__post_init__()
        names = [sublayer.name for sublayer in self.sublayers]
        if not names or len(set(names)) < len(names) or "norm" in names:
            raise ValueError(f"parallel sublayers need distinct names, other than 'norm'; got {names}")

    def spec(self, d_model: int) -> dict[str, Any]:
        norms = {sublayer.name: self.norm.spec(d_model) for sublayer in self.sublayers}
        return {**{sublayer.name: sublayer.spec(d_model) for sublayer in self.sublayers}, "norm": norms}

    def shared(self, d_model: int) -> dict[str, Any]:
        return {name: specs for sublayer in self.sublayers for name, specs in sublayer.shared(d_model).items()}

    @property
    def attends(self) -> bool:
        return any(sublayer.attends for sublayer in self.sublayers)

    @property
    def reads_memory(self) -> bool:
        return any(sublayer.reads_memory for sublayer in self.sublayers)

    @property
    def mixes_tokens(self) -> bool:
        return any(sublayer.mixes_tokens for sublayer in self.sublayers)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the values inside `apply` that an edit may replace (`stackjax.edit`)."""
        return tuple(
            f"{sublayer.name}/{site}" for sublayer in self.sublayers for site in ("input", *sublayer.sites, "output")
        )

    def map(self, change: Callable[[Sublayer], Sublayer]) -> Sublayer:
        return replace(self, sublayers=tuple(sublayer.map(change) for sublayer in self.sublayers))

    def prepare(
        self,
        shared: Params,
        side_inputs: SideInputs,
        n_tokens: int,
        d_model: int,
        cached: CachedPositions | None = None,
    ) -> Any:
        return {
            sublayer.name: sublayer.prepare(shared, side_inputs.within(sublayer.name), n_tokens, d_model, cached)
            for sublayer in self.sublayers
        }

    def cache(self, batch: int, capacity: int, d_model: int, dtype: Any) -> Any:
        caches = {sublayer.name: sublayer.cache(batch, capacity, d_model, dtype) for sublayer in self.sublayers}
        return {name: cache for name, cache in caches.items() if cache is not None} or None

    def remember(self, params: Params, memory: jax.Array) -> Any:
        remembered = {sublayer.name: sublayer.remember(params[sublayer.name], memory) for sublayer in self.sublayers}
        return {name: tree for name, tree in remembered.items() if tree is not None} or None

    def apply(self, params: Params, x: jax.Array, side_inputs: SideInputs) -> tuple[jax.Array, Aux]:
        """Apply all of them.

        Args:
            params: as declared by `spec`.
            x: (..., T, D)
            side_inputs: what travels beside x.

        Returns:
            (..., T, D). Losses are summed, state is kept by sublayer; intermediates are there as `sublayer/name`, and
            under their names alone those of the first sublayer that has them.
        """
        ys = []
        loss: dict[str, jax.Array] = {}
        state: dict[str, Any] = {}
        intermediates: dict[str, Any] = {}
        for i, sublayer in enumerate(self.sublayers):
            its_inputs = replace(
                side_inputs.within(sublayer.name),
                prepared=side_inputs.prepared[sublayer.name],
                cache=None if side_inputs.cache is None else side_inputs.cache.get(sublayer.name),
                key=None if side_inputs.key is None else jax.random.fold_in(side_inputs.key, i),
            )
            normed = self.norm.apply(params["norm"][sublayer.name], x)
            y, aux = call(sublayer, params[sublayer.name], normed, its_inputs)
            ys.append(y)
            loss = add_losses(loss, aux.loss)
            for kind, value in aux.state.items():
                state[kind] = {**state.get(kind, {}), sublayer.name: value}
            by_place = {f"{sublayer.name}/{name}": value for name, value in aux.intermediates.items()}
            intermediates = {**aux.intermediates, **intermediates, **by_place}
        aux = Aux(loss=loss, state=state, intermediates=intermediates)
        return self.dropped(sum(ys[1:], ys[0]), side_inputs), aux
