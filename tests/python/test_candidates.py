"""Steps whose tokens are drawn from candidates that the device chose: the text is that of drawing from all logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import metallic_native as mn
from metallic_native import _native
from metallic_native.engine.cache import CachedTokens
from metallic_native.sampling import SamplerChain

Load = Callable[..., mn.Model]
NO_LOGITS = np.empty((0, 0), np.float32)

SAMPLINGS = {
    "greedy": mn.Sampling.greedy(),
    "greedy with penalties": mn.Sampling.greedy(
        repetition_penalty=1.3, repeat_last_n=16, presence_penalty=0.4, frequency_penalty=0.2
    ),
    "greedy with bans": mn.Sampling.greedy(logit_bias={5: -math.inf, 7: 2.5, 11: -4.0, 40: math.pi}),
    "default": mn.Sampling(seed=3),
    "hot": mn.Sampling(temperature=2.0, top_k=256, top_p=1.0, min_p=0.0, seed=4),
    "everything": mn.Sampling(
        temperature=1.4,
        top_k=50,
        typical_p=0.9,
        top_p=0.9,
        min_p=0.01,
        xtc_probability=0.4,
        repetition_penalty=1.1,
        repeat_last_n=-1,
        presence_penalty=-0.3,
        dry_multiplier=0.9,
        dry_sequence_breakers=(),
        logit_bias={9: -1.5, 3: -math.inf},
        seed=5,
    ),
    "in another order": mn.Sampling(
        temperature=0.7,
        top_k=9,
        order=("penalties", "temperature", "top_k", "min_p", "dry"),
        presence_penalty=1,
        seed=6,
    ),
}


def chain(model: mn.Model, sampling: mn.Sampling) -> SamplerChain:
    return SamplerChain(sampling, model.vocabulary_size, model.tokenizer)


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_the_text_is_that_of_all_logits(load_golden: Load, architecture: str, name: str) -> None:
    sampling = SAMPLINGS[name]
    results = []
    for selects in (False, True):
        model = load_golden(architecture)
        assert chain(model, sampling).select() is not None
        model._selects = selects
        results.append(model.generate("the thing in the", max_tokens=40, sampling=sampling, ignore_eos=True))
    assert results[1].token_ids == results[0].token_ids
    assert results[1].text == results[0].text


def test_logits_are_only_asked_for_where_they_are_needed(load_golden: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_golden("llama")
    asked: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(CachedTokens, name)

        def call(self: CachedTokens, *arguments: Any, **options: Any) -> Any:
            asked.append(name)
            return original(self, *arguments, **options)

        return call

    for name in ("extend", "choose"):
        monkeypatch.setattr(CachedTokens, name, counted(name))

    def passes(**options: Any) -> list[str]:
        asked.clear()
        model.generate("the", max_tokens=4, sampling=mn.Sampling(**options), ignore_eos=True)
        return list(asked)

    assert passes(temperature=0) == ["choose" if model.device["selects_candidates"] else "extend"] * 4
    model._selects = True
    assert passes() == ["choose"] * 4
    for options in (
        {"logprobs": 0},
        {"top_k": 0},
        {"top_k": 257},
        {"top_n_sigma": 1.0},
        {"order": ("top_p", "top_k")},
        {"processors": (lambda ids, logits: None,)},
    ):
        assert passes(**options) == ["extend"] * 4
    assert passes(temperature=0, top_k=0) == ["choose"] * 4


def test_candidates_are_the_best_of_the_logits(load_golden: Load) -> None:
    model = load_golden("qwen2")
    ids = np.arange(1, 40, dtype=np.int32)
    logits = model.logits(ids.tolist())[0]
    mask = np.zeros(-(-model.vocabulary_size // 32), np.uint32)
    allowed = [3, 64, 65, 200, 201, 250]
    for token in allowed:
        mask[token // 32] |= np.uint32(1 << token % 32)
    sampler = chain(model, mn.Sampling(top_k=20, logit_bias={65: 100.0, 200: -math.inf}))
    for words in (None, mask):
        wanted = logits.copy()
        wanted[65] += 100
        wanted[200] = -np.inf
        if words is not None:
            wanted[[token for token in range(len(wanted)) if token not in allowed]] = -np.inf
        selection = sampler.select(words)
        assert selection is not None
        assert (selection.k, selection.candidates) == (20, [])
        cache = model.new_cache()
        candidates = cache.choose(ids.tolist(), len(ids), selection).candidates
        assert len(candidates) == (20 if words is None else 5)
        for token, logit in candidates:
            assert np.float32(logit) == wanted[token]
        assert all(a[1] > b[1] or (a[1] == b[1] and a[0] < b[0]) for a, b in pairwise(candidates))
        assert candidates[-1][1] >= np.sort(wanted)[-20]
        assert sampler.sample_selected(selection).id in [token for token, _ in candidates]


def test_runs_that_want_logits_and_runs_that_want_candidates(load_golden: Load) -> None:
    model = load_golden("mistral-window", batch_tokens=16)
    prompts = [[(7 * i + j) % 250 for j in range(count)] for i, count in enumerate((1, 40, 16, 5, 23, 1))]
    alone = [model.logits(ids)[0] for ids in prompts]
    every = model.logits(prompts[3], all_positions=True)
    modes = [1, 1, 0, 2, 1, 1]
    wants = [True, False, False, False, True, True]
    sampler = chain(model, mn.Sampling(top_k=6))
    selections = [sampler.select() if want else None for want in wants]
    sequences = [model.native.create_sequence() for _ in prompts]
    logits = np.full((1 + 5, model.vocabulary_size), np.nan, np.float32)
    tokens = [np.array(ids, np.int32) for ids in prompts]
    model.native.forward(sequences, tokens, modes, [False] * 6, logits, selections)
    assert [sequence.length for sequence in sequences] == [len(ids) for ids in prompts]
    tolerance = 1e-4 * np.abs(every).max()  # the number of rows may choose another kernel
    np.testing.assert_allclose(logits, np.concatenate([alone[1][None], every]), atol=tolerance)
    for selection, row in zip(selections, alone, strict=True):
        if selection is None:
            continue
        assert len(selection.candidates) == 6
        for rank, (token, logit) in enumerate(selection.candidates):
            assert abs(logit - row[token]) <= tolerance
            assert abs(logit - np.sort(row)[-1 - rank]) <= tolerance


def test_what_cannot_be_served_is_refused_before_anything_runs(load_golden: Load) -> None:
    model = load_golden("llama")
    sequence = model.native.create_sequence()
    tokens = np.array([1, 2, 3], np.int32)
    sampler = chain(model, mn.Sampling.greedy())
    selection = sampler.select()
    for mode in (0, 2):
        with pytest.raises(mn.RequestError, match="last token of a run"):
            model.native.forward([sequence], [tokens], [mode], [False], NO_LOGITS, [selection])
    with pytest.raises(mn.RequestError, match="differ in number"):
        model.native.forward([sequence], [tokens], [1], [False], NO_LOGITS, [selection, selection])
    with pytest.raises(mn.RequestError, match="ids run from 0 to"):
        other = SamplerChain(mn.Sampling.greedy(logit_bias={model.vocabulary_size: 1.0}), model.vocabulary_size + 1)
        model.native.forward([sequence], [tokens], [1], [False], NO_LOGITS, [other.select()])
    with pytest.raises(mn.RequestError, match="None is no sequence"):
        model.native.forward([None], [tokens], [1], [False], NO_LOGITS, [selection])  # type: ignore[list-item]
    with pytest.raises(mn.RequestError, match="no candidates have been chosen"):
        sampler.sample_selected(selection)  # type: ignore[arg-type]
    assert sequence.length == 0
    model.native.forward([sequence], [tokens], [1], [False], NO_LOGITS, [selection])
    assert sequence.length == 3
    assert selection is not None
    assert sampler.sample_selected(selection).id == int(model.logits([1, 2, 3])[0].argmax())
    with pytest.raises(mn.RequestError, match="expected 40 candidates, got 1"):
        chain(model, mn.Sampling()).sample_selected(selection)


def test_a_ban_of_everything_ends_one_request(load_golden: Load) -> None:
    model = load_golden("llama")
    everything = dict.fromkeys(range(model.vocabulary_size), -math.inf)
    for selects in (False, True):
        model._selects = selects
        with pytest.raises(mn.RequestError, match="no token is left"):
            model.generate("the", max_tokens=3, sampling=mn.Sampling.greedy(logit_bias=everything))
        assert model.generate("the", max_tokens=3, sampling=mn.Sampling.greedy(), ignore_eos=True).token_ids


def test_a_selection_says_what_it_is(load_golden: Load) -> None:
    model = load_golden("llama")
    selection = chain(model, mn.Sampling.greedy()).select()
    assert isinstance(selection, _native.Selection)
    assert selection.k == 1


def test_the_precision_that_was_chosen_can_be_read(load_golden: Load) -> None:
    assert load_golden("llama").precision == "float32"  # small models, and all models on a GPU
    assert load_golden("llama", precision="float32").precision == "float32"


@pytest.mark.cpu_only
def test_the_precision_that_was_asked_for_can_be_read(load_golden: Load) -> None:
    assert load_golden("llama", device="cpu", precision="int8").precision == "int8"
