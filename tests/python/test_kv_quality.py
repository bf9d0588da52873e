"""What rounding keys and values does to the distribution of the next token."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import metallic_native as mn

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "bench"))
import kv_quality

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"


@pytest.fixture(scope="module")
def stories() -> list[list[int]]:
    return kv_quality.told_tokens("demo", 400, kv_quality.OPENINGS[:3])


# Bounds are ten to thirty times what 4200 tokens show (docs/kv_types.md):
# a few positions out of a thousand make the mean.
@pytest.mark.parametrize(
    ("kv_type", "mean", "p99", "top1"),
    [
        ("f32", 1e-7, 1e-6, 0.995),
        ("bf16", 1e-6, 3e-5, 0.995),
        ("q8_0", 1e-5, 2e-4, 0.99),
        ("k=q8_0,v=q4_0", 5e-4, 5e-3, 0.97),
        ("q4_0", 1e-3, 1e-2, 0.96),
    ],
)
def test_divergence_on_the_demo_model(
    stories: list[list[int]], kv_type: str, mean: float, p99: float, top1: float
) -> None:
    (found,) = kv_quality.measure("demo", stories, [kv_type])
    assert found.positions == 1200
    assert 0 < found.kl_mean < mean
    assert found.kl_p99 < p99
    assert found.top1 > top1


def test_fewer_bits_cost_more(stories: list[list[int]]) -> None:
    results = kv_quality.measure("demo", stories, ["f32", "bf16", "q8_0", "k=q8_0,v=q4_0", "q4_0"])
    divergences = [result.kl_mean for result in results]
    assert divergences == sorted(divergences)
    sizes = [result.bytes_per_token for result in results]
    assert sizes == [
        6 * 2 * 2 * (keys + values) // 2 for keys, values in [(256, 256), (128, 128), (68, 68), (68, 36), (36, 36)]
    ]


# Models with random weights, among them heads that are no whole blocks, windows, and head norms.
@pytest.mark.device
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3", "phi3"])
def test_random_models_on_every_device(name: str) -> None:
    path = str(GOLDENS / f"{name}.gguf")
    ids = np.random.default_rng(5).integers(0, 256, 70).tolist()
    kv_types = ["q8_0", "k=q8_0,v=q4_0", "f16,full:k=q4_0,window:v=q4_0", "q4_0"]
    results = kv_quality.measure(path, [ids], kv_types)
    for result, most in zip(results, (1e-2, 0.5, 0.5, 1.0), strict=True):
        assert 0 < result.kl_mean < most, result


@pytest.mark.parametrize("kv_type", ["Q8_0", "V=q4_0,k=q4_0", "k=f16,v=q4_0"])
def test_the_model_says_what_was_chosen(kv_type: str) -> None:
    with mn.load(GOLDENS / "llama.gguf", kv_type=kv_type) as model:
        shown = {"Q8_0": "q8_0", "V=q4_0,k=q4_0": "q4_0"}.get(kv_type, kv_type)
        assert model.kv_type == shown
