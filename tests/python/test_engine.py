"""Generation, caches and memory of a loaded model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import metallic_native as mn
from metallic_native import _native

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
Load = Callable[..., mn.Model]
GREEDY = mn.Sampling.greedy()
ARCHITECTURES = ["llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "phi3-longrope", "smollm3"]


def prompt(model: mn.Model, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, model.vocabulary_size, count).tolist()


# ---- results do not depend on the schedule -------------------------------------------------------------------------


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "q4_0", "f32,window:k=q4_0,full:v=q8_0"])
def test_threads_and_chunks_do_not_change_a_bit(load_golden: Load, name: str, kv_type: str) -> None:
    reference = load_golden(name, kv_type=kv_type, threads=1)
    ids = prompt(reference, 90)
    expected = reference.logits(ids, all_positions=True)
    assert np.isfinite(expected).all()
    for threads, batch_tokens in ((2, 512), (3, 7), (5, 33), (1, 1)):
        model = load_golden(name, kv_type=kv_type, threads=threads, batch_tokens=batch_tokens)
        np.testing.assert_array_equal(model.logits(ids, all_positions=True), expected)
        np.testing.assert_array_equal(model.logits(ids)[0], expected[-1])


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3moe"])
def test_company_in_the_batch_does_not_change_a_bit(load_golden: Load, name: str) -> None:
    model = load_golden(name, threads=2, batch_tokens=16)
    prompts = [prompt(model, count, seed) for seed, count in enumerate((1, 40, 7, 23))]
    alone = [model.logits(ids, all_positions=True) for ids in prompts]
    sequences = [model.native.create_sequence() for _ in prompts]
    together = np.empty((sum(map(len, prompts)), model.vocabulary_size), np.float32)
    model.native.forward(sequences, [np.array(ids, np.int32) for ids in prompts], [2] * 4, [False] * 4, together)
    np.testing.assert_array_equal(together, np.concatenate(alone))
    # One more token of each, next to a fresh prompt: runs of one beside a long run.
    fresh = model.native.create_sequence()
    tokens = [np.array([5], np.int32)] * 4 + [np.array(prompts[1], np.int32)]
    mixed = np.empty((5, model.vocabulary_size), np.float32)
    model.native.forward([*sequences, fresh], tokens, [1] * 5, [False] * 5, mixed)
    for ids, row in zip(prompts, mixed, strict=False):
        np.testing.assert_array_equal(row, model.logits([*ids, 5])[0])
    np.testing.assert_array_equal(mixed[4], alone[1][-1])


@pytest.mark.cpu_only
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_instruction_sets_agree(isa: str, tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, numpy as np, metallic_native as mn
        model = mn.load(sys.argv[1], threads=2)
        np.save(sys.argv[2], model.logits(list(range(60)), all_positions=True))
        print(model.device["detail"])
        """
    )
    results = []
    for forced in ("portable", isa):
        out = tmp_path / f"{forced}.npy"
        done = subprocess.run(
            [sys.executable, "-c", script, str(GOLDENS / "gemma2.gguf"), str(out)],
            env={**os.environ, "METALLIC_CPU_ISA": forced},
            capture_output=True,
            text=True,
        )
        if "METALLIC_CPU_ISA" in done.stderr:
            pytest.skip(done.stderr.splitlines()[-1])
        assert done.returncode == 0, done.stderr
        assert forced in done.stdout
        results.append(np.load(out))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-4 * np.abs(results[0]).max())


# ---- generation ------------------------------------------------------------------------------------------------------


def test_greedy_is_the_argmax_of_the_logits(load_golden: Load) -> None:
    model = load_golden("qwen3")
    ids = prompt(model, 12)
    result = model.generate(ids, max_tokens=15, sampling=GREEDY, ignore_eos=True)
    assert result.finish_reason == "length"
    expected = list(ids)
    for _ in range(15):
        expected.append(int(model.logits(expected)[0].argmax()))
    assert result.token_ids == expected[12:]
    assert result.text == model.tokenizer.decode(result.token_ids, skip_special=True)
    assert result.stats.prompt_tokens == 12
    assert result.stats.completion_tokens == 15
    assert result.stats.decode_seconds > 0
    assert result.stats.first_token_seconds > 0


def test_the_same_seed_gives_the_same_text(load_golden: Load) -> None:
    model = load_golden("llama")
    sampling = mn.Sampling(temperature=1.5, top_k=0, seed=7)
    first = model.generate("the", max_tokens=30, sampling=sampling, ignore_eos=True)
    again = model.generate("the", max_tokens=30, sampling=sampling, ignore_eos=True)
    other = model.generate("the", max_tokens=30, sampling=sampling.replace(seed=8), ignore_eos=True)
    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids


def test_streaming_equals_generating(load_golden: Load) -> None:
    model = load_golden("llama")
    sampling = mn.Sampling(temperature=1.0, seed=3, logprobs=2)
    chunks = list(model.stream("in the", max_tokens=40, sampling=sampling, ignore_eos=True))
    result = model.generate("in the", max_tokens=40, sampling=sampling, ignore_eos=True)
    assert "".join(chunk.text for chunk in chunks) == result.text
    assert [chunk.token_id for chunk in chunks if chunk.token_id is not None] == result.token_ids
    assert [chunk.finish_reason for chunk in chunks][:-1] == [None] * (len(chunks) - 1)
    assert result.logprobs is not None
    assert result.top_logprobs is not None
    assert len(result.logprobs) == len(result.token_ids) == len(result.top_logprobs)
    assert all(len(top) == 2 for top in result.top_logprobs)


def test_logprobs_are_those_of_the_model(load_golden: Load) -> None:
    model = load_golden("qwen2")
    ids = prompt(model, 9)
    result = model.generate(ids, max_tokens=4, sampling=mn.Sampling(seed=1, logprobs=0), ignore_eos=True)
    logits = model.logits([*ids, *result.token_ids], all_positions=True).astype(np.float64)[8:-1]
    expected = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    expected -= logits.max(-1, keepdims=True)
    assert result.logprobs == pytest.approx([expected[i, t] for i, t in enumerate(result.token_ids)], abs=1e-4)


def test_stop_strings_end_the_text_before_them(load_golden: Load) -> None:
    model = load_golden("llama")
    sampling = mn.Sampling(temperature=1.0, seed=5)
    whole = model.generate("on", max_tokens=60, sampling=sampling, ignore_eos=True).text
    at = next(i for i in range(10, len(whole) - 2) if whole[i : i + 2].isascii())
    stop = whole[at : at + 2]
    result = model.generate("on", max_tokens=60, sampling=sampling, ignore_eos=True, stop=[stop, "never seen"])
    assert result.text == whole[: whole.index(stop)]
    assert result.finish_reason == "stop"


def test_stop_token_ids(load_golden: Load) -> None:
    model = load_golden("llama")
    whole = model.generate("on", max_tokens=20, sampling=GREEDY, ignore_eos=True).token_ids
    stop = whole[10]
    result = model.generate("on", max_tokens=20, sampling=GREEDY, ignore_eos=True, stop=stop)
    assert result.token_ids == whole[: whole.index(stop)]
    assert result.finish_reason == "stop"


def test_end_of_generation_tokens_end_it_unless_ignored(load_golden: Load) -> None:
    model = load_golden("llama")
    eos = model.tokenizer.eos_id
    assert eos is not None
    forced = mn.Sampling(temperature=0, logit_bias={eos: 1e4})
    ended = model.generate("on", max_tokens=5, sampling=forced)
    assert (ended.token_ids, ended.text, ended.finish_reason) == ([], "", "stop")
    ignored = model.generate("on", max_tokens=5, sampling=forced, ignore_eos=True)
    assert (ignored.token_ids, ignored.finish_reason) == ([eos] * 5, "length")


def test_the_context_ends_a_generation(load_golden: Load) -> None:
    model = load_golden("llama", context_length=32)
    result = model.generate(prompt(model, 20), max_tokens=None, sampling=GREEDY, ignore_eos=True)
    assert result.finish_reason == "context"
    assert len(result.token_ids) == 13  # the last token needs no place
    full = model.generate(prompt(model, 32), max_tokens=5, sampling=GREEDY, ignore_eos=True)
    assert (len(full.token_ids), full.finish_reason) == (1, "context")
    with pytest.raises(mn.RequestError, match="33 tokens"):
        model.generate(prompt(model, 33))


def test_bad_requests_are_refused_and_lose_nothing(load_golden: Load) -> None:
    model = load_golden("llama")
    for arguments in (
        {"prompt": []},
        {"prompt": [model.vocabulary_size]},
        {"prompt": [-1]},
        {"prompt": "a", "max_tokens": 0},
        {"prompt": "a", "stop": [""]},
        {"prompt": "a", "stop": [10**9]},
        {"prompt": "a", "sampling": mn.Sampling(logit_bias={10**6: 1.0})},
    ):
        with pytest.raises(mn.RequestError):
            model.generate(**arguments)  # type: ignore[arg-type]
    with pytest.raises(mn.RequestError):
        mn.load(GOLDENS / "llama.gguf", device="abacus")
    for kv_type in ("q2", "", "k=f16;v=f16", "f16,f16", "k=\0", "\udcff", "f" * 10**6, None, 8):
        with pytest.raises(mn.RequestError):
            mn.load(GOLDENS / "llama.gguf", kv_type=kv_type)  # type: ignore[arg-type]
    with pytest.raises(mn.RequestError):
        mn.load(GOLDENS / "llama.gguf", context_length=10**6)
    assert len(model.generate("a", max_tokens=3, ignore_eos=True).token_ids) == 3
    assert model.memory().pages == 0


def test_chat_uses_the_template(load_golden: Load) -> None:
    model = load_golden("llama")
    messages = [{"role": "user", "content": "the thing"}]
    ids = model.template.encode(model.tokenizer, messages)
    assert model.tokenizer.decode(ids).startswith("<|im_start|>user")
    direct = model.generate(ids, max_tokens=10, sampling=GREEDY, ignore_eos=True)
    assert model.chat(messages, max_tokens=10, sampling=GREEDY).text == direct.text or direct.finish_reason == "length"


def test_a_chat_can_go_on_beyond_the_context(load_golden: Load) -> None:
    messages = [{"role": "user", "content": "the thing"}]
    whole = load_golden("llama")
    ids = whole.template.encode(whole.tokenizer, messages)
    model = load_golden("llama", context_length=len(ids) + 8)
    endless = GREEDY.replace(logit_bias=dict.fromkeys(model.tokenizer.end_of_generation_ids, -1000000.0))
    assert model.chat(messages, 30, endless).finish_reason == "context"
    shifted = model.chat(messages, 30, endless, context_shift=2)
    assert (shifted.finish_reason, len(shifted.token_ids)) == ("length", 30)
    assert shifted.stats.context_shifts > 0
    assert shifted.token_ids == model.generate(ids, 30, endless, context_shift=2).token_ids


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_session_computes_only_what_is_new(load_golden: Load, name: str) -> None:
    model = load_golden(name, kv_type="f32")
    with mn.Session(model, system="the") as session:
        list(session.send("in", max_tokens=6, sampling=GREEDY))
        stats = mn.GenerationStats()
        answer = "".join(chunk.text for chunk in session.send("on", max_tokens=6, sampling=GREEDY, stats=stats))
        messages = session.messages
        assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
        assert messages[-1]["content"] == answer
        assert model.memory().pages > 0
    fresh = model.chat(messages[:-1], max_tokens=6, sampling=GREEDY)
    assert fresh.text == answer
    assert 0 < stats.cached_tokens < stats.prompt_tokens
    assert model.memory().pages == 0


def test_sequences_that_outgrow_the_trained_context_change_their_rope(load_golden: Load) -> None:
    model = load_golden("phi3-longrope", kv_type="f32")
    original = model.config.rope.original_context
    assert original < model.context_length
    ids = prompt(model, 8)
    cache = model.new_cache()
    short = cache.extend(ids, planned=original).copy()
    assert cache.keep_prefix([*ids, 1], planned=original + 1) == 0  # other tables: nothing can be kept
    extended = cache.extend(ids, planned=original + 1)
    assert not np.array_equal(short, extended)


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_pages_follow_the_tokens_and_come_back(load_golden: Load) -> None:
    model = load_golden("llama")
    before = model.memory()
    cache = model.new_cache()
    for length in range(1, 200):
        cache.extend([length % 7], planned=200)
        assert model.memory().pages == -(-length // before.page_tokens)
    cache.close()
    after = model.memory()
    assert after.tags["kv"].current == before.tags["kv"].current == 0
    assert after.tags["kv"].peak > 0
    for use in (before.tags["activations"], after.tags["activations"]):
        assert use.current == use.peak == before.tags["activations"].current
    assert after.tags["activations"].allocations == before.tags["activations"].allocations
    assert {tag: use.current for tag, use in after.tags.items() if tag != "staging"} == {
        tag: use.current for tag, use in before.tags.items() if tag != "staging"
    }


def test_windows_hold_no_more_pages_than_they_need(load_golden: Load) -> None:
    model = load_golden("gemma3")
    cache = model.new_cache()
    cache.extend(prompt(model, 200), planned=200)
    for group in model.memory().cache_groups:
        if group.window:
            assert group.pages_in_use <= group.window // 32 + 2
        else:
            assert group.pages_in_use == 7


def test_forks_share_their_history(load_golden: Load) -> None:
    model = load_golden("llama", kv_type="f32")
    ids = prompt(model, 50)
    first = model.native.create_sequence()
    logits = np.empty((1, model.vocabulary_size), np.float32)

    def step(sequence: _native.Sequence, tokens: list[int]) -> np.ndarray:
        model.native.forward([sequence], [np.array(tokens, np.int32)], [1], [False], logits)
        return logits.copy()

    step(first, ids)
    pages = model.memory().pages
    second = first.fork()
    assert model.memory().pages == pages
    a, b = step(first, [3]), step(second, [4])
    # On the CPU these are equal bits; elsewhere a token alone may be computed by another kernel than in a prompt.
    atol = 0 if model.device["backend"] == "cpu" else 1e-5 * np.abs(a).max()
    np.testing.assert_allclose(a, model.logits([*ids, 3]), rtol=0, atol=atol)
    np.testing.assert_allclose(b, model.logits([*ids, 4]), rtol=0, atol=atol)
    first.close()
    np.testing.assert_allclose(step(second, [5]), model.logits([*ids, 4, 5]), rtol=0, atol=atol)


# ---- threads, signals, closing -----------------------------------------------------------------------------------


def test_threads_share_a_model(load_golden: Load) -> None:
    model = load_golden("llama", threads=2)
    expected = [model.generate(prompt(model, 20, s), max_tokens=12, sampling=GREEDY, ignore_eos=True) for s in range(6)]
    results: dict[int, list[int]] = {}

    def work(seed: int) -> None:
        done = model.generate(prompt(model, 20, seed), max_tokens=12, sampling=GREEDY, ignore_eos=True)
        results[seed] = done.token_ids

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[seed] for seed in range(6)] == [result.token_ids for result in expected]


def test_a_closed_model_says_so(load_golden: Load) -> None:
    model = load_golden("llama")
    stream = model.stream("a", max_tokens=50, ignore_eos=True)
    next(stream)
    model.close()
    model.close()
    with pytest.raises(mn.Error, match="closed"):
        list(stream)
    with pytest.raises(mn.Error, match="closed"):
        model.generate("a")


def test_closing_a_stream_gives_its_pages_back(load_golden: Load) -> None:
    model = load_golden("llama")
    stream = model.stream("a", max_tokens=50, ignore_eos=True)
    next(stream)
    assert model.memory().pages == 1
    stream.close()  # type: ignore[attr-defined]
    assert model.memory().pages == 0


def test_ctrl_c_ends_a_long_pass_and_the_model_goes_on() -> None:
    script = textwrap.dedent(
        """
        import sys, time, numpy as np, metallic_native as mn
        model = mn.load(sys.argv[1], threads=1, batch_tokens=64)
        cache = model.new_cache()
        print("ready", flush=True)
        start = time.perf_counter()
        try:
            while True:
                cache.extend([1] * 250, planned=250)
                cache.keep_prefix([2, 2], planned=250)
        except KeyboardInterrupt:
            cache.close()
            assert len(model.generate("a", max_tokens=3, ignore_eos=True).token_ids) == 3
            assert model.memory().pages == 0
            print("interrupted", flush=True)
        """
    )
    command = [sys.executable, "-c", script, str(GOLDENS / "gemma2-27b.gguf")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        threading.Event().wait(0.3)
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
    assert process.returncode == 0


# ---- tracing ---------------------------------------------------------------------------------------------------------


def test_events_carry_scopes_and_nothing_is_recorded_when_off(load_golden: Load) -> None:
    model = load_golden("llama")
    model.generate("a", max_tokens=3, ignore_eos=True)
    assert model.native.events() == []
    model.native.set_tracing(True)
    model.generate("a", max_tokens=3, ignore_eos=True)
    scopes = {event[3] for event in model.native.events()}
    assert any(scope.startswith("forward/block.1/") for scope in scopes)
    assert {name for name, _ in model.native.plan} >= {"embedding", "linear", "kv_write", "attention"}
