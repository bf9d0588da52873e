"""RoPE tables against values that transformers 5.23 gives (``ROPE_INIT_FUNCTIONS``), and against their definitions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from metallic_native.errors import ModelFormatError
from metallic_native.loading.rope import (
    RopeConfig,
    local_rotation,
    longrope_rotations,
    plain_frequencies,
    rotation,
)


def close(found: Any, wanted: Any) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=3e-6)


def test_plain() -> None:
    frequencies, magnitude = rotation(RopeConfig(dims=4))
    close(frequencies, [1.0, 0.01])
    assert magnitude == 1.0


def test_plain_is_geometric() -> None:
    frequencies = plain_frequencies(128, 500_000.0)
    np.testing.assert_allclose(frequencies[1:] / frequencies[:-1], 500_000.0 ** (-2 / 128), rtol=1e-12)
    assert frequencies[0] == 1.0


def test_factor_without_scaling_is_ignored() -> None:
    close(rotation(RopeConfig(dims=4, scaling="none", factor=4.0)).inverse_frequencies, [1.0, 0.01])


def test_linear() -> None:
    frequencies, magnitude = rotation(RopeConfig(dims=16, scaling="linear", factor=2.5))
    close(frequencies, [0.4, 0.1264911, 0.04, 0.01264911, 0.004, 0.001264911, 0.0004, 0.0001264911])
    assert magnitude == 1.0


YARN = RopeConfig(dims=16, scaling="yarn", factor=4.0, context_length=8192, original_context=2048)


def test_yarn() -> None:
    frequencies, magnitude = rotation(YARN)
    close(frequencies, [1.0, 0.3162278, 0.1, 0.02569351, 0.00625, 0.001383497, 0.00025, 7.905695e-05])
    assert magnitude == pytest.approx(1.138629436111989)


def test_yarn_betas_and_log_multiplier() -> None:
    rope = RopeConfig(
        dims=16,
        base=1e6,
        scaling="yarn",
        factor=8.0,
        original_context=4096,
        yarn_beta_fast=16.0,
        yarn_beta_slow=2.0,
        yarn_log_multiplier=0.7,
    )
    frequencies, magnitude = rotation(rope)
    close(frequencies, [1.0, 0.1778279, 0.03162278, 0.00316317, 0.000125, 2.222849e-05, 3.952847e-06, 7.029267e-07])
    assert magnitude == pytest.approx(1.0544565075669314)


def test_yarn_stated_attention_factor_is_the_whole_magnitude() -> None:
    rope = RopeConfig(dims=16, base=1e6, scaling="yarn", factor=8.0, original_context=4096, yarn_attention_factor=1.25)
    frequencies, magnitude = rotation(rope)
    close(frequencies, [1.0, 0.1778279, 0.02239947, 0.002343089, 0.000125, 2.222849e-05, 3.952847e-06, 7.029267e-07])
    assert magnitude == 1.25
    assert rotation(replace(rope, attention_factor=0.5)).magnitude == 0.625


def test_yarn_keeps_fast_pairs_and_divides_slow_ones() -> None:
    rope = RopeConfig(dims=128, base=1e6, scaling="yarn", factor=4.0, original_context=32768)
    plain = plain_frequencies(128, 1e6)
    ratio = rotation(rope).inverse_frequencies / plain
    turns = plain * rope.original_context / (2 * math.pi)
    np.testing.assert_allclose(ratio[turns > 40], 1.0, rtol=1e-6)
    np.testing.assert_allclose(ratio[turns < 0.7], 0.25, rtol=1e-6)
    assert np.all(np.diff(ratio) <= 1e-7)


def test_yarn_without_extrapolation_is_linear_with_a_magnitude() -> None:
    frequencies, magnitude = rotation(replace(YARN, yarn_extrapolation=0.0))
    close(frequencies, rotation(replace(YARN, scaling="linear")).inverse_frequencies)
    assert magnitude > 1.0


def test_yarn_of_factor_one_changes_nothing() -> None:
    frequencies, magnitude = rotation(replace(YARN, factor=1.0))
    close(frequencies, plain_frequencies(16, 10_000.0))
    assert magnitude == 1.0


def test_yarn_with_equal_ends_of_the_ramp() -> None:
    frequencies, _ = rotation(replace(YARN, yarn_beta_fast=1e6, yarn_beta_slow=1e6))
    assert np.all(np.isfinite(frequencies))
    assert frequencies[-1] == pytest.approx(10_000.0 ** (-14 / 16) / 4)


def llama3_factors() -> Any:
    """Llama 3.1's bands for 16 dimensions, as llama.cpp's converter states them."""
    wavelengths = 2 * np.pi * 500_000.0 ** (np.arange(0, 16, 2) / 16)
    smooth = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    return (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)


def test_llama3_factors_divide() -> None:
    factors = llama3_factors()
    assert factors[0] == 1.0
    assert factors[-1] == 8.0
    frequencies, magnitude = rotation(RopeConfig(dims=16, base=500_000.0), factors)
    close(frequencies, [1.0, 0.1939228, 0.03760603, 0.007292665, 0.000524846, 3.428102e-05, 6.64787e-06, 1.289173e-06])
    assert magnitude == 1.0


SHORT = np.array([1.0, 1.05, 1.1, 1.2, 1.3, 1.5], np.float32)
LONG = np.array([1.1, 2.0, 4.0, 9.0, 20.0, 40.0], np.float32)
LONGROPE = RopeConfig(dims=12, scaling="longrope", context_length=131072, original_context=4096)


def test_longrope() -> None:
    base, extended = longrope_rotations(LONGROPE, SHORT, LONG)
    close(base.inverse_frequencies, [1.0, 0.2051843, 0.04219626, 0.008333333, 0.001657257, 0.0003094393])
    close(extended.inverse_frequencies, [0.9090909, 0.1077217, 0.01160397, 0.001111111, 0.0001077217, 1.160397e-05])
    assert base.magnitude == pytest.approx(1.1902380714238083)
    assert extended.magnitude == base.magnitude


def test_longrope_stated_attention_factor() -> None:
    base, extended = longrope_rotations(replace(LONGROPE, attention_factor=1.3), SHORT, LONG)
    assert base.magnitude == extended.magnitude == 1.3


def test_longrope_that_is_not_stretched() -> None:
    base, _ = longrope_rotations(replace(LONGROPE, context_length=4096), SHORT, LONG)
    assert base.magnitude == 1.0


def test_local_rotation_is_never_stretched() -> None:
    frequencies, magnitude = local_rotation(replace(YARN, attention_factor=2.0), 100.0)
    close(frequencies, plain_frequencies(16, 100.0))
    assert magnitude == 1.0


@pytest.mark.parametrize(
    "factors", [np.ones(5), np.ones((2, 4)), np.zeros(8), -np.ones(8), np.full(8, np.nan), np.full(8, np.inf), []]
)
def test_bad_factors_name_the_tensor(factors: Any) -> None:
    bad = np.asarray(factors, np.float32)
    with pytest.raises(ModelFormatError) as caught:
        rotation(RopeConfig(dims=16), bad)
    assert caught.value.where == "rope_freqs.weight"
    with pytest.raises(ModelFormatError) as caught:
        longrope_rotations(replace(LONGROPE, dims=16), np.ones(8, np.float32), bad)
    assert caught.value.where == "rope_factors_long.weight"
