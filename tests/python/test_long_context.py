"""A context of 32,768 tokens: memory follows the tokens, and how it grew does not show in the text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import metallic_native as mn
from tiny_model import write_tiny_llama

TOKENS = 32768


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_llama(path, context=TOKENS + 64)
    return path


def greedy(cache: object, logits: np.ndarray, count: int) -> list[int]:
    ids = []
    for _ in range(count):
        ids.append(int(logits[0].argmax()))
        logits = cache.extend(ids[-1:], planned=TOKENS + 64)  # type: ignore[attr-defined]
    return ids


def test_32k_tokens(model_path: Path) -> None:
    ids = np.random.default_rng(1).integers(0, 256, TOKENS)
    with mn.load(model_path) as model:
        bytes_per_token = model.native.kv_bytes_per_token
        activations = model.memory().tags["activations"].current

        # Capacity known beforehand: one call.
        whole = model.new_cache()
        logits = whole.extend(ids, planned=TOKENS + 64)
        expected = greedy(whole, logits, 24)
        report = model.memory()
        used = report.tags["kv"].current
        assert used <= 1.03 * (TOKENS + 24) * bytes_per_token
        assert used >= TOKENS * bytes_per_token
        assert report.tags["activations"].current == report.tags["activations"].peak == activations
        whole.close()

        # Grown bit by bit, in pieces that fit no page, the last thousand one by one.
        grown = model.new_cache()
        at = 0
        while at < TOKENS:
            step = 1 if at >= TOKENS - 1000 else min(4099, TOKENS - 1000 - at)
            logits = grown.extend(ids[at : at + step], planned=TOKENS + 64)
            at += step
            assert model.memory().pages == -(-at // report.page_tokens)
        assert greedy(grown, logits, 24) == expected
        grown.close()
        assert model.memory().tags["kv"].current == 0
        assert model.memory().tags["activations"].peak == activations


def test_activations_do_not_know_the_context(model_path: Path) -> None:
    with mn.load(model_path) as long, mn.load(model_path, context_length=512) as short:
        assert long.memory().tags["activations"].current == short.memory().tags["activations"].current
