"""Rotary frequencies stretched for contexts longer than those trained on.

Each description turns (R, base, length) into R/2 frequencies, and may scale cosine and sine by a factor, so that the
logits of the rotated features get its square.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stackjax.check import positive
from stackjax.description import Description


def exponents(width: int) -> Float[Array, " {width}//2"]:
    """2k / R for k = 0 .. R/2 - 1."""
    return jnp.arange(0, width, 2, dtype=float) / width


def _exponent(width: int) -> float:
    """R / (R - 2)."""
    if width <= 2:
        raise ValueError(f"NTK scaling stretches all pairs but the first; got R={width}, a single pair")
    return width / (width - 2)


@dataclass(frozen=True, kw_only=True)
class Scaling(Description):
    """base^(-2k/R): no scaling. A scaling of your own overrides `frequencies` and perhaps `attention`."""

    @property
    def attention(self) -> float:
        """Factor on cosine and sine."""
        return 1.0

    def frequencies(self, width: int, base: float, length: jax.Array) -> jax.Array:
        """Angles per unit of index.

        Args:
            width: R, even.
            base: of the frequencies.
            length: (B or 1, 1) tokens so far, the largest index of each row plus one.

        Returns:
            (R/2,), or (B or 1, R/2) where they depend on the length.
        """
        return base ** -exponents(width)


@dataclass(frozen=True, kw_only=True)
class Linear(Scaling):
    """base^(-2k/R) / factor: positions are interpolated.

    Source: Chen et al. 2023, eq. (4), arXiv:2306.15595.
    """

    factor: float

    def __post_init__(self):
        positive(self, "factor")

    def frequencies(self, width: int, base: float, length: jax.Array) -> jax.Array:
        return super().frequencies(width, base, length) / self.factor


@dataclass(frozen=True, kw_only=True)
class NTK(Scaling):
    """(base factor^(R/(R-2)))^(-2k/R): the slowest frequency is divided by the factor, the fastest stays.

    Source: Peng et al. 2023, section 3.1, arXiv:2309.00071.
    """

    factor: float

    def __post_init__(self):
        positive(self, "factor")

    def frequencies(self, width: int, base: float, length: jax.Array) -> jax.Array:
        return (base * self.factor ** _exponent(width)) ** -exponents(width)


@dataclass(frozen=True, kw_only=True)
class DynamicNTK(Scaling):
    """NTK with factor s = factor n / N - (factor - 1) for n > N tokens; no scaling up to N.

    The length is that of each row, not of the longest in the batch. Cached keys stay as they were turned when they
    came, so past N step-by-step decoding is not the full forward pass (transformers has the same).

    Args:
        factor: of the growth; 1 makes s = n / N.
        original_length: N, the context trained on.

    Source: Peng et al. 2023, section 3.3, arXiv:2309.00071; with a factor: transformers' `dynamic`.
    """

    factor: float = 1.0
    original_length: int

    def __post_init__(self):
        positive(self, "factor", "original_length")

    def frequencies(self, width: int, base: float, length: jax.Array) -> jax.Array:
        n = jnp.maximum(length, self.original_length).astype(float) / self.original_length
        return (base * (self.factor * n - (self.factor - 1)) ** _exponent(width)) ** -exponents(width)


@dataclass(frozen=True, kw_only=True)
class YaRN(Scaling):
    """theta_k ((1 - g_k) + g_k / factor): frequencies that turn often stay, those that turn seldom are interpolated.

    g is a ramp over k, from the pair that turns `beta_fast` times within the original context to the one that turns
    `beta_slow` times. Cosine and sine are multiplied by 0.1 ln(factor) + 1.

    Args:
        factor: new over original context.
        original_length: N, the context trained on.
        beta_fast: turns above which a frequency stays.
        beta_slow: turns below which a frequency is divided by the factor.
        truncate: whether the ends of the ramp are rounded outwards to whole pairs (gpt-oss does not).
        attention_factor: in place of 0.1 ln(factor) + 1 (DeepSeek: the ratio of its two mscales).

    Source: Peng et al. 2023, section 3.2 and eq. (22), arXiv:2309.00071, and the released code.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None

    def __post_init__(self):
        positive(self, "factor", "original_length", "beta_fast", "beta_slow")

    @property
    def attention(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0

    def frequencies(self, width: int, base: float, length: jax.Array) -> jax.Array:
        def pair(turns: float) -> float:
            return width * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        ramp = jnp.clip((jnp.arange(width // 2) - low) / max(high - low, 1e-3), 0, 1)
        return super().frequencies(width, base, length) * (1 - ramp + ramp / self.factor)


@dataclass(frozen=True, kw_only=True)
class Llama3(Scaling):
    """Short wavelengths stay, long ones are multiplied by the factor, with a blend between.

    With t = N / wavelength turns within the original context and u = (t - low) / (high - low), clipped to [0, 1]:
    theta (u + (1 - u) / factor).

    Args:
        factor: on the long wavelengths.
        original_length: N, the context trained on.
        low: turns below which a frequency is divided by the factor.
        high: turns above which a frequency stays.

    Source: Grattafiori et al. 2024, arXiv:2407.21783, and the released code of Llama 3.1.
    """

    factor: float = 8.0
    original_length: int = 8192
    low: float = 1.0
    high: float = 4.0

    def __post_init__(self):
        positive(self, "factor", "original_length")

    def frequencies(self, width: int, base: float, length: jax.Array) -> jax.Array:
        plain = super().frequencies(width, base, length)
        turns = self.original_length * plain / (2 * math.pi)
        keep = jnp.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return plain * (keep + (1 - keep) / self.factor)


@dataclass(frozen=True, kw_only=True)
class LongRoPE(Scaling):
    """theta_k / f_k with searched factors f: one set up to the original context, another beyond.

    Cosine and sine are multiplied by sqrt(1 + ln(factor) / ln(N)). As for DynamicNTK, rows change sets when they grow
    past N, and cached keys do not.

    Args:
        factor: new over original context.
        original_length: N.
        short: (R/2) factors up to N.
        long: (R/2) factors beyond N.
        attention_factor: in place of sqrt(1 + ln(factor) / ln(N)).

    Source: Ding et al. 2024, arXiv:2402.13753, and the released code of Phi-3.
    """

    factor: float
    original_length: int
    short: tuple[float, ...]
    long: tuple[float, ...]
    attention_factor: float | None = None

    def __post_init__(self):
        positive(self, "factor", "original_length")

    @property
    def attention(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_length)) if self.factor > 1 else 1.0

    def frequencies(self, width: int, base: float, length: jax.Array) -> jax.Array:
        if not len(self.short) == len(self.long) == width // 2:
            raise ValueError(
                f"LongRoPE needs a factor for each of the {width // 2} pairs; got {len(self.short)} short and "
                f"{len(self.long)} long"
            )
        factors = jnp.where(length > self.original_length, jnp.asarray(self.long), jnp.asarray(self.short))
        return super().frequencies(width, base, length) / factors


@dataclass(frozen=True, kw_only=True)
class Proportional(Scaling):
    """Only the fastest share of the pairs turns, at the frequencies they have among all; the others stay as they are.

    Unlike `d_rotary`, which gives the features that turn all frequencies from 1 to 1/base.

    Args:
        share: of the pairs.
        factor: divides the frequencies.

    Source: transformers' `proportional` (Gemma 4).
    """

    share: float
    factor: float = 1.0

    def __post_init__(self):
        positive(self, "share", "factor")

    def frequencies(self, width: int, base: float, length: jax.Array) -> jax.Array:
        turning = jnp.arange(width // 2) < int(self.share * width // 2)
        return jnp.where(turning, super().frequencies(width, base, length) / self.factor, 0)
