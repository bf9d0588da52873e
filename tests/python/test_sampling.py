"""Sampling parameters and the sampler chain: draws, seeds, masks, processors, log-probabilities, faults."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from collections import Counter
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("metallic_native._native")

from metallic_native.errors import DeviceError, RequestError
from metallic_native.sampling import SampledToken, SamplerChain, Sampling
from sampling_reference import NEUTRAL, Reference, logit_arrays, softmax

# The draw


def test_drawn_tokens_follow_the_distribution() -> None:
    logits = np.random.default_rng(0).normal(0, 1.5, 130).astype(np.float32)
    chain = SamplerChain(NEUTRAL.replace(seed=1234, temperature=0.9, top_k=100), 130)
    ids, probabilities = chain.distribution(logits)
    draws = 40_000
    counts = Counter(chain.sample(logits).id for _ in range(draws))
    assert set(counts) <= set(ids.tolist())
    expected = probabilities.astype(np.float64) * draws
    common = expected > 5
    chi_square = sum((counts[int(i)] - e) ** 2 / e for i, e in zip(ids[common], expected[common], strict=True))
    degrees = int(common.sum()) - 1
    assert degrees > 50
    assert abs(chi_square - degrees) < 4 * math.sqrt(2 * degrees)


def test_xtc_happens_with_its_probability() -> None:
    logits = np.array([5, 5, 5, 0], np.float32)
    chain = SamplerChain(NEUTRAL.replace(xtc_probability=0.25, seed=3), 4)
    counts = Counter(chain.sample(logits).id for _ in range(20_000))
    assert counts[0] / 20_000 == pytest.approx(0.75 / 3, abs=0.015)
    assert counts[2] / 20_000 == pytest.approx(0.25 + 0.75 / 3, abs=0.015)


def test_a_seed_gives_the_same_tokens_on_every_platform() -> None:
    chain = SamplerChain(Sampling(seed=42, repetition_penalty=1.1), 1000)
    steps = np.arange(1000, dtype=np.float32)
    tokens = []
    for i in range(12):
        # Small multiples of 1/64, so that the logits themselves are exact everywhere.
        logits = ((steps * (7 + i)) % 257) / 64
        tokens.append(chain.sample(logits.astype(np.float32)).id)
        chain.accept(tokens[-1])
    assert tokens == [146, 577, 942, 693, 280, 192, 316, 73, 651, 594, 650, 828]


def test_seeds_clones_and_reset() -> None:
    logits = np.random.default_rng(2).normal(0, 1, 500).astype(np.float32)

    def text(chain: SamplerChain, n: int = 30) -> list[int]:
        out = []
        for _ in range(n):
            out.append(chain.sample(logits).id)
            chain.accept(out[-1])
        return out

    sampling = Sampling(seed=9, frequency_penalty=0.5)
    first, second = SamplerChain(sampling, 500), SamplerChain(sampling, 500)
    start = text(first)
    assert start == text(second)
    assert start != text(SamplerChain(sampling.replace(seed=10), 500))
    fork, other = first.clone(), first.clone(seed=77)
    assert other.seed == 77
    assert fork.seed == 9
    going_on = text(first)
    assert going_on == text(fork)
    assert going_on != text(other)
    assert fork.history.tolist() == start + going_on
    first.reset()
    assert first.history.size == 0
    assert text(first) == start

    drawn = SamplerChain(Sampling(), 500)
    assert drawn.seed != SamplerChain(Sampling(), 500).seed
    assert text(drawn) == text(SamplerChain(Sampling(seed=drawn.seed), 500))


def test_distribution_changes_nothing() -> None:
    logits = np.random.default_rng(2).normal(0, 1, 500).astype(np.float32)
    sampling = Sampling(seed=5, xtc_probability=0.5, xtc_threshold=0.01)
    first, second = SamplerChain(sampling, 500), SamplerChain(sampling, 500)
    for _ in range(5):
        first.distribution(logits)
        assert first.sample(logits).id == second.sample(logits).id


def test_greedy_takes_the_lowest_of_the_greatest() -> None:
    logits = np.full(300, -1.0, np.float32)
    logits[[70, 150, 299]] = 2.0
    chain = SamplerChain(Sampling.greedy(typical_p=0.1, top_n_sigma=1, xtc_probability=1.0), 300)
    assert chain.sample(logits) == SampledToken(70, None, ())
    assert SamplerChain(Sampling.greedy(logit_bias={299: 0.5}), 300).sample(logits).id == 299
    assert SamplerChain(Sampling.greedy(repetition_penalty=2.0), 300, prompt=[70]).sample(logits).id == 150
    assert Sampling.greedy().is_greedy
    assert not Sampling().is_greedy


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-6])
def test_tiny_temperature_is_almost_greedy(temperature: float) -> None:
    logits = np.array([-1e30, 3.0, 2.9, -np.inf, 1e30], np.float32)
    chain = SamplerChain(NEUTRAL.replace(temperature=temperature), 5)
    assert {chain.sample(logits).id for _ in range(20)} == {4}


def test_huge_temperature_is_uniform() -> None:
    _, probabilities = SamplerChain(NEUTRAL.replace(temperature=1e300), 3).distribution(
        np.array([0, 9, -9], np.float32)
    )
    np.testing.assert_allclose(probabilities, 1 / 3, rtol=1e-6)


# Log-probabilities and masks


@settings(max_examples=80, deadline=None)
@given(logits=logit_arrays(), asked=st.integers(0, 40))
def test_logprobs_are_those_of_the_raw_logits(logits: np.ndarray, asked: int) -> None:
    asked = min(asked, len(logits))
    sampling = Sampling(
        seed=3, logprobs=asked, temperature=0.5, logit_bias={0: 1.5}, processors=(lambda _, x: x * 0.5,)
    )
    token, logprob, top = SamplerChain(sampling, len(logits)).sample(logits)
    wide = logits.astype(np.float64)
    expected = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    assert logprob == pytest.approx(expected[token], abs=1e-4)
    order = np.lexsort((np.arange(len(logits)), -wide))[:asked]
    assert [i for i, _ in top] == order.tolist()
    np.testing.assert_allclose([p for _, p in top], expected[order], atol=1e-4)


def bitmask(allowed: np.ndarray, extra_words: int = 0) -> np.ndarray:
    padded = np.concatenate([allowed, np.ones(-len(allowed) % 32 + 32 * extra_words, bool)])
    return np.packbits(padded, bitorder="little").view("<u4").astype(np.uint32)


@settings(max_examples=150, deadline=None)
@given(logits=logit_arrays(), share=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]), data=st.data())
def test_mask_leaves_only_allowed_tokens(logits: np.ndarray, share: float, data: st.DataObject) -> None:
    allowed = np.random.default_rng(data.draw(st.integers(0, 999))).random(len(logits)) < share
    allowed[data.draw(st.integers(0, len(logits) - 1))] = True
    left = np.where(allowed, logits, -np.inf)
    chain = SamplerChain(NEUTRAL.replace(top_k=30), len(logits))
    mask = bitmask(allowed, data.draw(st.integers(0, 2)))
    if not np.isfinite(left).any():
        with pytest.raises(RequestError, match="no token is left"):
            chain.sample(logits, mask)
        return
    reference = Reference(left)
    reference.top_k(30)
    for form in (mask, mask.view(np.int32)):
        ids, probabilities = chain.distribution(logits, form)
        np.testing.assert_array_equal(ids, reference.ids)
        np.testing.assert_allclose(probabilities, softmax(reference.logits), rtol=2e-5, atol=1e-7)
    assert allowed[chain.sample(logits, mask).id]


# Processors


def test_processors_see_history_and_change_logits() -> None:
    seen: list[list[int]] = []

    def in_place(tokens: np.ndarray, logits: np.ndarray) -> None:
        seen.append(tokens.tolist())
        logits[:] = -np.inf
        logits[5] = logits[6] = 0

    def returning(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        assert logits[5] == 0
        return np.where(np.arange(10) == 6, 1.0, -np.inf)  # float64

    chain = SamplerChain(Sampling(processors=(in_place, returning)), 10, prompt=[1, 2])
    chain.accept(3)
    logits = np.arange(10, dtype=np.float32)
    assert chain.sample(logits).id == 6
    assert seen == [[1, 2, 3]]
    assert logits.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (lambda t, x: x[:3], "shape"),
        (lambda t, x: [0.0] * 10, "list"),
        (lambda t, x: x * np.nan, "token 0"),
        (lambda t, x: 1 / 0, "ZeroDivisionError"),
        (lambda t, x: np.full(10, -np.inf, np.float32), "no token is left"),
    ],
)
def test_faulty_processors_fail_the_request(processor: Any, message: str) -> None:
    chain = SamplerChain(Sampling(processors=(processor,)), 10)
    with pytest.raises(RequestError, match=message):
        chain.sample(np.zeros(10, np.float32))


# Faults and edges


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("at", [0, 63, 64, 99])
def test_damaged_logits_are_a_device_error(bad: float, at: int) -> None:
    logits = np.zeros(100, np.float32)
    logits[at] = bad
    for sampling in (Sampling(seed=1), Sampling.greedy()):
        chain = SamplerChain(sampling, 100)
        with pytest.raises(DeviceError, match=f"token {at}"):
            chain.sample(logits)
        assert 0 <= chain.sample(np.zeros(100, np.float32)).id < 100


def test_no_finite_logit_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="every logit"):
        SamplerChain(Sampling(), 100).sample(np.full(100, -np.inf, np.float32))


def test_banning_all_but_one_and_all() -> None:
    logits = np.random.default_rng(1).normal(0, 1, 70).astype(np.float32)
    bans = dict.fromkeys(range(70), -math.inf)
    for sampling in (Sampling(logit_bias=bans), Sampling.greedy(logit_bias=bans)):
        with pytest.raises(RequestError, match="no token is left"):
            SamplerChain(sampling, 70).sample(logits)
        del bans[69]
        assert SamplerChain(sampling.replace(logit_bias=bans), 70).sample(logits).id == 69
        bans[69] = -math.inf


@pytest.mark.parametrize(
    "changes", [{"top_p": 0.0}, {"top_p": 1e-12}, {"min_p": 1.0}, {"typical_p": 0.0}, {"top_k": 1}]
)
def test_the_narrowest_setting_keeps_one_token(changes: dict[str, float]) -> None:
    logits = np.random.default_rng(1).normal(0, 1, 500).astype(np.float32)
    ids, _ = SamplerChain(NEUTRAL.replace(**changes), 500).distribution(logits)
    assert len(ids) == 1
    if "typical_p" not in changes:
        assert ids[0] == logits.argmax()


@pytest.mark.parametrize(
    "changes", [{"top_k": 10**6}, {"top_k": 70}, {"top_p": 1.0}, {"typical_p": 1.0}, {"min_p": 0.0}]
)
def test_the_widest_setting_keeps_every_token(changes: dict[str, float]) -> None:
    ids, _ = SamplerChain(NEUTRAL.replace(**changes), 70).distribution(np.linspace(-50, 50, 70).astype(np.float32))
    assert len(ids) == 70


def test_equal_logits_keep_the_lowest_ids() -> None:
    for n in (5, 70, 5000):
        ids, _ = SamplerChain(NEUTRAL.replace(top_k=3), n).distribution(np.zeros(n, np.float32))
        assert ids.tolist() == [0, 1, 2]
        ids, _ = SamplerChain(NEUTRAL.replace(top_p=0.5), n).distribution(np.zeros(n, np.float32))
        assert ids.tolist() == list(range(-(-n // 2)))
    zeros = np.array([0.0, -0.0, 0.0, -0.0], np.float32)
    ids, _ = SamplerChain(NEUTRAL.replace(top_k=2), 4).distribution(zeros)
    assert ids.tolist() == [0, 1]


def test_one_token_vocabulary() -> None:
    chain = SamplerChain(Sampling(logprobs=1), 1)
    assert chain.sample(np.array([-3.0], np.float32)) == SampledToken(0, 0.0, ((0, 0.0),))


def test_arrays_of_another_form_are_refused_or_converted() -> None:
    chain = SamplerChain(Sampling.greedy(), 64)
    good = np.zeros(64, np.float32)
    for bad in (good[:63], good.reshape(1, 64), np.zeros(64, np.int32), [0.0] * 64, None):
        with pytest.raises(RequestError, match="logits"):
            chain.sample(bad)  # type: ignore[arg-type]
    for mask in (
        np.zeros(1, np.uint32),
        np.zeros(0, np.uint32),
        np.zeros(2, np.uint64),
        np.zeros((1, 2), np.uint32),
        [3, 3],
    ):
        with pytest.raises(RequestError, match="mask"):
            chain.sample(good, mask)  # type: ignore[arg-type]
    backwards = np.arange(128, dtype=np.float16)[::-2]
    assert chain.sample(backwards).id == 0


@pytest.mark.parametrize("token", [-1, 64, 2**40, True, 1.0, "1"])
def test_bad_tokens_are_refused(token: Any) -> None:
    chain = SamplerChain(Sampling(), 64)
    for call in (chain.accept, lambda t: chain.accept_prompt([t])):
        with pytest.raises(RequestError, match="token"):
            call(token)
    with pytest.raises(RequestError, match="token 64"):
        chain.accept_prompt(np.array([1, 64]))
    assert chain.history.size == 0


def test_parameters_are_checked_against_the_vocabulary() -> None:
    with pytest.raises(RequestError, match="logit_bias names token 64"):
        SamplerChain(Sampling(logit_bias={64: 1.0}), 64)
    with pytest.raises(RequestError, match="logprobs = 65"):
        SamplerChain(Sampling(logprobs=65), 64)
    for n_vocab in (0, -5, True, 2.0, 2**31):
        with pytest.raises(RequestError, match="n_vocab"):
            SamplerChain(Sampling(), n_vocab)  # type: ignore[arg-type]


BAD_VALUES: list[tuple[str, Any]] = [
    *[("temperature", value) for value in (-0.1, math.nan, math.inf, True, "1", None)],
    *[("min_p", value) for value in (-0.1, 1.1, math.nan, np.True_, None)],
    *[("dry_multiplier", value) for value in (-0.1, math.nan, math.inf)],
    *[("top_p", value) for value in (-0.01, 1.01, math.nan)],
    *[("typical_p", value) for value in (-0.01, 2)],
    *[("xtc_probability", value) for value in (-1, 1.5)],
    *[("xtc_threshold", value) for value in (-1, 1.5)],
    ("top_n_sigma", -1),
    *[("top_k", value) for value in (-1, 1.5, True, None, 2**31)],
    *[("repetition_penalty", value) for value in (0, -1, math.inf, math.nan)],
    *[("repeat_last_n", value) for value in (-2, 1.0)],
    *[("presence_penalty", value) for value in (-2.1, 2.1, math.nan)],
    *[("frequency_penalty", value) for value in (-2.1, 2.1)],
    *[("dry_base", value) for value in (0.9, math.inf)],
    ("dry_allowed_length", 0),
    ("dry_penalty_last_n", -2),
    *[("dry_sequence_breakers", value) for value in ("\n", ("",), (1,), 5, ("x" * 41,), ("x",) * 65)],
    *[("logit_bias", value) for value in ([1], {-1: 0.0}, {True: 1.0}, {"1": 1.0}, {1: "x"})],
    *[("logit_bias", {1: value}) for value in (math.nan, math.inf, 1e300)],
    *[("seed", value) for value in (-1, 2**64, 1.0, True)],
    *[("logprobs", value) for value in (-1, 1.0, True)],
    *[("processors", value) for value in (5, (5,), "x")],
    *[("order", value) for value in ("top_k", ("top_q",), ("top_k", "top_k"), 3)],
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES, ids=lambda v: repr(v)[:20])
def test_bad_parameters_name_the_field(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name):
        Sampling(**{name: value})
    with pytest.raises(RequestError, match=name):
        Sampling().replace(**{name: value})


def test_parameters_are_values() -> None:
    values: dict[str, Any] = {
        "logit_bias": {5: 1, np.int64(6): np.float32(2)},
        "top_k": np.int32(7),
        "order": ["dry"],
    }
    sampling = Sampling(**values)
    assert type(sampling.top_k) is int
    assert sampling.order == ("dry",)
    assert sampling.logit_bias == {5: 1.0, 6: 2.0}
    assert sampling == sampling.replace() == copy.deepcopy(sampling) == pickle.loads(pickle.dumps(sampling))
    assert hash(sampling) == hash(copy.copy(sampling))
    assert sampling != sampling.replace(logit_bias={5: 1})
    with pytest.raises(FrozenInstanceError):
        sampling.top_k = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        sampling.logit_bias[5] = 0  # type: ignore[index]
    with pytest.raises(RequestError, match="topk"):
        sampling.replace(topk=3)
    with pytest.raises(RequestError, match="topk"):
        Sampling.greedy(topk=3)


def test_chains_in_many_threads() -> None:
    logits = np.random.default_rng(4).normal(0, 1, 20_000).astype(np.float32)
    alone = [SamplerChain(Sampling(seed=i), 20_000).sample(logits).id for i in range(8)]
    shared = SamplerChain(Sampling(seed=0), 20_000)
    found: dict[int, int] = {}

    def work(i: int) -> None:
        for _ in range(30):
            found[i] = SamplerChain(Sampling(seed=i), 20_000).sample(logits).id
            shared.accept(shared.sample(logits).id)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(8)] == alone
    assert shared.history.size == 240
