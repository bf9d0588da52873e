"""SentencePiece BPE: the model behind ``tokenizer.ggml.model = llama``.

The algorithm is the one of SentencePiece's ``bpe_model.cc``: start from single characters; of all neighbours whose
concatenation is a piece, merge the pair with the highest score, the leftmost among equals; repeat. A list of ranked
merges, which is what the *tokenizers* library works on, cannot express "leftmost among equals" (two splits of one
piece have equal scores but must have different ranks), so the merging is done here, exactly, word by word with a cache
of words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from heapq import heapify, heappop, heappush

import numpy as np
import numpy.typing as npt

from ..errors import ModelFormatError
from .vocabulary import TOKENS_KEY, TokenType, Vocabulary

__all__ = ["SPACE", "ScoredPieceModel", "byte_value", "token_bytes"]

#: U+2581 LOWER ONE EIGHTH BLOCK, which stands for a space in pieces.
SPACE = "\u2581"

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CACHED_WORDS = 1 << 16
_CACHED_WORD_LENGTH = 64


def byte_value(text: str) -> int | None:
    """The value of a byte piece such as ``<0x0A>``, or None for any other text."""
    match = _BYTE.fullmatch(text)
    return None if match is None else int(match.group(1), 16)


class ScoredPieceModel:
    """Encodes text without special tokens. Thread-safe."""

    def __init__(self, vocabulary: Vocabulary, scores: npt.NDArray[np.float64], *, space_prefix: bool) -> None:
        self._space_prefix = space_prefix
        self._unknown = vocabulary.special.unk
        self._bytes = self._byte_ids(vocabulary)
        # Control, unknown and byte pieces never come from merging: text cannot turn into them.
        self._ids = dict(vocabulary.ids)
        for token in vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN, TokenType.BYTE):
            self._ids.pop(vocabulary.tokens[token], None)
        self._unused = frozenset(vocabulary.tokens[token] for token in vocabulary.of_type(TokenType.UNUSED))
        self._ranks = self._rank(self._ids, scores)
        self._words = self._word_pattern(self._ids)
        self._cache: dict[str, tuple[int, ...]] = {}

    @staticmethod
    def _byte_ids(vocabulary: Vocabulary) -> dict[int, int]:
        found: dict[int, int] = {}
        for token in vocabulary.of_type(TokenType.BYTE):
            value = byte_value(vocabulary.tokens[token])
            if value is None:
                text = vocabulary.tokens[token]
                raise ModelFormatError(
                    f"token {token} is of type byte but reads {text!r}, not <0xXX>", where=TOKENS_KEY
                )
            found[value] = token
        for value in range(0x100):
            token_id = vocabulary.ids.get(f"<0x{value:02X}>")
            if token_id is not None:
                found.setdefault(value, token_id)
        return found

    @staticmethod
    def _rank(ids: Mapping[str, int], scores: npt.NDArray[np.float64]) -> dict[str, int]:
        """Rank of each piece that a merge can give: 0 is best, equal scores have equal ranks."""
        pieces = [piece for piece in ids if len(piece) > 1]
        if not pieces:
            return {}
        chosen = scores[np.fromiter((ids[piece] for piece in pieces), dtype=np.int64, count=len(pieces))]
        _, ranks = np.unique(-chosen, return_inverse=True)
        return dict(zip(pieces, ranks.tolist(), strict=True))

    @staticmethod
    def _word_pattern(ids: Mapping[str, int]) -> re.Pattern[str]:
        """An expression whose matches partition any text such that no merge crosses a border of two matches.

        Text is cut between a character and a following space, unless some piece has that character before a space
        inside it.
        """
        before_space = set()
        for piece in ids:
            at = piece.find(SPACE, 1)
            while at > 0:
                before_space.add(piece[at - 1])
                at = piece.find(SPACE, at + 1)
        before_space.discard(SPACE)
        word = f"{SPACE}*[^{SPACE}]+"
        if before_space:
            joined = "".join(re.escape(character) for character in sorted(before_space))
            word += f"(?:(?<=[{joined}]){SPACE}+[^{SPACE}]*)*"
        return re.compile(f"{word}|{SPACE}+")

    def encode(self, text: str, *, first: bool) -> list[int]:
        """Token ids of ``text``; ``first`` says that it starts a segment, which is where a dummy prefix space goes."""
        escaped = text.replace(" ", SPACE)
        if first and self._space_prefix:
            escaped = SPACE + escaped
        ids: list[int] = []
        cache = self._cache
        for word in self._words.findall(escaped):
            known = cache.get(word)
            if known is None:
                known = self._encode_word(word)
                if len(word) <= _CACHED_WORD_LENGTH:
                    if len(cache) >= _CACHED_WORDS:
                        cache.clear()
                    cache[word] = known
            ids.extend(known)
        return ids

    def _encode_word(self, word: str) -> tuple[int, ...]:
        halves: dict[str, tuple[str, str]] = {}
        ids: list[int] = []
        for symbol in self._merge(word, halves):
            self._emit(symbol, halves, ids)
        return tuple(ids)

    def _merge(self, word: str, halves: dict[str, tuple[str, str]]) -> list[str]:
        """The symbols that ``word`` ends up as. ``halves`` receives how each unused piece was made."""
        symbols = list(word)
        size = len(symbols)
        rank_of = self._ranks.get
        pairs = map(str.__add__, symbols, symbols[1:])
        # One integer is rank and position, so that the heap yields the best rank, leftmost first.
        heap = [rank * size + at for at, pair in enumerate(pairs) if (rank := rank_of(pair)) is not None]
        heapify(heap)
        following = list(range(1, size + 1))
        preceding = list(range(-1, size - 1))
        unused = self._unused
        while heap:
            rank, at = divmod(heappop(heap), size)
            left, neighbour = symbols[at], following[at]
            if not left or neighbour == size:
                continue
            merged = left + symbols[neighbour]
            if rank_of(merged) != rank:
                continue  # one of the two has changed since this entry was made
            if merged in unused:
                halves.setdefault(merged, (left, symbols[neighbour]))
            symbols[at], symbols[neighbour] = merged, ""
            neighbour = following[at] = following[neighbour]
            if neighbour < size:
                preceding[neighbour] = at
                new = rank_of(merged + symbols[neighbour])
                if new is not None:
                    heappush(heap, new * size + at)
            before = preceding[at]
            if before >= 0:
                new = rank_of(symbols[before] + merged)
                if new is not None:
                    heappush(heap, new * size + before)
        return [symbol for symbol in symbols if symbol]

    def _emit(self, symbol: str, halves: Mapping[str, tuple[str, str]], ids: list[int]) -> None:
        """Append the ids of ``symbol``: an unused piece is taken apart again, an unknown character becomes bytes."""
        stack = [symbol]
        while stack:
            text = stack.pop()
            if text in self._unused and text in halves:
                stack.extend(reversed(halves[text]))
                continue
            token = self._ids.get(text)
            if token is not None:
                ids.append(token)
            else:
                self._emit_bytes(text, ids)

    def _emit_bytes(self, text: str, ids: list[int]) -> None:
        tokens = [self._bytes.get(byte) for byte in text.encode("utf-8")]
        if None not in tokens:
            ids.extend(token for token in tokens if token is not None)
        elif self._unknown is not None:
            ids.append(self._unknown)


def token_bytes(text: str, kind: int) -> bytes:
    """The bytes of a token of a SentencePiece vocabulary."""
    if kind == TokenType.BYTE:
        value = byte_value(text)
        if value is not None:
            return bytes([value])
    if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
        return text.encode("utf-8")
    return text.replace(SPACE, " ").encode("utf-8")
