"""Byte-level BPE: the model behind ``tokenizer.ggml.model = gpt2``, run by the Hugging Face *tokenizers* library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ModelFormatError
from .metadata import strings
from .pretokenizers import PreTokenizer
from .vocabulary import MERGES_KEY, TOKENS_KEY, TokenType, Vocabulary

__all__ = ["ByteLevelModel", "build_pre_tokenizer", "byte_of_character", "literal_bytes", "token_bytes"]


def _byte_alphabet() -> dict[str, int]:
    # GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes follow from U+0100 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(0x100) if byte not in printable)
    alphabet.update((chr(0x100 + index), byte) for index, byte in enumerate(others))
    return alphabet


#: The character that stands for each byte in the token texts of byte-level vocabularies, to the byte.
byte_of_character = _byte_alphabet()


def literal_bytes(text: str) -> bytes:
    """The bytes that the text of an ordinary byte-level token stands for.

    A text with a character outside the alphabet was never made by byte-level BPE, and stands for itself.
    """
    try:
        return bytes([byte_of_character[character] for character in text])
    except KeyError:
        return text.encode("utf-8")


def build_pre_tokenizer(scheme: PreTokenizer) -> Any:
    """The *tokenizers* object that cuts text as ``scheme`` says and writes it in the byte alphabet."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in scheme.patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(steps)


class ByteLevelModel:
    """Encodes text without special tokens. Building it takes the time; encoding is thread-safe and releases the GIL."""

    def __init__(self, vocabulary: Vocabulary, merges: Sequence[Any], scheme: PreTokenizer) -> None:
        # Imported here, because it takes a while and reading a file need not wait for it.
        from tokenizers import Tokenizer, models

        pairs = self._pairs(strings(merges, MERGES_KEY))
        try:
            # The library refuses merges of, or to, unknown tokens with a bare Exception.
            model = models.BPE(vocab=vocabulary.ids, merges=pairs, ignore_merges=scheme.ignore_merges)
        except Exception as error:
            self._check_pairs(pairs, vocabulary)
            raise ModelFormatError(f"the vocabulary is not usable: {error}", where=TOKENS_KEY) from None
        self._tokenizer = Tokenizer(model)
        self._tokenizer.pre_tokenizer = build_pre_tokenizer(scheme)

    @staticmethod
    def _pairs(merges: list[str]) -> list[tuple[str, str]]:
        # A space is never part of a byte-level token, so the first one separates; the library wants tuples.
        pairs = [tuple(merge.split(" ", 1)) for merge in merges]
        if set(map(len, pairs)) - {2}:
            index = next(index for index, pair in enumerate(pairs) if len(pair) != 2)
            raise ModelFormatError(f"element {index}, {merges[index]!r}, is not two tokens", where=MERGES_KEY)
        return pairs  # type: ignore[return-value]  # every tuple has two elements, as checked

    @staticmethod
    def _check_pairs(pairs: list[tuple[str, str]], vocabulary: Vocabulary) -> None:
        for index, (left, right) in enumerate(pairs):
            for text in (left, right, left + right):
                if text not in vocabulary.ids:
                    raise ModelFormatError(f"element {index} names {text!r}, which is no token", where=MERGES_KEY)

    def encode(self, text: str, *, first: bool) -> list[int]:  # noqa: ARG002
        """Token ids of ``text``. ``first`` (the text starts a segment) does not matter here."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def token_bytes(text: str, kind: int) -> bytes:
    """The bytes of a token of a byte-level vocabulary: added tokens are stored as they are written."""
    if kind in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN):
        return text.encode("utf-8")
    return literal_bytes(text)
