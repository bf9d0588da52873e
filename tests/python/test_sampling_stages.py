"""Every stage of the sampler against its definition."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("metallic_native._native")

from helpers_gguf import VOCABULARIES, read_metadata
from metallic_native.errors import RequestError
from metallic_native.sampling import DEFAULT_ORDER, SamplerChain, Sampling
from metallic_native.sampling.breakers import breaker_sequences
from metallic_native.text import Tokenizer
from sampling_reference import NEUTRAL, Reference, logit_arrays, softmax

STAGE_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "top_k": st.integers(1, 9100),
    "top_p": st.floats(0, 1),
    "min_p": st.floats(0, 1),
    "typical_p": st.floats(0, 1),
    "top_n_sigma": st.floats(0.01, 5),
}


@pytest.mark.parametrize("stage", STAGE_VALUES)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_stage_equals_its_definition(stage: str, data: st.DataObject) -> None:
    logits = data.draw(logit_arrays())
    sampling = NEUTRAL.replace(**{stage: data.draw(STAGE_VALUES[stage])})
    reference = Reference(logits)
    reference.run(sampling)
    assume(reference.clear)
    reference.check(sampling, logits)


@settings(max_examples=120, deadline=None)
@given(logits=logit_arrays(), threshold=st.floats(0.001, 0.5))
def test_xtc_drops_all_but_the_least_of_the_top_choices(logits: np.ndarray, threshold: float) -> None:
    sampling = NEUTRAL.replace(xtc_probability=1.0, xtc_threshold=threshold)
    reference = Reference(logits)
    reference.run(sampling)
    assume(reference.clear)
    reference.check(sampling, logits)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_chain_equals_the_stages_in_any_order(data: st.DataObject) -> None:
    logits = data.draw(logit_arrays())
    order = tuple(data.draw(st.permutations(DEFAULT_ORDER)))[: data.draw(st.integers(0, 9))]
    sampling = NEUTRAL.replace(
        temperature=data.draw(st.floats(0.2, 3)),
        top_k=data.draw(st.sampled_from([0, 1, 7, 40, 500])),
        top_p=data.draw(st.floats(0.3, 1)),
        min_p=data.draw(st.floats(0, 0.3)),
        typical_p=data.draw(st.floats(0.3, 1)),
        top_n_sigma=data.draw(st.sampled_from([0, 1.5])),
        order=order,
    )
    reference = Reference(logits)
    reference.run(sampling)
    assume(reference.clear)
    reference.check(sampling, logits)


def test_usual_chain_on_a_large_vocabulary() -> None:
    rng = np.random.default_rng(3)
    for spread in (0.5, 3.0):
        logits = rng.normal(0, spread, 128_256).astype(np.float32)
        for changes in ({}, {"top_k": 0}, {"top_k": 0, "top_p": 0.999, "min_p": 0.0}, {"top_k": 5000, "top_p": 0.5}):
            sampling = Sampling(seed=1, **changes)
            reference = Reference(logits)
            reference.run(sampling)
            ids, _ = SamplerChain(sampling, len(logits)).distribution(logits)
            # Among so many tokens some lie within rounding of a limit.
            assert len(set(ids.tolist()) ^ set(reference.ids.tolist())) <= 3


# Penalties, bias, DRY


def penalised(logits: np.ndarray, prompt: list[int], generated: list[int], s: Sampling) -> np.ndarray:
    out = logits.astype(np.float64).copy()
    everything = prompt + generated
    window = (
        everything if s.repeat_last_n < 0 else everything[len(everything) - min(s.repeat_last_n, len(everything)) :]
    )
    for token in set(window):
        out[token] = out[token] / s.repetition_penalty if out[token] > 0 else out[token] * s.repetition_penalty
    for token, count in Counter(generated).items():
        out[token] -= s.frequency_penalty * count + s.presence_penalty
    return out


@settings(max_examples=150, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 49), max_size=40),
    generated=st.lists(st.integers(0, 49), max_size=120),
    repetition=st.floats(0.5, 2),
    last_n=st.sampled_from([-1, 0, 1, 5, 64]),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
)
def test_penalties_equal_their_definition(
    prompt: list[int], generated: list[int], repetition: float, last_n: int, presence: float, frequency: float
) -> None:
    sampling = NEUTRAL.replace(
        repetition_penalty=repetition, repeat_last_n=last_n, presence_penalty=presence, frequency_penalty=frequency
    )
    logits = np.random.default_rng(len(prompt)).normal(0, 2, 50).astype(np.float32)
    chain = SamplerChain(sampling, 50, prompt=prompt)
    for token in generated:
        chain.accept(token)
    ids, probabilities = chain.distribution(logits)
    assert len(ids) == 50
    np.testing.assert_allclose(
        probabilities, softmax(penalised(logits, prompt, generated, sampling)), rtol=1e-4, atol=1e-30
    )


def test_penalties_apply_to_a_list_that_an_earlier_stage_has_scaled() -> None:
    logits = np.linspace(-3, 3, 200).astype(np.float32)
    order = ("top_k", "temperature", "penalties")
    sampling = NEUTRAL.replace(top_k=20, temperature=0.5, repetition_penalty=1.5, presence_penalty=0.25, order=order)
    chain = SamplerChain(sampling, 200, prompt=[3, 190])
    for token in (195, 195, 10):
        chain.accept(token)
    expected = logits[180:].astype(np.float64) / 0.5
    expected[[10, 15]] /= 1.5
    expected[15] -= 0.25
    ids, probabilities = chain.distribution(logits)
    np.testing.assert_array_equal(ids, np.arange(180, 200))
    np.testing.assert_allclose(probabilities, softmax(expected), rtol=1e-5)


def test_counts_stay_right_over_a_long_sequence() -> None:
    rng = np.random.default_rng(5)
    sampling = NEUTRAL.replace(repetition_penalty=1.3, repeat_last_n=7, frequency_penalty=0.01)
    chain = SamplerChain(sampling, 3000)
    tokens = [int(t) for t in rng.integers(0, 3000, 5000)]
    for token in tokens:
        chain.accept(token)
    logits = rng.normal(0, 1, 3000).astype(np.float32)
    _, probabilities = chain.distribution(logits)
    np.testing.assert_allclose(probabilities, softmax(penalised(logits, [], tokens, sampling)), rtol=1e-4)


def test_logit_bias_adds_and_bans() -> None:
    logits = np.zeros(100, np.float32)
    sampling = NEUTRAL.replace(logit_bias={3: 2.0, 99: -1.0, 50: -math.inf})
    ids, probabilities = SamplerChain(sampling, 100).distribution(logits)
    expected = np.zeros(100)
    expected[3], expected[99], expected[50] = 2.0, -1.0, -np.inf
    assert 50 not in ids
    np.testing.assert_allclose(probabilities, softmax(expected)[ids], rtol=1e-5)


def dry_reference(history: list[int], breakers: list[list[int]], s: Sampling) -> dict[int, float]:
    window = history if s.dry_penalty_last_n < 0 else history[len(history) - min(s.dry_penalty_last_n, len(history)) :]
    n = len(window)
    limit = n
    for start in reversed(range(n)):
        ends = [start + len(b) for b in breakers if window[start : start + len(b)] == b]
        if ends:
            limit = n - max(ends)
            break
    longest: dict[int, int] = {}
    for at in range(1, n):
        length = 0
        while length < min(at, limit) and window[at - 1 - length] == window[n - 1 - length]:
            length += 1
        if length >= s.dry_allowed_length:
            longest[window[at]] = max(longest.get(window[at], 0), length)
    return {
        token: s.dry_multiplier * s.dry_base ** (length - s.dry_allowed_length)
        for token, length in longest.items()
        if [token] not in breakers
    }


class LetterTokenizer:
    """Tokens are the given strings; encoding takes the longest that fits."""

    def __init__(self, words: list[str], dummy_space: bool = False) -> None:
        self.words = words
        self.dummy_space = dummy_space

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def token_bytes(self, token: int) -> bytes:
        return self.words[token].encode()

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        assert (add_special, parse_special) == (False, False)
        ids: list[int] = []
        text = " " + text if self.dummy_space else text
        while text:
            word = max((w for w in self.words if w and text.startswith(w)), key=len)
            ids.append(self.words.index(word))
            text = text[len(word) :]
        return ids


@settings(max_examples=300, deadline=None)
@given(
    history=st.lists(st.integers(0, 4), max_size=60),
    base=st.floats(1, 2),
    allowed=st.integers(1, 4),
    last_n=st.sampled_from([-1, 1, 10, 25]),
    breakers=st.sampled_from([(), ("e",), ("cd",), ("e", "ab"), ("bcd", "a")]),
)
def test_dry_equals_the_naive_search(
    history: list[int], base: float, allowed: int, last_n: int, breakers: tuple[str, ...]
) -> None:
    tokenizer = LetterTokenizer(["a", "b", "c", "d", "e", "z"])
    sampling = NEUTRAL.replace(
        dry_multiplier=0.3,
        dry_base=base,
        dry_allowed_length=allowed,
        dry_penalty_last_n=last_n,
        dry_sequence_breakers=breakers,
    )
    chain = SamplerChain(sampling, 6, tokenizer, prompt=history[:10])
    for token in history[10:]:
        chain.accept(token)
    sequences = [tokenizer.encode(b, add_special=False, parse_special=False) for b in breakers]
    expected = np.zeros(6)
    for token, penalty in dry_reference(history, sequences, sampling).items():
        expected[token] -= penalty
    ids, probabilities = chain.distribution(np.zeros(6, np.float32))
    np.testing.assert_allclose(probabilities, softmax(expected)[ids], rtol=1e-4, atol=1e-12)


def test_dry_overflow_leaves_finite_numbers() -> None:
    sampling = NEUTRAL.replace(dry_multiplier=1.0, dry_base=10.0)
    chain = SamplerChain(sampling, 4, prompt=[1] * 5000)
    ids, probabilities = chain.distribution(np.array([0, 50, 0, 0], np.float32))
    assert probabilities[list(ids).index(1)] == 0
    assert probabilities.sum() == pytest.approx(1)


def test_breaker_strings_become_token_sequences() -> None:
    words = ["\n", "a", "a\n", "\n\n", "x<", "<", "|", "im", "<|", "|im", " "]
    found = breaker_sequences(LetterTokenizer(words), ("\n", "<|im"), len(words))
    assert [s for s in found if len(s) == 1] == [[0], [2], [3]]
    assert {(4, 9), (5, 9), (8, 7)} <= {tuple(s) for s in found if len(s) > 1}
    assert all("".join(words[t] for t in s).endswith("<|im") for s in found if len(s) > 1)

    spaced = breaker_sequences(LetterTokenizer([*words, " |im", " im"], dummy_space=True), ("<|im",), 13)
    assert (4, 9) in {tuple(s) for s in spaced}
    assert (8, 7) in {tuple(s) for s in spaced}


def test_breakers_need_a_tokenizer() -> None:
    with pytest.raises(RequestError, match="dry_sequence_breakers"):
        SamplerChain(Sampling(dry_multiplier=1.0), 100)
    SamplerChain(Sampling(dry_multiplier=1.0, dry_penalty_last_n=0), 100)


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm"])
def test_breakers_of_real_vocabularies(name: str) -> None:
    path = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        pytest.skip(f"{path.name} is not there: the shared test data is absent")
    tokenizer = Tokenizer.from_metadata(read_metadata(path))
    breakers = ("\n", "<|end|>", "\u3002")
    found = breaker_sequences(tokenizer, breakers, tokenizer.vocab_size)
    single = {sequence[0] for sequence in found if len(sequence) == 1}
    for token in range(tokenizer.vocab_size):
        data = tokenizer.token_bytes(token)
        assert (token in single) == any(breaker.encode() in data for breaker in breakers)
    texts = [b"".join(map(tokenizer.token_bytes, sequence)) for sequence in found if len(sequence) > 1]
    assert len(texts) > 5
    assert all(text.endswith(b"<|end|>") for text in texts)
    # However a text writes the breaker, DRY must not look across it.
    for text in ("a <|end|>", "x<|end|>", "<|end|>"):
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        assert any(ids[len(ids) - len(sequence) :] == sequence for sequence in found)
