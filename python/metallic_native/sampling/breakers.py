"""DRY sequence breakers: from strings to the token sequences that spell them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Protocol

from metallic_native import _native

__all__ = ["BreakerTokenizer", "breaker_sequences", "dry_breakers"]


class BreakerTokenizer(Protocol):
    """What is needed of a tokenizer; :class:`metallic_native.text.Tokenizer` has it."""

    @property
    def vocab_size(self) -> int: ...

    def token_bytes(self, token: int) -> bytes: ...

    def encode(self, text: str, add_special: bool = ..., parse_special: bool = ...) -> list[int]: ...


_SETS_PER_TOKENIZER = 16  # requests choose the strings, so what is kept of them needs a bound

_lock = threading.Lock()
_cache: weakref.WeakKeyDictionary[BreakerTokenizer, dict[tuple[int, tuple[str, ...]], _native.DryBreakers]] = (
    weakref.WeakKeyDictionary()
)


def dry_breakers(tokenizer: BreakerTokenizer, breakers: tuple[str, ...], n_vocab: int) -> _native.DryBreakers:
    """The native breakers for a vocabulary of ``n_vocab`` logits; made once per tokenizer and set of strings."""
    key = (n_vocab, breakers)
    with _lock:
        made = _cache.setdefault(tokenizer, {})
        if key not in made:
            while len(made) >= _SETS_PER_TOKENIZER:
                del made[next(iter(made))]
            made[key] = _native.DryBreakers(n_vocab, breaker_sequences(tokenizer, breakers, n_vocab))
        return made[key]


def breaker_sequences(tokenizer: BreakerTokenizer, breakers: Sequence[str], n_vocab: int) -> list[list[int]]:
    """The token sequences that stand for the strings, as llama.cpp finds them.

    A token whose text contains a breaker is one by itself. A token whose text ends with the beginning of a breaker,
    followed by the tokens of the rest, is one too; and so is the breaker's own encoding.
    """
    words = [tokenizer.token_bytes(token) for token in range(min(tokenizer.vocab_size, n_vocab))]
    # Of tokens with the same bytes the last: SentencePiece vocabularies begin with byte tokens, which text hardly uses.
    ids = {word: token for token, word in enumerate(words)}
    ending = _tokens_by_ending(words, {head for breaker in breakers for head, _ in _splits(breaker)})
    found: dict[tuple[int, ...], None] = {}
    for breaker in breakers:
        data = _bytes(breaker)
        containing = {token for token, word in enumerate(words) if data in word}
        found.update(dict.fromkeys((token,) for token in sorted(containing)))
        own = _encode(tokenizer, breaker, words, ids)
        if own and not containing.intersection(own):
            found[tuple(own)] = None
        for head, rest in _splits(breaker):
            heads = [token for token in ending[head] if token not in containing]
            tail = _encode(tokenizer, rest, words, ids) if heads else []
            found.update(dict.fromkeys((token, *tail) for token in heads if tail))
    return [list(sequence) for sequence in found]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _tokens_by_ending(words: Sequence[bytes], endings: set[bytes]) -> dict[bytes, list[int]]:
    tokens: dict[bytes, list[int]] = {ending: [] for ending in endings}
    longest = max(map(len, endings), default=0)
    for token, word in enumerate(words):
        for length in range(1, min(len(word), longest) + 1):
            if word[-length:] in tokens:
                tokens[word[-length:]].append(token)
    return tokens


def _splits(text: str) -> Iterator[tuple[bytes, str]]:
    for at in range(1, len(text)):
        yield _bytes(text[:at]), text[at:]


def _encode(tokenizer: BreakerTokenizer, text: str, words: Sequence[bytes], ids: dict[bytes, int]) -> list[int]:
    """The tokens of ``text`` inside a longer text: without the space that SentencePiece models put in front of one."""
    tokens = tokenizer.encode(text, add_special=False, parse_special=False)
    if any(token >= len(words) for token in tokens):
        return []
    if b"".join(words[token] for token in tokens) != b" " + _bytes(text):
        return tokens
    first = words[tokens[0]][1:]
    if not first:
        return tokens[1:]
    return [ids[first], *tokens[1:]] if first in ids else []
