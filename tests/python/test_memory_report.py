"""What a model says about its memory, and what is predicted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import metallic_native as mn
from metallic_native import _native
from metallic_native.cli.model_facts import estimate_memory
from metallic_native.loading import ModelConfig

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
Load = Callable[..., mn.Model]
GREEDY = mn.Sampling.greedy()
TAGS = ("weights", "kv", "activations")


# ---- predictions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral-window", "qwen3moe", "phi3-longrope", "llama-biases"])
@pytest.mark.parametrize(("kv_type", "batch_tokens"), [("f16", 16), ("q8_0", 512), ("f32", 1)])
def test_the_prediction_is_what_a_run_takes(load_golden: Load, name: str, kv_type: str, batch_tokens: int) -> None:
    tokens = 200
    file = _native.GgufModelFile(str(GOLDENS / f"{name}.gguf"))
    config = ModelConfig.from_metadata(file.metadata)
    estimate = estimate_memory(file, config, tokens, kv_type, batch_tokens, threads=3)
    model = load_golden(name, kv_type=kv_type, batch_tokens=batch_tokens, context_length=tokens, threads=3)
    ids = np.random.default_rng(0).integers(0, model.vocabulary_size, tokens).tolist()
    cache = model.new_cache()
    cache.extend(ids, planned=tokens)
    report = model.memory()
    predicted = asdict(estimate) | {"kv": estimate.kv}
    for tag in TAGS:
        assert report.tags[tag].peak == pytest.approx(predicted[tag], rel=0.02), tag
    assert estimate.total == pytest.approx(sum(report.tags[tag].peak for tag in TAGS), rel=0.02)


@pytest.mark.cpu_only
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_scratch_depends_on_threads_and_is_predicted(load_golden: Load, threads: int) -> None:
    file = _native.GgufModelFile(str(GOLDENS / "llama.gguf"))
    config = ModelConfig.from_metadata(file.metadata)
    estimate = estimate_memory(file, config, 100, "f16", 32, threads=threads)
    model = load_golden("llama", batch_tokens=32, context_length=100, threads=threads)
    assert model.memory().tags["activations"].peak == estimate.activations


# ---- reports -------------------------------------------------------------------------------------------------------


def test_every_byte_of_the_heaps_has_an_owner(load_golden: Load) -> None:
    model = load_golden("llama", threads=2)
    cache = model.new_cache()
    cache.extend([1] * 100, planned=100)
    report = model.memory()
    in_heaps = sum(use.current for use in report.tags.values()) - report.mapped_bytes
    assert sum(heap.used for heap in report.heap_list) == in_heaps
    assert sum(owner.bytes for owner in report.owners) == in_heaps
    assert sum(heap.bytes for heap in report.heap_list) == report.heap_bytes == in_heaps + report.free_bytes
    assert len(report.heap_list) == report.heaps
    for tag in report.tags:
        assert sum(heap.tags.get(tag, 0) for heap in report.heap_list) == report.tags[tag].current - (
            report.mapped_bytes if tag == "weights" else 0
        )
    names = [owner.owner for owner in report.owners]
    assert any(name.startswith("kv/") for name in names)
    assert "activations" in names


def test_averages_lie_between_nothing_and_the_peak(load_golden: Load) -> None:
    model = load_golden("llama")
    model.generate("a", max_tokens=30, ignore_eos=True)
    report = model.memory()
    kv = report.tags["kv"]
    assert kv.live == 0
    assert kv.current == 0
    assert kv.allocations > 0
    assert 0 <= kv.average <= kv.peak
    assert report.tags["activations"].average > 0
    assert report.elapsed_seconds >= 0


def test_a_run_after_a_run_creates_no_heap(load_golden: Load) -> None:
    model = load_golden("llama")
    for _ in range(2):
        model.generate("a", max_tokens=20, ignore_eos=True)
    created = model.memory().heaps_created
    for _ in range(20):
        model.generate("a", max_tokens=20, ignore_eos=True)
    assert model.memory().heaps_created == created


def test_the_budget_bounds_scratch_and_logits_too(load_golden: Load) -> None:
    whole = load_golden("llama", threads=2, batch_tokens=64).memory()
    activations = whole.tags["activations"]
    assert activations.allocations > 1  # more than the arena
    with pytest.raises(mn.OutOfMemory) as caught:
        mn.load(GOLDENS / "llama.gguf", threads=2, batch_tokens=64, memory_budget=activations.current - 4096)
    assert caught.value.needed > caught.value.available
    fits = load_golden("llama", threads=2, batch_tokens=64, memory_budget=whole.heap_bytes + (1 << 20))
    assert len(fits.generate("a", max_tokens=5, ignore_eos=True).token_ids) == 5


def test_staging_is_counted_and_given_back(load_golden: Load) -> None:
    """Private weights on Metal go through buffers no larger than what is copied."""
    model = load_golden("llama", weights="private")
    if model.device["backend"] != "metal":
        pytest.skip("the CPU copies without staging")
    text = model.generate("a", max_tokens=5, sampling=GREEDY, ignore_eos=True).text
    report = model.memory()
    assert 0 < report.tags["staging"].peak < report.tags["weights"].current
    assert report.tags["weights"].live > 0
    tight = load_golden("llama", weights="private", memory_budget=report.heap_peak)
    assert tight.generate("a", max_tokens=5, sampling=GREEDY, ignore_eos=True).text == text
    assert tight.memory().heap_peak <= report.heap_peak


def test_closing_a_model_leaves_nothing(load_golden: Load, caplog: pytest.LogCaptureFixture) -> None:
    _native.take_leak_reports()
    model = load_golden("llama", weights="private")
    model.generate("a", max_tokens=5, ignore_eos=True)
    with caplog.at_level(logging.WARNING):
        model.close()
    assert not caplog.records
    assert _native.take_leak_reports() == []


def test_what_a_pool_leaves_behind_is_logged(load_golden: Load, caplog: pytest.LogCaptureFixture) -> None:
    _native.take_leak_reports()
    model = load_golden("llama")
    pool = _native.Pool()
    kept = pool.allocate(1000, "kv", "forward/block.3/leaky")
    pool.close()
    with caplog.at_level(logging.WARNING):
        model.close()
    assert "1024 bytes of forward/block.3/leaky" in caplog.text
    kept.fill(1)
    assert kept.holds_only(1)
    kept.free()
