"""Rotary positions as a config.json asks for them."""

import math
from collections.abc import Mapping
from typing import Any

from stackjax.interop.hf.config import Config
from stackjax.position import Rotary, rotary_scaling
from stackjax.position.rotary_scaling import Scaling

ORIGINAL = "original_max_position_embeddings"


def rotary(
    config: Config,
    *,
    d_head: int | None = None,
    kind: str | None = None,
    base: float = 10_000.0,
    share: float = 1.0,
    older: Mapping[str, str] | None = None,
    scaling: str | None = "rope_scaling",
    default: Mapping[str, Any] | None = None,
    **more: Any,
) -> Rotary:
    """The rotary encoding that a config asks for.

    Args:
        config: read for rope_parameters, and for the options that came before it.
        d_head: K, of which a share may turn; None where all of it does.
        kind: of the layers, where rope_parameters has an entry for each kind.
        base: where the config gives none.
        share: of the head's features that turn, where the config gives none.
        older: options that came before rope_parameters, by what stands for them there, where the format has names of
            its own for the base (rope_theta) or the share (partial_rotary_factor).
        scaling: the older option with the scaling; None where there was none for this kind.
        default: rope_parameters where the config has neither these nor a scaling; None for plain positions.
        **more: other fields of `Rotary`.

    Raises:
        ValueError: two sources that differ; a type, or a parameter of it, that is not supported; no length where the
            type needs one.
    """
    given = parameters(config, kind=kind, older=older, scaling=scaling)
    if default and config.take("rope_parameters", None) is None and not (scaling and config.take(scaling, None)):
        given = {**default, **given}
    base = given.pop("rope_theta", base)
    share = given.pop("partial_rotary_factor", share)
    if share != 1:
        if d_head is None:
            raise ValueError(f"config.json has partial_rotary_factor={share!r}, which is not supported here; only 1 is")
        more["d_rotary"] = int(share * d_head)
    name = given.pop("rope_type", "default")
    if name not in SCALINGS:
        raise ValueError(f"config.json asks for rotary positions of type {name!r}; supported are {', '.join(SCALINGS)}")
    stated = name in ("default", "linear") or {"factor", ORIGINAL} <= given.keys()
    longest = config.take("max_position_embeddings", None)
    if not stated and longest is None:
        raise ValueError(f"config.json lacks max_position_embeddings, which rotary positions of type {name!r} need")
    stretched = SCALINGS[name](given, longest)
    if given:
        raise ValueError(f"config.json gives rotary positions of type {name!r} {given}, which is not supported")
    return Rotary(base=base, scaling=stretched, **more)


def parameters(
    config: Config,
    *,
    kind: str | None = None,
    older: Mapping[str, str] | None = None,
    scaling: str | None = "rope_scaling",
) -> dict[str, Any]:
    """The parameters of one kind of layer, from rope_parameters and from the options that came before it.

    Args:
        config: read for them.
        kind: see `rotary`.
        older: see `rotary`.
        scaling: see `rotary`.

    Raises:
        ValueError: two sources that differ. `transformers` takes one of them without a word.
    """
    given = config.take("rope_parameters", None) or {}
    if given and kind is not None:
        if given.get(kind) is None:
            raise ValueError(f"config.json lacks rope_parameters for its layers of kind {kind}; it has {given}")
        given = given[kind]
    given, scaled = _named(given), _named((scaling and config.take(scaling, None)) or {})
    if given and scaled and given != scaled:
        raise ValueError(
            f"config.json has rope_parameters={given} and {scaling}={scaled}, which differ; keep the one that is meant"
        )
    merged = given or scaled
    outside = {name: name for name in ("rope_theta", "partial_rotary_factor")} | dict(older or {})
    if merged.get("rope_type") != "dynamic":
        outside[ORIGINAL] = ORIGINAL
    for name, option in outside.items():
        value = config.take(option, None)
        if value is not None and merged.setdefault(name, value) != value:
            source = "rope_parameters" if given else scaling
            raise ValueError(
                f"config.json has {option}={value!r} and, in {source}, {name}={merged[name]!r}; keep the one that is "
                "meant"
            )
    return merged


def mscale(factor: float, weight: float) -> float:
    """YaRN's 0.1 weight ln(factor) + 1; 1 where nothing is stretched."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def _named(given: dict[str, Any]) -> dict[str, Any]:
    """A copy in which the type goes by its present name."""
    given = dict(given)
    older = given.pop("type", None)
    if older is not None and given.setdefault("rope_type", older) != older:
        raise ValueError(
            f"config.json asks for rotary positions of type={older!r} and of rope_type={given['rope_type']!r}; keep "
            "the one that is meant"
        )
    return given


def _take(given: dict[str, Any], name: str) -> Any:
    if name not in given:
        raise ValueError(f"config.json lacks {name} among its rope_parameters")
    return given.pop(name)


def _plain(given: dict[str, Any], longest: int) -> Scaling:
    given.pop(ORIGINAL, None)
    return Scaling()


def _linear(given: dict[str, Any], longest: int) -> Scaling:
    given.pop(ORIGINAL, None)
    return rotary_scaling.Linear(factor=_take(given, "factor"))


def _dynamic(given: dict[str, Any], longest: int) -> Scaling:
    return rotary_scaling.DynamicNTK(factor=_take(given, "factor"), original_length=longest)


def _llama3(given: dict[str, Any], longest: int) -> Scaling:
    return rotary_scaling.Llama3(
        factor=_take(given, "factor"),
        original_length=given.pop(ORIGINAL, longest),
        low=_take(given, "low_freq_factor"),
        high=_take(given, "high_freq_factor"),
    )


def _yarn(given: dict[str, Any], longest: int) -> Scaling:
    original = given.pop(ORIGINAL, longest)
    factor = given.pop("factor", None) or longest / original
    attention = given.pop("attention_factor", None)
    weight, weight_of_all = given.pop("mscale", None), given.pop("mscale_all_dim", None)
    if attention is None and weight and weight_of_all:
        attention = mscale(factor, weight) / mscale(factor, weight_of_all)
    return rotary_scaling.YaRN(
        factor=factor,
        original_length=original,
        beta_fast=given.pop("beta_fast", None) or 32.0,
        beta_slow=given.pop("beta_slow", None) or 1.0,
        truncate=given.pop("truncate", True),
        attention_factor=attention,
    )


def _longrope(given: dict[str, Any], longest: int) -> Scaling:
    original = given.pop(ORIGINAL, longest)
    return rotary_scaling.LongRoPE(
        factor=given.pop("factor", None) or longest / original,
        original_length=original,
        short=tuple(_take(given, "short_factor")),
        long=tuple(_take(given, "long_factor")),
        attention_factor=given.pop("attention_factor", None),
    )


SCALINGS = {
    "default": _plain,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "su": _longrope,
}
