"""The native dequantisation and matrix kernels against gguf-py, the reference implementation of the formats."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

gguf = pytest.importorskip("gguf")
native: Any = pytest.importorskip("metallic_native._native")

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# Where the float16 scales of a block lie.
SCALES: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "MXFP4": (),
}
QUANTISABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "BF16", "F16", "F32")
ALL = (*SCALES, "F16", "BF16", "F32")


def quant_type(name: str) -> Any:
    return gguf.GGMLQuantizationType[name]


def block_sizes(name: str) -> tuple[int, int]:
    """Elements and bytes of one block."""
    elements, size = gguf.GGML_QUANT_SIZES[quant_type(name)]
    return int(elements), int(size)


def random_rows(name: str, rows: int, blocks: int, seed: int) -> Bytes:
    """Rows of random blocks, [rows, blocks * block bytes], whose scales are finite."""
    rng = np.random.default_rng(seed)
    _, size = block_sizes(name)
    raw = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for offset in SCALES[name]:
        scale = rng.uniform(-0.05, 0.05, (rows, blocks, 1)).astype(np.float16)
        scale[rng.random(scale.shape) < 0.1] = np.float16(6e-8)
        scale[rng.random(scale.shape) < 0.1] = np.float16(0)
        raw[:, :, offset : offset + 2] = scale.view(np.uint8)
    if name == "MXFP4":
        raw[:, :, 0] = rng.integers(0, 200, (rows, blocks), dtype=np.uint8)
    return raw.reshape(rows, blocks * size)


def reference(name: str, raw: Bytes) -> Floats:
    with np.errstate(over="ignore"):  # MXFP4's largest scales exceed float32
        values: Floats = gguf.quants.dequantize(raw, quant_type(name)).astype(np.float32)
    return values


def quantised_rows(name: str, rows: int, k: int, seed: int) -> Bytes:
    x = np.random.default_rng(seed).normal(size=(rows, k)).astype(np.float32)
    return np.ascontiguousarray(gguf.quants.quantize(x, quant_type(name))).view(np.uint8).reshape(rows, -1)


def assert_same_bits(actual: Floats, expected: Floats) -> None:
    np.testing.assert_array_equal(actual.view(np.uint32), np.ascontiguousarray(expected).view(np.uint32))


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_random_blocks_equal_the_reference_bit_for_bit(name: str, blocks: int) -> None:
    raw = random_rows(name, 12, blocks, seed=blocks)
    expected = reference(name, raw)
    for row, values in zip(raw, expected, strict=True):
        assert_same_bits(native.dequantise(name, row, blocks * block_sizes(name)[0]), values)


@pytest.mark.parametrize("name", QUANTISABLE)
def test_quantised_values_equal_the_reference_bit_for_bit(name: str) -> None:
    raw = quantised_rows(name, 4, 512, seed=5)
    expected = reference(name, raw) if name != "F32" else raw.view(np.float32)
    for row, values in zip(raw, expected, strict=True):
        assert_same_bits(native.dequantise(name, row, 512), values)


def test_every_exponent_of_mxfp4() -> None:
    raw = np.zeros((255, 17), dtype=np.uint8)
    raw[:, 0] = np.arange(255)
    raw[:, 1:] = np.arange(16) * 17
    for row, values in zip(raw, reference("MXFP4", raw), strict=True):
        assert_same_bits(native.dequantise("MXFP4", row, 32), values)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_products_are_those_of_the_reference_weights(isa: str, name: str) -> None:
    if isa not in native.matmul_isas():
        pytest.skip(f"this processor has no {isa}")
    elements, _ = block_sizes(name)
    k = 1024
    if name in SCALES:
        raw = random_rows(name, 37, k // elements, seed=3)
        if name == "MXFP4":
            raw.reshape(37, -1, 17)[:, :, 0] = 120
    else:
        raw = quantised_rows(name, 37, k, seed=3)
    weights = (raw.view(np.float32) if name == "F32" else reference(name, raw)).astype(np.float64)
    a = np.random.default_rng(4).normal(size=(9, k)).astype(np.float32)
    exact = a.astype(np.float64) @ weights.T
    # Activations in int8 are off by at most half of max|a| / 127 each, which is far above all rounding.
    quantised = name not in ("F32", "F16", "BF16")
    step = np.abs(a).max(axis=1, keepdims=True) / 127 / 2 if quantised else 1e-5
    bound = step * np.abs(weights).sum(axis=1) + 1e-5
    product = native.matmul(isa, name, raw, k, a)
    assert product.shape == (9, 37)
    assert np.all(np.abs(product - exact) <= bound)
    assert_same_bits(product, native.matmul("portable", name, raw, k, a))


@pytest.mark.parametrize("k", [0, 31, 33, 64])
def test_rows_of_the_wrong_size_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match="does not hold"):
        native.dequantise("Q4_0", np.zeros(18, dtype=np.uint8), k)
    with pytest.raises(ValueError, match="does not hold"):
        native.matmul("portable", "Q4_0", np.zeros((2, 18), dtype=np.uint8), k, np.zeros((1, k), dtype=np.float32))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="Q9_9"):
        native.dequantise("Q9_9", np.zeros(18, dtype=np.uint8), 32)
    with pytest.raises(ValueError, match="sse9"):
        native.matmul("sse9", "Q4_0", np.zeros((1, 18), dtype=np.uint8), 32, np.zeros((1, 32), dtype=np.float32))
    with pytest.raises(ValueError, match="k columns"):
        native.matmul("portable", "Q4_0", np.zeros((1, 18), dtype=np.uint8), 32, np.zeros((1, 31), dtype=np.float32))
