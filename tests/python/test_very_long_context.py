"""A context of 131,072 tokens: memory follows the tokens in steps, nothing is copied, and the text does not know how it
grew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import metallic_native as mn
from tiny_model import write_tiny_llama

TOKENS = 131_072
GENERATED = 64


def test_131072_tokens(tmp_path: Path, many: Callable[[int], int]) -> None:
    tokens = many(TOKENS)
    path = tmp_path / "tiny.gguf"
    write_tiny_llama(path, context=tokens, blocks=1, heads=1, head_size=16)
    ids = np.random.default_rng(1).integers(0, 256, tokens - GENERATED).tolist()
    with mn.load(path) as model:
        # Capacity reserved at the start.
        cache = model.new_cache()
        cache.reserve(tokens)
        reserved = model.memory().tags["kv"].current
        greedy = mn.Sampling(temperature=0)
        whole = model.generate(ids, None, greedy, ignore_eos=True, cache=cache)
        assert whole.finish_reason == "context"
        assert model.memory().tags["kv"].current == reserved
        cache.close()
        assert model.memory().tags["kv"].current == 0

    with mn.load(path) as model:
        # Grown a thousand tokens at a time, the last ones one by one.
        (group,) = model.memory().cache_groups
        page = model.memory().page_tokens
        cache = model.new_cache()
        heaps = []
        for start in range(0, len(ids), 1000):
            cache.extend(ids[start : start + 1000], planned=tokens)
            report = model.memory()
            length = min(start + 1000, len(ids))
            least = -(-length // page) * group.page_bytes
            assert least <= report.tags["kv"].current <= 1.02 * least
            heaps.append(report.heap_bytes)
        assert heaps == sorted(heaps)
        assert len(set(heaps)) <= 8 + heaps[-1] // (8 << 20)  # in steps that double, then of 8 MiB
        grown = model.generate([*ids, whole.token_ids[0]], None, greedy, ignore_eos=True, cache=cache)
        assert grown.stats.cached_tokens == len(ids)
        assert [whole.token_ids[0], *grown.token_ids] == whole.token_ids
        report = model.memory()
        assert report.pages_copied == 0
        assert not report.actions.keys() & {"save", "restore", "drop", "recompute", "compact"}
        cache.close()


def test_no_constant_caps_a_context(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_llama(path, context=2**30, blocks=1, heads=1, head_size=16)
    with mn.load(path) as model:
        assert model.context_length == 2**30
        assert len(model.generate([1, 2, 3], 5, mn.Sampling(temperature=0), ignore_eos=True).token_ids) == 5
