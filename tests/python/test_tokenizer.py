"""Tokenizer: real vocabularies against recorded ids, reference algorithms, properties, and malformed metadata."""

from __future__ import annotations

import functools
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers_gguf import VOCABULARIES, read_metadata
from metallic_native.errors import ModelFormatError, RequestError, UnsupportedModelError
from metallic_native.text.byte_level import build_pre_tokenizer, byte_of_character
from metallic_native.text.pretokenizers import PRE_TOKENIZERS
from metallic_native.text.splitting import SpecialTokenSplitter
from metallic_native.text.tokenizer import Tokenizer
from metallic_native.text.vocabulary import TokenType

REAL = ("gpt-2", "llama-bpe", "qwen2", "llama-spm", "phi-3")
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
character_of_byte = {byte: character for character, byte in byte_of_character.items()}


def vocabulary_file(name: str) -> Path:
    path = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        pytest.skip(f"{path.name} is not there: the shared test data is absent")
    return path


@functools.cache
def real_metadata(name: str) -> dict[str, object]:
    return read_metadata(vocabulary_file(name))


@functools.cache
def real(name: str) -> Tokenizer:
    return Tokenizer.from_metadata(real_metadata(name))


def recorded_cases(name: str) -> list[tuple[str, list[int]]]:
    path = vocabulary_file(name)
    texts = path.with_name(path.name + ".inp").read_bytes().decode("utf-8").split("\n__ggml_vocab_test__\n")
    lines = path.with_name(path.name + ".out").read_text("utf-8").split("\n")
    assert texts.pop() == ""
    assert lines.pop() == ""
    assert len(texts) == len(lines) == 46
    return [(text, [int(token) for token in line.split()]) for text, line in zip(texts, lines, strict=True)]


def byte_level(**changes: object) -> dict[str, object]:
    """A small byte-level vocabulary: 256 bytes, six merges, and added tokens from id 262 on."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ hello", "Ġ Ġ"]
    tokens = [character_of_byte[byte] for byte in range(256)] + [merge.replace(" ", "") for merge in merges]
    tokens += ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<tool>", "<tool>x"]
    kinds = [NORMAL] * 262 + [CONTROL] * 4 + [USER] * 2
    metadata: dict[str, object] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 262,
        "tokenizer.ggml.eos_token_id": 263,
    }
    return without_none(metadata | changes)


def pieces(normal: dict[str, float], **changes: object) -> dict[str, object]:
    """A small SentencePiece vocabulary: unk, bos, eos, 256 bytes, then ``normal`` with its scores."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + list(normal)
    metadata: dict[str, object] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array([0.0] * 259 + list(normal.values()), np.float32),
        "tokenizer.ggml.token_type": np.array([UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(normal)),
    }
    return without_none(metadata | changes)


def without_none(metadata: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in metadata.items() if value is not None}


# Real vocabularies


@pytest.mark.parametrize("name", REAL)
def test_recorded_ids(name: str) -> None:
    tokenizer = real(name)
    for text, expected in recorded_cases(name):
        assert tokenizer.encode(text, add_special=False) == expected, repr(text)
        assert tokenizer.decode(expected) == text
        streamed = b"".join(tokenizer.token_bytes(token) for token in expected).decode()
        assert streamed.removeprefix(" " if tokenizer.family == "llama" else "") == text


@pytest.mark.parametrize("name", REAL)
def test_recorded_ids_are_sensitive(name: str) -> None:
    """The comparison above can fail: another model's tokenizer gives other ids."""
    other = real("gpt-2" if name != "gpt-2" else "qwen2")
    assert any(other.encode(text, add_special=False) != expected for text, expected in recorded_cases(name))


def test_special_tokens_of_real_vocabularies() -> None:
    llama3 = real("llama-bpe")
    assert llama3.vocab_size == len(llama3) == 128256
    assert llama3.encode("a<|eot_id|>") == [128000, 64, 128009]
    assert llama3.encode("a<|eot_id|>", add_special=False, parse_special=False) != [64, 128009]
    assert llama3.end_of_generation_ids >= {128001, 128009}
    assert llama3.eot_id == 128009
    assert llama3.decode([128000, 64, 128009], skip_special=True) == "a"
    assert llama3.decode([128000, 64, 128009]) == "<|begin_of_text|>a<|eot_id|>"

    qwen2 = real("qwen2")
    assert qwen2.encode("<|im_start|>") == [151644]
    assert qwen2.end_of_generation_ids == {151643, 151645}

    llama2 = real("llama-spm")
    assert llama2.encode("Hello") == [1, 15043]
    assert llama2.encode("") == [1]
    assert llama2.encode("", add_special=False) == []
    assert llama2.encode("</s>Hello") == [1, 2, 15043]
    assert (llama2.bos_id, llama2.eos_id, llama2.unk_id, llama2.pad_id) == (1, 2, 0, None)

    phi3 = real("phi-3")
    assert phi3.end_of_generation_ids == {32000, 32007}
    assert phi3.encode("<|user|>\n Hi<|end|>\n", add_special=False) == [
        *phi3.encode("<|user|>", add_special=False),
        *phi3.encode("Hi", add_special=False),
        32007,
    ]


def test_llama3_takes_words_that_are_tokens_whole() -> None:
    """``ignore_merges``: every token that is one pre-token encodes to itself, reachable by merging or not."""
    tokenizer = real("llama-bpe")
    cut = build_pre_tokenizer(PRE_TOKENIZERS["llama-bpe"])
    checked = 0
    for token in range(0, 128000, 97):
        text = tokenizer.token_bytes(token)
        try:
            plain = text.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if len(cut.pre_tokenize_str(plain)) == 1:
            assert tokenizer.encode(plain, add_special=False) == [token]
            checked += 1
    assert checked > 1000


@pytest.mark.parametrize("name", REAL)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60) | st.text(alphabet=" \t\n\u2581ab.'1<|>\u0300\U0001f999\x00\x7f\u200d", max_size=60))
def test_round_trip(name: str, text: str) -> None:
    tokenizer = real(name)
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    expected = text.replace("\u2581", " ") if tokenizer.family == "llama" else text
    assert tokenizer.decode(ids) == expected
    assert tokenizer.encode(text, parse_special=False)[int(tokenizer.add_bos) :] == ids


@pytest.mark.parametrize("name", ["qwen2", "llama-spm"])
@given(text=st.text(alphabet=st.characters(codec=None), max_size=40))
@settings(max_examples=100, deadline=None)
def test_surrogates_are_replaced(name: str, text: str) -> None:
    tokenizer = real(name)
    clean = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert tokenizer.encode(text) == tokenizer.encode(clean)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("unit", ["a", " ", "\n", "7", "!", "\u4f60\u597d", "ab ", " \n\t", "\U0001f999"])
def test_long_inputs_are_not_quadratic(name: str, unit: str) -> None:
    tokenizer = real(name)
    tokenizer.prepare()

    def seconds(count: int) -> float:
        text = unit * (count // len(unit))
        start = time.process_time()
        ids = tokenizer.encode(text, add_special=False)
        elapsed = time.process_time() - start
        assert tokenizer.decode(ids) == text
        return elapsed

    small, large = seconds(1 << 13), seconds(1 << 16)
    # Eight times the text; quadratic would be 64 times the time. The constant absorbs noise in small measurements.
    assert large < 24 * small + 0.1


def test_unknown_pre_tokenizer_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="'made-up'") as caught:
        Tokenizer.from_metadata(byte_level(**{"tokenizer.ggml.pre": "made-up"}))
    assert caught.value.what == "made-up"
    assert "qwen2" in caught.value.supported


def test_missing_pre_tokenizer_means_default() -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(**{"tokenizer.ggml.pre": None}))
    assert tokenizer.decode(tokenizer.encode("hello 1234")) == "hello 1234"


def test_unknown_family_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="'t5'"):
        Tokenizer.from_metadata(byte_level(**{"tokenizer.ggml.model": "t5"}))


# Byte-level vocabularies


def test_merges_and_added_tokens() -> None:
    tokenizer = Tokenizer.from_metadata(byte_level())
    assert tokenizer.encode("hello hello") == [259, 260]
    assert tokenizer.encode("<|im_start|>hello<|im_end|>") == [264, 259, 265]
    plain = tokenizer.encode("<|im_end|><tool>", parse_special=False)
    assert plain == [*b"<|im_end|>", 266]
    assert tokenizer.encode("<tool>x<tool>y") == [267, 266, *b"y"]
    assert tokenizer.decode([264, 259, 266, 263], skip_special=True) == "hello<tool>"
    assert tokenizer.token_bytes(260) == b" hello"
    assert tokenizer.id_to_token(260) == "\u0120hello"
    assert tokenizer.token_to_id("\u0120hello") == 260
    assert tokenizer.token_to_id("nothing") is None
    assert tokenizer.token_type(266) is TokenType.USER_DEFINED
    assert tokenizer.is_special(265)
    assert not tokenizer.is_special(266)


def test_bos_and_eos_rules() -> None:
    assert Tokenizer.from_metadata(byte_level()).encode("h") == [104]
    both = byte_level(**{"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True})
    assert Tokenizer.from_metadata(both).encode("h") == [262, 104, 263]
    assert Tokenizer.from_metadata(both).encode("h", add_special=False) == [104]
    llama3 = byte_level(**{"tokenizer.ggml.pre": "llama-bpe"})
    assert Tokenizer.from_metadata(llama3).encode("h") == [262, 104]
    assert Tokenizer.from_metadata(llama3 | {"tokenizer.ggml.add_bos_token": False}).encode("h") == [104]
    spm = pieces({"\u2581": -1.0, "a": -2.0, "\u2581a": -0.5})
    assert Tokenizer.from_metadata(spm).encode("a") == [1, 261]
    assert Tokenizer.from_metadata(spm | {"tokenizer.ggml.add_bos_token": False}).encode("a") == [261]


def test_end_of_generation_is_recognised_by_text() -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(**{"tokenizer.ggml.eos_token_id": 262}))
    assert tokenizer.end_of_generation_ids == {262, 263, 265}
    assert tokenizer.eot_id == 265
    kinds = [NORMAL] * 262 + [CONTROL, USER, CONTROL, NORMAL, USER, USER]
    plain = Tokenizer.from_metadata(
        byte_level(**{"tokenizer.ggml.eos_token_id": 262, "tokenizer.ggml.token_type": kinds})
    )
    # "</s>" that is no control token may be the HTML tag; "<|im_end|>" is never anything but the end of a turn.
    assert plain.end_of_generation_ids == {262, 265}
    assert plain.is_special(265)


def test_harmony_end_of_message_does_not_end_generation() -> None:
    base = byte_level()
    tokens = [*base["tokenizer.ggml.tokens"], "<|return|>", "<|call|>", "<|end|>"]  # type: ignore[misc]
    kinds = [*base["tokenizer.ggml.token_type"], CONTROL, CONTROL, CONTROL]  # type: ignore[misc]
    tokenizer = Tokenizer.from_metadata(
        base | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.eos_token_id": 268}
    )
    assert {268, 269} <= tokenizer.end_of_generation_ids
    assert 270 not in tokenizer.end_of_generation_ids


def test_fill_in_the_middle_tokens() -> None:
    base = byte_level()
    tokens = [*base["tokenizer.ggml.tokens"], "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]  # type: ignore[misc]
    kinds = [*base["tokenizer.ggml.token_type"], CONTROL, CONTROL, CONTROL]  # type: ignore[misc]
    given_id = {"tokenizer.ggml.fim_mid_token_id": 262}
    tokenizer = Tokenizer.from_metadata(
        base | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds} | given_id
    )
    assert tokenizer.fim_ids == {"prefix": 268, "suffix": 269, "middle": 262}


def test_absent_ids_and_missing_types() -> None:
    absent = {"tokenizer.ggml.padding_token_id": 0xFFFFFFFF, "tokenizer.ggml.unknown_token_id": -1}
    tokenizer = Tokenizer.from_metadata(byte_level(**absent, **{"tokenizer.ggml.token_type": None}))
    assert tokenizer.pad_id is None
    assert tokenizer.unk_id is None
    assert tokenizer.encode("<s>h<|im_end|>") == [262, 104, 265]


def test_empty_tokens_are_kept() -> None:
    base = byte_level()
    tokens = [*base["tokenizer.ggml.tokens"], "", ""]  # type: ignore[misc]
    kinds = [*base["tokenizer.ggml.token_type"], CONTROL, NORMAL]  # type: ignore[misc]
    tokenizer = Tokenizer.from_metadata(base | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds})
    assert tokenizer.encode("hello") == [259]
    assert tokenizer.decode([268, 259, 269]) == "hello"


# SentencePiece vocabularies


def reference_merge(word: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's BPE, word for word: again and again the best pair, the leftmost among equals."""
    symbols = list(word)
    while True:
        neighbours = enumerate(pairwise(symbols))
        pairs = [(-scores[left + right], at) for at, (left, right) in neighbours if left + right in scores]
        if not pairs:
            return symbols
        _, at = min(pairs)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_merging_is_sentencepiece_exactly(data: st.DataObject) -> None:
    """Random vocabularies, with equal scores and pieces that have spaces anywhere, against the plain algorithm."""
    alphabet = st.text(alphabet="ab\u2581", min_size=1, max_size=6)
    scores = data.draw(st.dictionaries(alphabet, st.integers(-4, 0).map(float), min_size=1, max_size=25))
    scores = {"a": -9.0, "b": -9.0, "\u2581": -9.0} | scores
    tokenizer = Tokenizer.from_metadata(pieces(scores))
    for text in data.draw(st.lists(st.text(alphabet="ab ", max_size=24), min_size=1, max_size=5)):
        expected = reference_merge("\u2581" + text.replace(" ", "\u2581"), scores) if text else []
        ids = tokenizer.encode(text, add_special=False)
        assert [tokenizer.id_to_token(token) for token in ids] == expected


def test_a_neighbour_that_changed_waits_for_its_new_rank() -> None:
    """ "a" and "b" could merge second, but "bc" merges first; "abc" then comes only after "bcd"."""
    scores = {"a": -9.0, "b": -9.0, "c": -9.0, "d": -9.0, "bc": -1.0, "ab": -2.0, "bcd": -3.0, "abc": -4.0}
    tokenizer = Tokenizer.from_metadata(pieces(scores, **{"tokenizer.ggml.add_space_prefix": False}))
    ids = tokenizer.encode("abcd", add_special=False)
    assert [tokenizer.id_to_token(token) for token in ids] == reference_merge("abcd", scores) == ["a", "bcd"]


def test_space_prefix_rules() -> None:
    metadata = pieces({"\u2581": -3.0, "a": -4.0, "\u2581a": -1.0})
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.encode("a<s>a", add_special=False) == [261, 1, 261]
    assert tokenizer.encode(" a", add_special=False) == [259, 261]
    assert tokenizer.decode([259, 261]) == " a"
    assert tokenizer.decode([261, 1, 261]) == "a<s>a"
    assert tokenizer.decode([261, 261]) == "a a"
    gemma = Tokenizer.from_metadata(metadata | {"tokenizer.ggml.add_space_prefix": False})
    assert gemma.encode("a a", add_special=False) == [260, 261]
    assert gemma.decode([261]) == " a"


def test_byte_fallback_and_unknown() -> None:
    metadata = pieces({"\u2581": -3.0, "a": -4.0}, **{"tokenizer.ggml.add_space_prefix": False})
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.encode("a\u00e9", add_special=False) == [260, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode([3 + 0xC3]) == "\ufffd"
    no_bytes = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0],
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, NORMAL],
    }
    assert Tokenizer.from_metadata(no_bytes).encode("a\u00e9", add_special=False) == [0, 3, 0]


def test_plain_text_never_becomes_a_control_or_byte_token() -> None:
    metadata = pieces({"\u2581": -3.0, "<": -4.0, "s": -4.0, ">": -4.0, "<s": -1.0, "0": -4.0, "x": -4.0, "A": -4.0})
    tokenizer = Tokenizer.from_metadata(metadata)
    ids = tokenizer.encode("<s><0x0A>", add_special=False, parse_special=False)
    assert 1 not in ids
    assert not any(3 <= token < 259 for token in ids)
    assert tokenizer.decode(ids) == "<s><0x0A>"


def test_unused_pieces_are_taken_apart_again() -> None:
    metadata = pieces({"\u2581": -9.0, "a": -9.0, "b": -9.0, "ab": -1.0, "abb": -2.0})
    kinds = np.array(metadata["tokenizer.ggml.token_type"])
    kinds[-1] = UNUSED
    tokenizer = Tokenizer.from_metadata(
        metadata | {"tokenizer.ggml.token_type": kinds, "tokenizer.ggml.add_space_prefix": False}
    )
    assert [tokenizer.id_to_token(token) for token in tokenizer.encode("abb", add_special=False)] == ["ab", "b"]


def test_user_defined_pieces_with_spaces() -> None:
    metadata = pieces({"\u2581": -3.0, "a": -4.0, "\u2581\u2581\u2581": 0.0})
    kinds = np.array(metadata["tokenizer.ggml.token_type"])
    kinds[-1] = USER
    tokenizer = Tokenizer.from_metadata(
        metadata | {"tokenizer.ggml.token_type": kinds, "tokenizer.ggml.add_space_prefix": False}
    )
    assert tokenizer.encode("a    a", add_special=False) == [260, 261, 259, 260]
    assert tokenizer.decode([260, 261, 259, 260]) == "a    a"


def test_extra_whitespace_is_removed_where_asked() -> None:
    metadata = pieces({"\u2581": -3.0, "a": -4.0}, **{"tokenizer.ggml.remove_extra_whitespaces": True})
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.decode(tokenizer.encode("  a   a ", add_special=False)) == "a a"


# Special tokens in text


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_splitter_is_leftmost_longest(data: st.DataObject) -> None:
    plain, odd = st.text(alphabet="a]", min_size=1, max_size=4), st.text(alphabet="^-\\[ ", min_size=1, max_size=3)
    tokens = data.draw(st.lists(plain | odd, min_size=2, max_size=12, unique=True))
    text = "".join(data.draw(st.lists(st.sampled_from([*tokens, "a", "]", "^"]), min_size=1, max_size=12)))
    ids = {token: index for index, token in enumerate(tokens)}
    expected: list[str | int] = []
    rest = at = 0
    while at < len(text):
        found = max((token for token in tokens if text.startswith(token, at)), key=len, default=None)
        if found is None:
            at += 1
            continue
        expected += [text[rest:at]] * (at > rest) + [ids[found]]
        rest = at = at + len(found)
    expected += [text[rest:]] * (rest < len(text))
    assert list(SpecialTokenSplitter(ids).split(text)) == expected


# Building, threads and speed


def test_construction_is_lazy() -> None:
    class Recording(list[str]):
        reads = 0

        def __iter__(self) -> Any:
            Recording.reads += 1
            return super().__iter__()

    metadata = byte_level()
    metadata["tokenizer.ggml.tokens"] = Recording(metadata["tokenizer.ggml.tokens"])  # type: ignore[call-overload]
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.vocab_size == 268
    assert tokenizer.eos_id == 263
    assert Recording.reads == 0
    tokenizer.prepare()
    assert Recording.reads == 1
    tokenizer.prepare()
    assert tokenizer.encode("hello") == [259]
    assert Recording.reads == 1


def test_many_threads_may_start_at_once() -> None:
    tokenizer = Tokenizer.from_metadata(real_metadata("qwen2"))
    barrier = threading.Barrier(8)
    results: list[list[int]] = []

    def work() -> None:
        barrier.wait()
        results.append(tokenizer.encode("Hello world"))

    background = tokenizer.prepare_in_background()
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in [*threads, background]:
        thread.join(60)
    assert results == [[9707, 1879]] * 8


def test_errors_in_the_background_come_back() -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(**{"tokenizer.ggml.merges": ["h zzz"]}))
    tokenizer.prepare_in_background().join(60)
    for _ in range(2):
        with pytest.raises(ModelFormatError, match="'zzz'"):
            tokenizer.encode("h")


def test_building_a_large_vocabulary_is_quick() -> None:
    metadata = real_metadata("llama-bpe")

    def seconds() -> float:
        tokenizer = Tokenizer.from_metadata(metadata)
        start = time.process_time()
        tokenizer.prepare()
        return time.process_time() - start

    # A third of a second on a machine of 2024; the bound only catches a change of algorithm.
    assert min(seconds() for _ in range(3)) < 2.0


# Malformed metadata

MALFORMED: list[tuple[str, dict[str, object], str]] = [
    ("no tokenizer", {"tokenizer.ggml.model": None}, "tokenizer.ggml.model"),
    ("model is a number", {"tokenizer.ggml.model": 3}, "tokenizer.ggml.model"),
    ("model is not UTF-8", {"tokenizer.ggml.model": b"\xff"}, "tokenizer.ggml.model"),
    ("no tokens", {"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens"),
    ("empty tokens", {"tokenizer.ggml.tokens": [], "tokenizer.ggml.token_type": None}, "tokenizer.ggml.tokens"),
    ("tokens are a string", {"tokenizer.ggml.tokens": "abc"}, "tokenizer.ggml.tokens"),
    ("tokens are numbers", {"tokenizer.ggml.tokens": np.arange(268)}, "tokenizer.ggml.tokens"),
    ("two-dimensional tokens", {"tokenizer.ggml.tokens": np.zeros((268, 2))}, "tokenizer.ggml.tokens"),
    ("token twice", {"tokenizer.ggml.tokens": ["a"] * 268}, "tokenizer.ggml.tokens"),
    ("token not a string", {"tokenizer.ggml.tokens": [None, *map(str, range(267))]}, "tokenizer.ggml.tokens"),
    ("token not UTF-8", {"tokenizer.ggml.tokens": ["\udcff", *map(str, range(267))]}, "tokenizer.ggml.tokens"),
    ("token bytes not UTF-8", {"tokenizer.ggml.tokens": [b"\xff", *map(str, range(267))]}, "tokenizer.ggml.tokens"),
    ("too few types", {"tokenizer.ggml.token_type": [1] * 267}, "tokenizer.ggml.token_type"),
    ("unknown type", {"tokenizer.ggml.token_type": [1] * 267 + [7]}, "tokenizer.ggml.token_type"),
    ("negative type", {"tokenizer.ggml.token_type": [1] * 267 + [-1]}, "tokenizer.ggml.token_type"),
    ("types are fractions", {"tokenizer.ggml.token_type": [1.5] * 268}, "tokenizer.ggml.token_type"),
    ("types are text", {"tokenizer.ggml.token_type": ["1"] * 268}, "tokenizer.ggml.token_type"),
    ("types are ragged", {"tokenizer.ggml.token_type": [1] * 267 + [[1, 2]]}, "tokenizer.ggml.token_type"),
    ("type is huge", {"tokenizer.ggml.token_type": [1] * 267 + [1 << 70]}, "tokenizer.ggml.token_type"),
    ("types are no array", {"tokenizer.ggml.token_type": 1}, "tokenizer.ggml.token_type"),
    ("too many scores", {"tokenizer.ggml.scores": [1.0] * 269}, "tokenizer.ggml.scores"),
    ("no merges", {"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges"),
    ("merges are a string", {"tokenizer.ggml.merges": "h e"}, "tokenizer.ggml.merges"),
    ("merge of one", {"tokenizer.ggml.merges": ["h e", "he"]}, "tokenizer.ggml.merges"),
    ("merge of three", {"tokenizer.ggml.merges": ["h e l"]}, "tokenizer.ggml.merges"),
    ("merge of nothing", {"tokenizer.ggml.merges": [""]}, "tokenizer.ggml.merges"),
    ("merge with unknown left", {"tokenizer.ggml.merges": ["zz e"]}, "tokenizer.ggml.merges"),
    ("merge with unknown result", {"tokenizer.ggml.merges": ["z z"]}, "tokenizer.ggml.merges"),
    ("merge is a number", {"tokenizer.ggml.merges": [5]}, "tokenizer.ggml.merges"),
    ("BOS outside", {"tokenizer.ggml.bos_token_id": 268}, "tokenizer.ggml.bos_token_id"),
    ("EOS negative", {"tokenizer.ggml.eos_token_id": -2}, "tokenizer.ggml.eos_token_id"),
    ("EOS is text", {"tokenizer.ggml.eos_token_id": "2"}, "tokenizer.ggml.eos_token_id"),
    ("EOS is a boolean", {"tokenizer.ggml.eos_token_id": True}, "tokenizer.ggml.eos_token_id"),
    ("FIM outside", {"tokenizer.ggml.fim_pre_token_id": 1 << 40}, "tokenizer.ggml.fim_pre_token_id"),
    ("listed end outside", {"tokenizer.ggml.eos_token_ids": [1, 999]}, "tokenizer.ggml.eos_token_ids"),
    ("add_bos is text", {"tokenizer.ggml.add_bos_token": "yes"}, "tokenizer.ggml.add_bos_token"),
    (
        "BOS wanted but absent",
        {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None},
        "tokenizer.ggml.add_bos_token",
    ),
    ("pre is a list", {"tokenizer.ggml.pre": ["qwen2"]}, "tokenizer.ggml.pre"),
]


@pytest.mark.parametrize(("changes", "key"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED])
def test_malformed_metadata_names_the_key(changes: dict[str, object], key: str) -> None:
    with pytest.raises(ModelFormatError) as caught:
        Tokenizer.from_metadata(byte_level(**changes)).prepare()
    assert caught.value.where == key
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"tokenizer.ggml.scores": None}, "tokenizer.ggml.scores"),
        ({"tokenizer.ggml.scores": [float("nan")] * 260}, "tokenizer.ggml.scores"),
        ({"tokenizer.ggml.scores": ["x"] * 260}, "tokenizer.ggml.scores"),
        ({"tokenizer.ggml.token_type": [BYTE] * 260}, "tokenizer.ggml.tokens"),
    ],
)
def test_malformed_pieces_name_the_key(changes: dict[str, object], key: str) -> None:
    with pytest.raises(ModelFormatError) as caught:
        Tokenizer.from_metadata(pieces({"a": -1.0}, **changes)).prepare()
    assert caught.value.where == key


VALUES: Any = st.deferred(
    lambda: (
        st.none()
        | st.booleans()
        | st.integers(-(1 << 65), 1 << 65)
        | st.floats()
        | st.text(max_size=3)
        | st.binary(max_size=3)
        | st.lists(VALUES, max_size=4)
    )
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_metadata_breaks_anything_else(data: st.DataObject) -> None:
    """Whatever a key holds: the two typed errors, or a tokenizer that works."""
    base = data.draw(st.sampled_from([byte_level(), pieces({"a": -1.0, "\u2581": -2.0})]))
    keys = st.sampled_from([*sorted(base), "tokenizer.ggml.add_eos_token", "tokenizer.ggml.scores", "general.name"])
    changes = data.draw(st.dictionaries(keys, VALUES, min_size=1, max_size=3))
    try:
        tokenizer = Tokenizer.from_metadata(base | changes)
        tokenizer.decode(tokenizer.encode("a hello <s>"))
        assert tokenizer.end_of_generation_ids <= set(range(tokenizer.vocab_size))
    except (ModelFormatError, UnsupportedModelError):
        pass


@pytest.mark.parametrize("token", [-1, 268, 1 << 40, "a", 1.0, None, True])
def test_bad_ids_are_refused(token: Any) -> None:
    tokenizer = Tokenizer.from_metadata(byte_level())
    for call in (tokenizer.id_to_token, tokenizer.token_bytes, tokenizer.is_special):
        with pytest.raises(RequestError):
            call(token)
    with pytest.raises(RequestError):
        tokenizer.decode([token])
    assert tokenizer.decode(np.array([104, 105])) == "hi"


@pytest.mark.parametrize("text", [None, b"a", 3, ["a"]])
def test_text_must_be_str(text: Any) -> None:
    with pytest.raises(RequestError):
        Tokenizer.from_metadata(byte_level()).encode(text)
