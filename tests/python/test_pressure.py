"""Memory is bounded: who waits, who gives way, and that nobody's text knows of it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metallic_native as mn
from metallic_native.engine.cache import CachedTokens
from tiny_model import write_tiny_llama

GREEDY = mn.Sampling(temperature=0)
CONTEXT = 4096
PAGE = mn._native.page_tokens
Load = Callable[..., mn.Model]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_llama(path, context=CONTEXT)
    return path


def ids(count: int, seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 256, count)]


def page_bytes(model: mn.Model) -> int:
    return sum(group.page_bytes for group in model.memory().cache_groups)


def budget_of(path: Path, pages: int) -> int:
    """A budget in which about so many pages find room beside what the model takes in any case, in heaps of whole pages
    of the system.
    """
    with mn.load(path, batch_tokens=64) as model:
        report = model.memory()
        return report.current - report.mapped_bytes + (16 << 10) * report.heaps + pages * page_bytes(model)


@pytest.fixture
def load(tiny: Path) -> Any:
    models: list[mn.Model] = []

    def make(pages: int | None = None, **options: Any) -> mn.Model:
        budget = None if pages is None else budget_of(tiny, pages)
        models.append(mn.load(tiny, batch_tokens=64, memory_budget=budget, **options))
        return models[-1]

    yield make
    for model in models:
        model.close()


def solo(load: Load, prompt: list[int], count: int) -> list[int]:
    return load().generate(prompt, count, GREEDY, ignore_eos=True).token_ids


# ---- following the request ------------------------------------------------------------------------------------------


def test_pages_follow_the_tokens_and_come_back(load: Load) -> None:
    model = load()
    before = model.memory()
    cache = model.new_cache()
    for length in range(1, 200):
        cache.extend([length % 256], planned=200)
        assert model.memory().pages == -(-length // PAGE)
    cache.close()
    after = model.memory()
    assert after.pages == before.pages == 0
    assert after.tags["kv"].current == 0
    assert after.pages_copied == 0


def test_a_row_of_requests_grows_no_heap(load: Load) -> None:
    model = load()
    heaps = []
    for seed in range(20):
        model.generate(ids(40, seed), 30, GREEDY, ignore_eos=True)
        heaps.append((model.memory().heaps, model.memory().heap_bytes))
    assert set(heaps[1:]) == {heaps[1]}


def test_reserved_and_grown_capacity_give_the_same_text(load: Load) -> None:
    model = load()
    outputs = []
    for reserved in (0, 900):
        cache = model.new_cache()
        if reserved:
            cache.reserve(reserved)
            assert model.memory().pages == -(-reserved // PAGE)
        chunks = model.stream(ids(300, 3), 500, GREEDY, ignore_eos=True, cache=cache)
        drawn = [next(chunks).token_id]
        assert model.memory().pages == -(-max(reserved, 300) // PAGE)
        outputs.append(drawn + [chunk.token_id for chunk in chunks])
        cache.close()
    assert outputs[0] == outputs[1]
    assert model.memory().pages_copied == 0


@pytest.mark.parametrize("tokens", [-1, CONTEXT + 1, 2**64, 32.0, "32", None])
def test_a_reservation_is_of_tokens_that_the_context_holds(load: Load, tokens: Any) -> None:
    cache = load().new_cache()
    with pytest.raises(mn.RequestError, match=f"0 to {CONTEXT} tokens"):
        cache.reserve(tokens)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_what_is_let_in_under_the_least_budget_goes_ahead(load_golden: Load, name: str) -> None:
    prompt = ids(150, 4)
    wanted = load_golden(name).generate(prompt, 8, GREEDY, ignore_eos=True).token_ids

    def refused(budget: int) -> mn.OutOfMemory | None:
        try:
            model = load_golden(name, batch_tokens=64, threads=1, memory_budget=budget)
        except mn.OutOfMemory as error:
            return error
        try:
            assert model.generate(prompt, 8, GREEDY, ignore_eos=True).token_ids == wanted
        except mn.OutOfMemory as error:
            if error.owner != "kv":  # it was not refused at once
                raise
            return error
        return None

    budget = 1 << 18
    while error := refused(budget):
        budget += max(error.needed - error.available, 4096)


@pytest.mark.parametrize("weights", ["mapped", "private", "shared"])
def test_what_is_let_in_alone_is_not_ended_for_want_of_memory(tmp_path: Path, weights: str) -> None:
    """Pages of 128 KiB, of which heaps may hold few, beside copies of weights that leave parts of heaps over."""
    path = tmp_path / "wide.gguf"
    write_tiny_llama(path, context=CONTEXT, head_size=256)
    options: dict[str, Any] = {"batch_tokens": 64, "kv_type": "f32", "weights": weights}
    with mn.load(path, **options) as model:
        model.generate([1], 2, GREEDY, ignore_eos=True)
        use, page = model.memory(), page_bytes(model)
        wanted = model.generate(ids(100, 1), 2, GREEDY, ignore_eos=True).token_ids
    ends = set()
    for rest in range(0, 8 * page, 3 * page // 4):
        try:
            model = mn.load(path, **options, memory_budget=use.heap_bytes + rest)
            model.generate([1], 1, GREEDY)  # takes what uploads need
        except mn.OutOfMemory:  # heaps divide otherwise where the budget is tight
            continue
        with model:
            try:
                assert model.generate(ids(100, 1), 2, GREEDY, ignore_eos=True).token_ids == wanted
                ends.add("done")
            except mn.OutOfMemory as error:
                if "what would fit" not in str(error):
                    raise
                ends.add("refused")
    assert "done" in ends


# ---- giving way -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eviction", ["save", "recompute"])
def test_idle_caches_give_way_and_are_whole_when_they_are_run_again(load: Load, eviction: str) -> None:
    model, free = load(pages=40, eviction=eviction), load()
    caches: list[CachedTokens] = []
    for seed in range(60):
        caches.append(model.new_cache())
        caches[-1].extend(ids(200, seed), planned=200)
    report = model.memory()
    assert report.heap_bytes <= report.budget
    assert ("save" if eviction == "save" else "drop") in report.actions
    for seed in (0, 59, 1, 30):
        expected = free.logits([*ids(200, seed), 5])
        logits = caches[seed].extend([5], planned=201)
        atol = 0 if model.device["backend"] == "cpu" else 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=atol)
    for cache in caches:
        cache.close()
    assert model.memory().tags["kv"].current == 0
    assert model.memory().saved_bytes == 0


def test_an_evicted_cache_can_be_cut_forked_and_closed(load: Load) -> None:
    for eviction in ("save", "recompute"):
        model, free = load(eviction=eviction), load()
        tokens = ids(150, 1)
        cache = model.new_cache()
        cache.extend(tokens, planned=200)
        native = cache._sequence
        held = model.memory().tags["kv"].current
        assert native.evict() >= 0.9 * held
        assert model.memory().pages == 0
        fork = native.fork()
        assert fork.length == 150
        assert native.truncate(100)
        logits = np.empty((1, model.vocabulary_size), np.float32)
        for sequence, length in ((native, 100), (fork, 150)):
            model.native.forward([sequence], [np.array([9], np.int32)], [1], [False], logits)
            assert sequence.length == sequence.cached == length + 1
            expected = free.logits([*tokens[:length], 9])
            atol = 0 if model.device["backend"] == "cpu" else 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(logits, expected, rtol=0, atol=atol)
        native.evict()
        cache.close()
        fork.close()
        assert model.memory().saved_bytes == 0


@pytest.mark.parametrize("eviction", ["save", "recompute"])
def test_growing_generations_take_turns_and_say_what_they_would_alone(load: Load, eviction: str) -> None:
    """Four open-ended generations outgrow what they were admitted for: the youngest wait, and go on where they were."""
    count, prompts = 400, [ids(30 + 17 * seed, seed) for seed in range(4)]
    expected = [solo(load, prompt, count) for prompt in prompts]
    model = load(pages=30, eviction=eviction)

    def run(prompt: list[int]) -> list[int]:
        tokens = []
        for chunk in model.stream(prompt, None, GREEDY, ignore_eos=True):
            tokens.append(chunk.token_id)
            if len(tokens) == count:
                return tokens
        raise AssertionError("the generation ended early")

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, prompts))
    assert results == expected
    report = model.memory()
    assert "preempt" in report.actions or "wait" in report.actions
    assert report.tags["kv"].current == 0
    assert report.heap_bytes <= report.budget


def test_one_pass_over_more_sequences_than_fit(load: Load) -> None:
    model, free = load(pages=20), load()
    sequences = [model.native.create_sequence() for _ in range(12)]
    prompts = [ids(100 + seed, seed) for seed in range(12)]
    logits = np.empty((12, model.vocabulary_size), np.float32)
    arrays = [np.array(prompt, np.int32) for prompt in prompts]
    model.native.forward(sequences, arrays, [1] * 12, [False] * 12, logits)
    model.native.forward(sequences, [np.array([7], np.int32)] * 12, [1] * 12, [False] * 12, logits)
    for row, prompt in zip(logits, prompts, strict=True):
        expected = free.logits([*prompt, 7])[0]
        atol = 0 if model.device["backend"] == "cpu" else 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(row, expected, rtol=0, atol=atol)
    assert model.memory().heap_bytes <= model.memory().budget


@pytest.mark.parametrize(("eviction", "block", "bound"), [("compress", 34, 0.05), ("compress-q4_0", 18, 0.5)])
def test_compressed_pages_come_back_rounded(load: Load, eviction: str, block: int, bound: float) -> None:
    whole, packed = load(eviction="save"), load(eviction=eviction)
    tokens = ids(300, 1)
    outputs = []
    for model in (whole, packed):
        cache = model.new_cache()
        cache.extend(tokens, planned=400)
        held = model.memory().pages * page_bytes(model)
        cache._sequence.evict()
        outputs.append((model.memory().saved_bytes / held, cache.extend([7], planned=400)[0]))
        assert model.memory().saved_bytes == 0
        cache.close()
    (saved, exact), (compressed, rounded) = outputs
    assert saved == 1
    assert compressed == pytest.approx(block / 64)  # blocks of 32 instead of 64 bytes of F16
    assert "compress" in packed.memory().actions
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=bound * np.abs(exact).max())


# ---- the end of the context -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 10, 64])
def test_a_context_shift_goes_on_as_if_the_prompt_had_been_what_is_left(load: Load, keep: int) -> None:
    model, free = load(context_length=256), load()
    prompt = ids(100, 2)
    generation = model.generate(prompt, 400, GREEDY, ignore_eos=True, context_shift=keep)
    assert len(generation.token_ids) == 400
    assert generation.finish_reason == "length"
    tokens, shifts = list(prompt), 0
    for token in generation.token_ids:
        if len(tokens) > 256:
            # The token drawn last is the one that found no room.
            del tokens[keep : keep + (256 - keep) // 2]
            shifts += 1
        if shifts or len(tokens) % 50 == 0:
            logits = free.logits(tokens)[0]
            best = np.sort(logits)[-2:]
            if model.device["backend"] == "cpu" or best[1] - best[0] > 1e-3:
                assert int(logits.argmax()) == token
        tokens.append(token)
        if shifts == 2:
            break
    assert shifts == 2
    assert model.memory().tags["kv"].current == 0


def test_without_a_shift_the_context_ends_a_generation(load: Load) -> None:
    model = load(context_length=64)
    assert model.generate(ids(40, 2), 400, GREEDY, ignore_eos=True).finish_reason == "context"
    for wrong in (-1, 63, True, 1.5, "0"):
        with pytest.raises(mn.RequestError, match="context_shift"):
            model.generate(ids(40, 2), 400, GREEDY, context_shift=wrong)  # type: ignore[arg-type]


# ---- admission ------------------------------------------------------------------------------------------------------


def test_a_request_that_fits_later_waits(load: Load) -> None:
    model = load(pages=40)
    capacity = model.memory().capacity
    tokens = int(0.6 * capacity / page_bytes(model)) * PAGE
    started, order = threading.Event(), []
    expected = solo(load, ids(20, 1), 5)

    def first() -> None:
        for number, _ in enumerate(model.stream(ids(20, 0), tokens - 60, GREEDY, ignore_eos=True)):
            if number == 0:
                started.set()
        order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert started.wait(60)
    chunks = model.stream(ids(20, 1), tokens - 60, GREEDY, ignore_eos=True)
    drawn = [next(chunks).token_id for _ in range(5)]
    order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert drawn == expected
    assert [e.action for e in model.memory_events() if e.action in ("wait", "admit")] == ["wait", "admit"]


def test_a_paused_generation_does_not_block_others(load: Load) -> None:
    model = load(pages=40)
    tokens = int(0.6 * model.memory().capacity / page_bytes(model)) * PAGE
    expected = solo(load, ids(20, 0), 100)
    paused = model.stream(ids(20, 0), tokens - 60, GREEDY, ignore_eos=True)
    drawn = [next(paused).token_id for _ in range(50)]
    begun = time.monotonic()
    model.generate(ids(20, 1), tokens - 60, GREEDY, ignore_eos=True)
    assert time.monotonic() - begun < 60
    drawn += [next(paused).token_id for _ in range(50)]
    assert drawn == expected


def test_what_can_never_fit_is_refused_with_what_would(load: Load) -> None:
    model = load(pages=20)
    with pytest.raises(mn.OutOfMemory, match=r"at most [0-9]+ tokens") as caught:
        model.generate(ids(100, 0), 3000, GREEDY)
    error = caught.value
    assert error.owner == "kv"
    assert error.needed > error.available > 0
    assert len(model.generate(ids(100, 0), 10, GREEDY, ignore_eos=True).token_ids) == 10


@pytest.mark.parametrize("pages", [1, 2, 5])
def test_what_is_said_to_fit_does(tmp_path: Path, pages: int) -> None:
    path = tmp_path / "wide.gguf"
    write_tiny_llama(path, context=CONTEXT, head_size=256)
    options: dict[str, Any] = {"batch_tokens": 64, "kv_type": "f32"}
    with mn.load(path, **options) as model:
        options["memory_budget"] = model.memory().heap_bytes + pages * page_bytes(model)
    with mn.load(path, **options) as model:
        with pytest.raises(mn.OutOfMemory, match="what would fit: ") as caught:
            model.generate(ids(8, 0), CONTEXT - 64, GREEDY)
        if found := re.search(r"a prompt and answer of at most (\d+) tokens together", str(caught.value)):
            together = int(found[1])
            for prompt in {1, together - 5}:
                drawn = model.generate(ids(prompt, 0), together - prompt, GREEDY, ignore_eos=True)
                assert (len(drawn.token_ids), drawn.finish_reason) == (together - prompt, "length")
            with pytest.raises(mn.OutOfMemory, match=f"at most {together} tokens"):
                model.generate(ids(1, 0), together + PAGE, GREEDY)
            return
    found = re.search(r"a context of (\d+) tokens", str(caught.value))
    assert found
    with mn.load(path, context_length=int(found[1]), **options) as model:
        assert model.generate(ids(8, 0), None, GREEDY, ignore_eos=True).finish_reason == "context"


@pytest.mark.cpu_only  # the budget is counted without what a device needs to upload them
def test_copies_of_weights_are_named_where_their_room_would_do(tiny: Path) -> None:
    with mn.load(tiny, batch_tokens=64, weights="private") as model:
        model.generate([1], 1, GREEDY)
        use = model.memory()
        budget = use.heap_bytes + (64 << 10)
    copies = use.tags["weights"].current - use.mapped_bytes
    with mn.load(tiny, batch_tokens=64, weights="private", memory_budget=budget) as model:
        capacity = model.memory().capacity
        fits = capacity // page_bytes(model) * PAGE
        more = copies // page_bytes(model) * PAGE
        assert fits + more + PAGE < CONTEXT
        for tokens, named in ((fits + PAGE, True), (CONTEXT - 8, False)):
            with pytest.raises(mn.OutOfMemory, match="what would fit: a prompt") as caught:
                model.generate(ids(8, 0), tokens, GREEDY)
            assert ("weights of fewer bits, or mapped" in str(caught.value)) == named


def test_a_sequence_that_outgrows_the_budget_alone_ends_alone(load: Load) -> None:
    model = load(pages=20)
    cache = model.new_cache()
    with pytest.raises(mn.OutOfMemory) as caught:
        for seed in range(100):
            cache.extend(ids(40, seed), planned=CONTEXT)
    assert caught.value.owner.startswith("kv")
    assert len(model.generate(ids(100, 0), 10, GREEDY, ignore_eos=True).token_ids) == 10
    cache.close()
    assert model.memory().tags["kv"].current == 0


# ---- compaction -----------------------------------------------------------------------------------------------------


def test_compaction_gives_heaps_back_while_sequences_live(load: Load) -> None:
    model, free = load(), load()
    caches = [model.new_cache() for _ in range(64)]
    # Grown in turn, so that pages of all of them lie in every slab.
    for step in range(12):
        for seed, cache in enumerate(caches):
            cache.extend(ids(12 * PAGE, seed)[step * PAGE : (step + 1) * PAGE], planned=CONTEXT)
    for seed in range(64):
        if seed % 8:
            caches[seed].close()
    before = model.memory()
    moved = model.compact()
    after = model.memory()
    assert moved > 0
    assert after.pages == before.pages == 8 * 12
    assert after.tags["kv"].current < 0.5 * before.tags["kv"].current
    assert after.tags["kv"].current <= 1.1 * after.pages * page_bytes(model)
    assert model.compact() == 0
    for seed in range(0, 64, 8):
        expected = free.logits([*ids(12 * PAGE, seed), 5])
        logits = caches[seed].extend([5], planned=CONTEXT)
        atol = 0 if model.device["backend"] == "cpu" else 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=atol)
        caches[seed].close()
