"""Inverse frequencies and magnitudes of rotary position embeddings (RoPE) and of the ways to stretch them.

Pair ``i`` of a head turns by ``position * inverse_frequencies[i]`` radians; the cosine and the sine are then multiplied
by a magnitude. Everything is computed in float64 and handed over as float32.

Sources: Su et al., "RoFormer" (arXiv 2104.09864) for the plain form; Peng et al., "YaRN" (arXiv 2309.00071); Ding et
al., "LongRoPE" (arXiv 2402.13753); ``modeling_rope_utils.py`` of transformers and ``ggml_rope_ext`` of ggml for what
published models mean by their parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ..errors import ModelFormatError

if TYPE_CHECKING:
    import numpy.typing as npt

    Float64Vector = npt.NDArray[np.float64]
    Float32Vector = npt.NDArray[np.float32]

RopeScaling = Literal["none", "linear", "yarn", "longrope"]
MIN_FACTOR, MAX_FACTOR = 1e-6, 1e9
ROPE_SCALINGS: tuple[RopeScaling, ...] = ("none", "linear", "yarn", "longrope")


@dataclass(frozen=True)
class RopeConfig:
    """The RoPE parameters of a model, as its metadata states them; keys below follow ``{architecture}.rope.``."""

    dims: int
    """Rotated elements of each head, from the front; even (``dimension_count``)."""
    base: float = 10_000.0
    """Base of the geometric series of frequencies (``freq_base``)."""
    local_base: float | None = None
    """Base for layers with a sliding window, where it differs (``freq_base_swa``)."""
    scaling: RopeScaling = "none"
    factor: float = 1.0
    """How many times longer than the original context the model is stretched (``scaling.factor``)."""
    context_length: int = 0
    """Longest context that the model states, in tokens."""
    original_context: int = 0
    """Context before stretching, in tokens (``scaling.original_context_length``)."""
    attention_factor: float | None = None
    """Magnitude, or for YaRN a further factor of it (``scaling.attn_factor``)."""
    yarn_attention_factor: float | None = None
    """The whole magnitude of YaRN in place of the recommended one (``scaling.yarn_attn_factor``)."""
    yarn_extrapolation: float = 1.0
    """Share of the unstretched frequencies that YaRN mixes in (``scaling.yarn_ext_factor``)."""
    yarn_beta_fast: float = 32.0
    """Turns within the original context above which a pair is not stretched at all (``scaling.yarn_beta_fast``)."""
    yarn_beta_slow: float = 1.0
    """Turns within the original context below which a pair is stretched in full (``scaling.yarn_beta_slow``)."""
    yarn_log_multiplier: float = 0.0
    """``mscale_all_dim`` of the magnitude; 0 is none (``scaling.yarn_log_multiplier``)."""


class Rotation(NamedTuple):
    """One way to rotate: float32 ``inverse_frequencies[dims / 2]`` in radians per token, and a magnitude."""

    inverse_frequencies: Float32Vector
    magnitude: float


def plain_frequencies(dims: int, base: float) -> Float64Vector:
    """``base ** (-2 i / dims)`` for ``i`` in ``range(dims / 2)`` (RoFormer, section 3.2.2)."""
    return np.asarray(base ** (-np.arange(0, dims, 2, dtype=np.float64) / dims))


def divided(frequencies: Float64Vector, factors: Float32Vector | None, tensor: str) -> Float64Vector:
    """``frequencies / factors``; raises ModelFormatError naming ``tensor`` unless there is one sensible factor each.

    ``rope_freqs.weight`` holds such factors for Llama 3.1 and later: llama.cpp's converter turns the low, medium and
    high frequency bands of transformers' ``llama3`` scaling into them, and ggml divides the angle by them.
    """
    if factors is None:
        return frequencies
    if factors.shape != frequencies.shape:
        shape, wanted = list(factors.shape), frequencies.size
        raise ModelFormatError(f"has shape {shape}, but {wanted} RoPE frequencies need a factor each", where=tensor)
    if not bool(np.all((factors >= MIN_FACTOR) & (factors <= MAX_FACTOR))):
        raise ModelFormatError(f"RoPE factors must lie between {MIN_FACTOR} and {MAX_FACTOR}", where=tensor)
    return frequencies / factors.astype(np.float64)


def yarn_magnitude(factor: float, multiplier: float = 1.0) -> float:
    """``0.1 * multiplier * ln(factor) + 1``, and 1 where nothing is stretched (YaRN, equation 22, as sqrt(1/t))."""
    return 1.0 if factor <= 1.0 else 0.1 * multiplier * math.log(factor) + 1.0


def yarn_frequencies(frequencies: Float64Vector, rope: RopeConfig) -> Float64Vector:
    """Frequencies that turn often within the original context are kept, those that turn seldom are divided by the
    factor.

    Between the two lies a ramp over the pair index (YaRN, section 3.2). Its ends are rounded outwards and held within
    ``[0, dims - 1]`` as both transformers (``truncate=True``) and ggml (``ggml_rope_yarn_corr_dims``) do.
    """

    def pair_that_turns(times: float) -> float:
        span = math.log(rope.original_context / (times * 2 * math.pi))
        return rope.dims * span / (2 * math.log(rope.base))

    low = max(math.floor(pair_that_turns(rope.yarn_beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(rope.yarn_beta_slow)), rope.dims - 1)
    pair = np.arange(rope.dims // 2, dtype=np.float64)
    kept = (1.0 - np.clip((pair - low) / max(high - low, 0.001), 0.0, 1.0)) * rope.yarn_extrapolation
    return frequencies / rope.factor * (1.0 - kept) + frequencies * kept


def longrope_magnitude(rope: RopeConfig) -> float:
    """``sqrt(1 + ln(s) / ln(original))`` for ``s`` times the original context (LongRoPE's reference code,
    transformers).

    The stated attention factor goes first: llama.cpp's converter writes this very value there.
    """
    if rope.attention_factor is not None:
        return rope.attention_factor
    stretch = rope.factor if rope.factor > 1.0 else rope.context_length / rope.original_context
    if stretch <= 1.0:
        return 1.0
    return math.sqrt(1.0 + math.log(stretch) / math.log(rope.original_context))


def rotation(rope: RopeConfig, factors: Float32Vector | None = None) -> Rotation:
    """The rotation that ``rope`` describes: plain, linear or YaRN, with the per-pair ``rope_freqs.weight`` if given.

    YaRN's magnitude is ``yarn_attention_factor`` where stated: llama.cpp's converter copies transformers'
    ``attention_factor`` to it, which is the whole magnitude. Else it is ``yarn_magnitude(factor)``, divided by that of
    ``yarn_log_multiplier`` where given. ``attention_factor`` multiplies in every case, as in llama.cpp.
    """
    frequencies = divided(plain_frequencies(rope.dims, rope.base), factors, "rope_freqs.weight")
    magnitude = 1.0
    if rope.scaling == "yarn":
        frequencies = yarn_frequencies(frequencies, rope)
        if rope.yarn_attention_factor is not None:
            magnitude = rope.yarn_attention_factor
        elif rope.yarn_log_multiplier:
            magnitude = yarn_magnitude(rope.factor) / yarn_magnitude(rope.factor, rope.yarn_log_multiplier)
        else:
            magnitude = yarn_magnitude(rope.factor)
    elif rope.scaling == "linear":
        frequencies = frequencies / rope.factor
    if rope.attention_factor is not None:
        magnitude *= rope.attention_factor
    return Rotation(frequencies.astype(np.float32), magnitude)


def local_rotation(rope: RopeConfig, base: float) -> Rotation:
    """Plain RoPE with another base, for layers whose sliding window makes stretching needless (Gemma 3, section 2)."""
    return Rotation(plain_frequencies(rope.dims, base).astype(np.float32), 1.0)


def longrope_rotations(rope: RopeConfig, short: Float32Vector, long: Float32Vector) -> tuple[Rotation, Rotation]:
    """The two rotations of LongRoPE: up to the original context, and for sequences that will outgrow it.

    ``short`` and ``long`` hold the values of ``rope_factors_short.weight`` and ``rope_factors_long.weight``, each
    dividing one frequency; both rotations have the same magnitude, as in transformers.
    """
    frequencies = plain_frequencies(rope.dims, rope.base)
    magnitude = longrope_magnitude(rope)
    base = divided(frequencies, short, "rope_factors_short.weight").astype(np.float32)
    extended = divided(frequencies, long, "rope_factors_long.weight").astype(np.float32)
    return Rotation(base, magnitude), Rotation(extended, magnitude)
