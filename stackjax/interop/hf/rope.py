"""Rotary positions as a config.json asks for them."""

import math
from typing import Any

from stackjax.interop.hf.config import Config
from stackjax.position import Rotary, rotary_scaling
from stackjax.position.rotary_scaling import Scaling


def rotary(config: Config, *, base: float = 10_000.0, **more: Any) -> Rotary:
    """The rotary encoding that a config asks for.

    Args:
        config: read for rope_parameters, or for rope_theta and rope_scaling, which came before it.
        base: where the config gives none.
        **more: other fields of `Rotary`.
    """
    return rotary_of(parameters(config, base=base), config, base=base, **more)


def parameters(config: Config, *, base: float = 10_000.0) -> dict[str, Any]:
    """rope_parameters, or what stood for it."""
    older = {"rope_theta": config.take("rope_theta", base), **(config.take("rope_scaling", None) or {})}
    return config.take("rope_parameters", None) or older


def rotary_of(given: dict[str, Any] | None, config: Config, *, base: float = 10_000.0, **more: Any) -> Rotary:
    """The rotary encoding of one kind of layer, from its own parameters.

    Raises:
        ValueError: a type, or a parameter of it, that is not supported.
    """
    if given is None:
        raise ValueError("config.json lacks rope_parameters for one of its kinds of layers")
    left = dict(given)
    older = left.pop("type", "default")
    kind = left.pop("rope_type", older)
    base = left.pop("rope_theta", base)
    scalings = {"default": _plain, "linear": _linear, "dynamic": _dynamic, "yarn": _yarn, "llama3": _llama3}
    if kind not in scalings:
        raise ValueError(f"config.json asks for rotary positions of type {kind!r}; supported are {', '.join(scalings)}")
    scaling = scalings[kind](left, config.take("max_position_embeddings", None))
    if left:
        raise ValueError(f"config.json gives rotary positions of type {kind!r} {left}, which is not supported")
    return Rotary(base=base, scaling=scaling, **more)


def mscale(factor: float, weight: float) -> float:
    """YaRN's 0.1 weight ln(factor) + 1; 1 where nothing is stretched."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def _take(left: dict[str, Any], name: str) -> Any:
    if name not in left:
        raise ValueError(f"config.json lacks {name} among its rope_parameters")
    return left.pop(name)


def _plain(left: dict[str, Any], longest: int) -> Scaling:
    return Scaling()


def _linear(left: dict[str, Any], longest: int) -> Scaling:
    return rotary_scaling.Linear(factor=_take(left, "factor"))


def _dynamic(left: dict[str, Any], longest: int) -> Scaling:
    return rotary_scaling.DynamicNTK(factor=_take(left, "factor"), original_length=longest)


def _llama3(left: dict[str, Any], longest: int) -> Scaling:
    return rotary_scaling.Llama3(
        factor=_take(left, "factor"),
        original_length=left.pop("original_max_position_embeddings", longest),
        low=_take(left, "low_freq_factor"),
        high=_take(left, "high_freq_factor"),
    )


def _yarn(left: dict[str, Any], longest: int) -> Scaling:
    original = left.pop("original_max_position_embeddings", longest)
    factor = left.pop("factor", None) or longest / original
    attention = left.pop("attention_factor", None)
    own, all_dims = left.pop("mscale", None), left.pop("mscale_all_dim", None)
    if attention is None and own and all_dims:
        attention = mscale(factor, own) / mscale(factor, all_dims)
    return rotary_scaling.YaRN(
        factor=factor,
        original_length=original,
        beta_fast=left.pop("beta_fast", None) or 32.0,
        beta_slow=left.pop("beta_slow", None) or 1.0,
        truncate=left.pop("truncate", True),
        attention_factor=attention,
    )
