"""The precision of matrix products: float32 rounds nothing, int8 rounds activations, and both are deterministic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metallic_native as mn
from metallic_native import _native
from reference import Reference
from tiny_model import write_tiny_llama

DEMO = Path(mn.__file__).parent / "data" / "demo.gguf"
GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
QUANTISED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"]  # what gguf-py can quantise to
HAS_METAL = any(device["backend"] == "metal" for device in _native.list_devices())


@pytest.fixture(scope="module", params=QUANTISED)
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / f"{request.param}.gguf"
    write_tiny_llama(path, context=256, dtype=request.param)
    return path


def tokens(count: int, vocabulary: int = 300) -> list[int]:
    return np.random.default_rng(count).integers(0, vocabulary, count).tolist()


def logits(path: Path, ids: list[int], device: str = "auto", **options: Any) -> np.ndarray:
    with mn.load(path, device=device, kv_type="f32", **options) as model:
        return model.logits(ids, all_positions=True)


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def test_float32_gives_the_logits_of_an_exact_forward(quantised: Path) -> None:
    ids = tokens(70)
    wanted = Reference(quantised)(ids)
    assert error(logits(quantised, ids, precision="float32"), wanted) < 1e-5


@pytest.mark.cpu_only
def test_int8_is_coarser(quantised: Path) -> None:
    ids = tokens(70)
    exact = logits(quantised, ids, "cpu", precision="float32")
    rounded = error(logits(quantised, ids, "cpu", precision="int8"), exact)
    assert 1e-3 < rounded < 0.1


@pytest.mark.skipif(not DEMO.exists(), reason="the package was built without the demo model")
def test_float32_gives_the_exact_logits_of_the_demo_model() -> None:
    ids = tokens(60)
    wanted = Reference(DEMO)(ids)
    assert error(logits(DEMO, ids, precision="float32"), wanted) < 1e-4
    np.testing.assert_array_equal(logits(DEMO, ids), logits(DEMO, ids, precision="float32"))


@pytest.mark.cpu_only
@pytest.mark.skipif(not DEMO.exists(), reason="the package was built without the demo model")
def test_int8_of_the_demo_model_is_coarser() -> None:
    ids = tokens(60)
    exact = logits(DEMO, ids, "cpu", precision="float32")
    assert 1e-3 < error(logits(DEMO, ids, "cpu", precision="int8"), exact) < 0.2


@pytest.mark.cpu_only
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_threads_and_chunks_do_not_change_a_bit(quantised: Path, precision: str) -> None:
    ids = tokens(90)
    expected = logits(quantised, ids, "cpu", precision=precision, threads=1)
    for threads, batch_tokens in ((2, 512), (3, 7), (5, 33), (4, 1)):
        found = logits(quantised, ids, "cpu", precision=precision, threads=threads, batch_tokens=batch_tokens)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.cpu_only
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_company_in_the_batch_does_not_change_a_bit(quantised: Path, precision: str) -> None:
    with mn.load(quantised, device="cpu", threads=2, batch_tokens=16, precision=precision) as model:
        prompts = [tokens(count) for count in (1, 40, 7, 23)]
        alone = [model.logits(ids, all_positions=True) for ids in prompts]
        sequences = [model.native.create_sequence() for _ in prompts]
        together = np.empty((sum(map(len, prompts)), model.vocabulary_size), np.float32)
        model.native.forward(sequences, [np.array(ids, np.int32) for ids in prompts], [2] * 4, [False] * 4, together)
        np.testing.assert_array_equal(together, np.concatenate(alone))


def test_small_models_are_exact_by_default() -> None:
    ids = tokens(40, 100)
    expected = logits(GOLDENS / "llama.gguf", ids)
    for precision in ("float32", "FLOAT32"):
        np.testing.assert_array_equal(logits(GOLDENS / "llama.gguf", ids, precision=precision), expected)


@pytest.mark.cpu_only
def test_float_weights_are_exact_in_any_case() -> None:
    ids = tokens(40, 100)
    expected = logits(GOLDENS / "llama.gguf", ids, "cpu", precision="float32")
    np.testing.assert_array_equal(logits(GOLDENS / "llama.gguf", ids, "cpu", precision="int8"), expected)


@pytest.mark.parametrize("precision", ["int4", "", "automatic", None, 8, "float32 "])
def test_unknown_precisions_are_refused(precision: object) -> None:
    with pytest.raises(mn.RequestError, match="precision must be one of auto, float32, float16, bfloat16, int8"):
        mn.load(GOLDENS / "llama.gguf", precision=precision)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_the_cpu_says_what_it_has(precision: str) -> None:
    with pytest.raises(mn.RequestError, match=f"cpu has no matrix products in {precision}; it has float32, int8"):
        mn.load(GOLDENS / "llama.gguf", device="cpu", precision=precision)


@pytest.mark.device("metal")
@pytest.mark.skipif(not HAS_METAL, reason="there is no Metal here")
def test_metal_refuses_int8() -> None:
    with pytest.raises(mn.RequestError, match="metal has no matrix products in int8; it has float32"):
        mn.load(GOLDENS / "llama.gguf", device="metal", precision="int8")


@pytest.mark.device("metal")
@pytest.mark.skipif(not HAS_METAL, reason="there is no Metal here")
def test_in_float32_both_devices_give_the_same_logits(quantised: Path) -> None:
    ids = tokens(70)
    on_cpu = logits(quantised, ids, "cpu", precision="float32")
    assert error(logits(quantised, ids, device="metal", precision="float32"), on_cpu) < 1e-5
