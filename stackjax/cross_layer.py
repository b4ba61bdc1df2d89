"""Attention that reads the keys and values of an earlier layer, and makes and keeps none of its own.

Every second layer with its own keys, one of six with them, or one for the whole upper half of a stack: which layers
share is said by the pattern of layers. The cache holds keys and values of the layers that make them alone:

    >>> import jax, jax.numpy as jnp, stackjax as sj
    >>> first = sj.Layer(sublayers=(sj.Attention(n_heads=4, n_kv_heads=2), sj.FeedForward()))
    >>> second = sj.Layer(sublayers=(sj.CrossLayerAttention(n_heads=4, n_kv_heads=2), sj.FeedForward()))
    >>> stack = sj.Stack.of(first, second, depth=6, d_model=16, recipe=sj.recipe.PreNorm())
    >>> stack.segments[0].n
    3
    >>> position = {"index": jnp.arange(4)[None]}
    >>> params = stack.init(jax.random.key(0))
    >>> cache = sj.cache.empty(stack, params, sj.SideInputs(position=position), 4)
    >>> [sorted(kept) for kept in cache.segments["0"].values()]
    [['attention'], []]
"""

from dataclasses import dataclass
from typing import Any

import jax

from stackjax.attention import Attention
from stackjax.dot_product import joined
from stackjax.norm import NoNorm
from stackjax.sublayer import Params, SideInputs


@dataclass(frozen=True, kw_only=True)
class CrossLayerAttention(Attention):
    """Multi-head attention with queries of its own and the keys and values of an earlier layer.

    They are those of the last layer before this one whose sublayer `keys_of` is an `Attention` that makes its own,
    rotated and normed there, with those in its cache while decoding; so the sizes of heads, the window and the chunk
    must be those of that layer.

    Args:
        keys_of: name of the sublayer.

    Raises:
        ValueError: choices that concern keys and values, or those of `Attention` that do not fit together.

    Source: Brandon et al. 2024, section 2, arXiv:2405.12981; one layer for all of the upper half: Sun et al. 2024
    (YOCO), arXiv:2405.05254.
    """

    keys_of: str = "attention"

    def __post_init__(self):
        super().__post_init__()
        made = {"cross": self.cross, "transform_value": self.transform_value is not None}
        made |= {"value_norm": self.value_norm != NoNorm(), "bias": bool({"key", "value"} & set(self.bias))}
        if chosen := [name for name, choice in made.items() if choice]:
            raise ValueError(
                f"the keys and values of CrossLayerAttention are made in an earlier layer, so {', '.join(chosen)} must "
                f"be chosen there; got {', '.join(f'{name}={getattr(self, name)!r}' for name in chosen)}"
            )

    @property
    def borrows(self) -> tuple[tuple[str, str], ...]:
        return (self.keys_of, "attended_key"), (self.keys_of, "attended_value")

    def spec(self, d_model: int) -> dict[str, Any]:
        elsewhere = ("key", "value", "key_norm", "value_norm")
        return {name: spec for name, spec in super().spec(d_model).items() if name not in elsewhere}

    def cache(self, batch: int, capacity: int, d_model: int, dtype: Any) -> Any:
        super().cache(batch, capacity, d_model, dtype)
        return None

    def keys_values(self, params: Params, rows: jax.Array, side_inputs: SideInputs, batch: int) -> tuple[Any, ...]:
        key, value = (side_inputs.borrowed.get(place) for place in self.borrows)
        if key is None or value is None:
            raise ValueError(
                f"{self.name!r} reads the keys and values of {self.keys_of!r}, and no earlier layer of the stack has "
                "an Attention of that name that makes its own"
            )
        n_keys = side_inputs.prepared["where"][1]["index"].shape[-1]
        expected = (n_keys, self.groups, self.head_width(rows.shape[-1]))
        if (shape := joined(key).shape[1:]) != expected:
            raise ValueError(
                f"{self.name!r} must have the n_kv_heads, d_head, window and chunk of {self.keys_of!r}, whose keys it "
                f"reads; got keys (S, G, K) of {shape}, expected {expected}"
            )
        return key, value, {}, {"value": value}
