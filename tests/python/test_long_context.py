"""A long context, of 32,768 tokens (2,048 on a simulated device): memory follows the tokens, and how it grew does not
show in the text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import metallic_native as mn
from metallic_native.engine.cache import CachedTokens
from tiny_model import write_tiny_llama

DRAWN = 24


@pytest.fixture(scope="module")
def count(many: Callable[[int], int]) -> int:
    return many(32768)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory, count: int) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_llama(path, context=count + 64)
    return path


def greedy(cache: CachedTokens, logits: np.ndarray, planned: int) -> list[int]:
    ids: list[int] = []
    for _ in range(DRAWN):
        ids.append(int(logits[0].argmax()))
        logits = cache.extend(ids[-1:], planned=planned)
    return ids


def test_a_long_context(model_path: Path, count: int) -> None:
    ids = np.random.default_rng(1).integers(0, 256, count)
    planned = count + 64
    with mn.load(model_path) as model:
        bytes_per_token = model.native.kv_bytes_per_token
        activations = model.memory().tags["activations"].current

        # Capacity known beforehand: one call.
        whole = model.new_cache()
        logits = whole.extend(ids, planned=planned)
        expected = greedy(whole, logits, planned)
        report = model.memory()
        used = report.tags["kv"].current
        at_most = 1.03 * (count + DRAWN) + 8 * report.page_tokens  # pages are taken a few at a time
        assert count * bytes_per_token <= used <= at_most * bytes_per_token
        assert report.tags["activations"].current == report.tags["activations"].peak == activations
        whole.close()

        # Grown bit by bit, in pieces that fit no page, the last of them single tokens.
        grown = model.new_cache()
        singles = count // 32
        at = 0
        while at < count:
            step = 1 if at >= count - singles else min(count // 8 + 3, count - singles - at)
            logits = grown.extend(ids[at : at + step], planned=planned)
            at += step
            assert model.memory().pages == -(-at // report.page_tokens)
        assert greedy(grown, logits, planned) == expected
        grown.close()
        assert model.memory().tags["kv"].current == 0
        assert model.memory().tags["activations"].peak == activations


def test_activations_do_not_know_the_context(model_path: Path) -> None:
    with mn.load(model_path) as long, mn.load(model_path, context_length=512) as short:
        assert long.memory().tags["activations"].current == short.memory().tags["activations"].current
