"""Streaming detokeniser and stop strings, against decoding and searching the whole."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers_gguf import VOCABULARIES, read_metadata
from metallic_native.errors import RequestError
from metallic_native.text.byte_level import byte_of_character
from metallic_native.text.detokenizer import StopMatcher, StreamingDetokenizer
from metallic_native.text.tokenizer import Tokenizer

CHARACTER = {byte: character for character, byte in byte_of_character.items()}


def byte_tokenizer() -> Tokenizer:
    """256 bytes, then a BOS (256) and a user-defined token (257)."""
    return Tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": [CHARACTER[byte] for byte in range(256)] + ["<s>", "<tool>"],
            "tokenizer.ggml.token_type": [1] * 256 + [3, 4],
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.bos_token_id": 256,
        }
    )


def piece_tokenizer() -> Tokenizer:
    """unk, bos, eos, 256 bytes (3 to 258), then "▁" (259), "▁a" (260), "a" (261)."""
    return Tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"]
            + [f"<0x{byte:02X}>" for byte in range(256)]
            + ["\u2581", "\u2581a", "a"],
            "tokenizer.ggml.scores": np.zeros(262, np.float32),
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 3,
        }
    )


BYTES = byte_tokenizer()
PIECES = piece_tokenizer()


def stream(tokenizer: Tokenizer, ids: list[int], **options: Any) -> list[str]:
    detokenizer = StreamingDetokenizer(tokenizer, **options)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=30))
def test_any_bytes_stream_as_they_decode(ids: list[int]) -> None:
    assert "".join(stream(BYTES, ids)) == bytes(ids).decode("utf-8", "replace")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_only_whole_characters_come_out(text: str) -> None:
    data = text.encode("utf-8")
    pushed = stream(BYTES, list(data))
    assert "".join(pushed) == text
    so_far = b""
    for byte, piece in zip(data, pushed, strict=False):
        so_far += bytes([byte])
        try:
            assert piece == so_far.decode("utf-8")
            so_far = b""
        except UnicodeDecodeError:
            assert piece == ""  # the character is not complete yet
    assert pushed[-1] == ""


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 261), max_size=20), skip=st.booleans())
def test_streaming_is_decoding(ids: list[int], skip: bool) -> None:
    assert "".join(stream(PIECES, ids, skip_special=skip)) == PIECES.decode(ids, skip_special=skip)


def test_incomplete_character_at_the_end() -> None:
    assert stream(BYTES, [0xF0, 0x9F, 0xA6]) == ["", "", "", "\ufffd"]
    assert stream(BYTES, [0xF0, 0x9F, 0x41]) == ["", "", "\ufffdA", ""]
    detokenizer = StreamingDetokenizer(BYTES)
    assert detokenizer.push(0xC3) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.push(0x41) == "A"


def test_leading_space() -> None:
    assert stream(PIECES, [260, 260]) == ["a", " a", ""]
    assert stream(PIECES, [260], previous=[1, 261]) == [" a", ""]
    assert stream(PIECES, [260], previous=[261, 2]) == ["a", ""]
    assert stream(PIECES, [1, 260, 2, 260]) == ["", "a", "", "a", ""]
    assert stream(PIECES, [1, 260, 2, 260], skip_special=False) == ["<s>", "a", "</s>", "a", ""]
    assert stream(PIECES, [259, 260]) == ["", " a", ""]
    assert stream(BYTES, [0x20, 0x61]) == [" ", "a", ""]


def test_user_defined_tokens_are_text() -> None:
    assert stream(BYTES, [256, 257]) == ["", "<tool>", ""]


def test_bad_id_is_refused() -> None:
    with pytest.raises(RequestError):
        StreamingDetokenizer(BYTES).push(258)


def test_real_vocabularies_stream_as_they_decode() -> None:
    paths = sorted(VOCABULARIES.glob("*.gguf"))
    if not paths:
        pytest.skip("the shared test data is absent")
    text = "Hi \U0001f999\U0001f469\u200d\U0001f52c \u4f60\u597d\n\n  caf\u00e9 \u1780\u17b6\u1793\u17cb <b>"
    for path in paths:
        tokenizer = Tokenizer.from_metadata(read_metadata(path))
        ids = tokenizer.encode(text)
        assert "".join(stream(tokenizer, ids)) == text
        half = len(ids) // 2
        rest = stream(tokenizer, ids[half:], previous=ids[:half])
        # The cut may fall inside a character, whose second half is then no text.
        assert text.endswith("".join(rest).lstrip("\ufffd"))


def reference_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first, the longest of those, by looking at every prefix."""
    for end in range(1, len(text) + 1):
        found = max((stop for stop in stops if text[:end].endswith(stop)), key=len, default=None)
        if found is not None:
            return text[: end - len(found)], found
    return text, None


@settings(max_examples=500, deadline=None)
@given(
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4),
    chunks=st.lists(st.text(alphabet="ab\n", max_size=4), max_size=10),
)
def test_stop_strings_however_text_is_cut(stops: list[str], chunks: list[str]) -> None:
    matcher = StopMatcher(stops)
    emitted, stopped, fed = "", False, ""
    for chunk in chunks:
        text, stopped = matcher.push(chunk)
        emitted += text
        fed += chunk
        if stopped:
            break
        # Held back is exactly what may still become a stop string.
        held = max((size for stop in stops for size in range(len(stop)) if fed.endswith(stop[:size])), default=0)
        assert emitted == fed[: len(fed) - held]
    emitted += matcher.flush()
    assert (emitted, matcher.matched) == reference_stop("".join(chunks), stops)
    assert stopped == (matcher.matched is not None)


def test_stop_across_tokens() -> None:
    matcher = StopMatcher(["</answer>"])
    assert matcher.push("42</ans") == ("42", False)
    assert matcher.push("wer> and more") == ("", True)
    assert matcher.matched == "</answer>"
    assert matcher.push("more") == ("", True)
    assert matcher.flush() == ""


def test_false_start_is_given_back() -> None:
    matcher = StopMatcher(["aab"])
    assert matcher.push("aa") == ("", False)
    assert matcher.push("a") == ("a", False)
    assert matcher.push("b!") == ("", True)


def test_no_stop_strings() -> None:
    matcher = StopMatcher([])
    assert matcher.push("anything") == ("anything", False)
    assert matcher.flush() == ""


@pytest.mark.parametrize("stops", [[""], ["a", ""], "abc", [1], [None]])
def test_bad_stop_strings_are_refused(stops: Any) -> None:
    with pytest.raises(RequestError):
        StopMatcher(stops)


def test_a_long_stop_string_costs_no_more() -> None:
    matcher = StopMatcher(["a" * 50_000 + "b"])
    start = time.process_time()
    emitted = sum(len(matcher.push("aaaa")[0]) for _ in range(25_000))
    assert emitted == 50_000
    assert time.process_time() - start < 5
