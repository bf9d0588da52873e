"""Text from tokens as they come: whole characters only, and stop strings that may span tokens."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from ..errors import RequestError
from .tokenizer import Tokenizer

__all__ = ["StopMatcher", "StreamingDetokenizer"]


class StreamingDetokenizer:
    """Turns the tokens of one sequence into text, one at a time, in constant time a token.

    Everything that :meth:`push` and :meth:`flush` return is, joined, ``tokenizer.decode`` of the tokens pushed.

    ``previous`` are the tokens before the first one that is pushed (the prompt), of which only the last matters:
    SentencePiece models put a dummy space at the start of a segment, which is not part of the text, but a real one
    between two tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True, previous: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._start = True
        if len(previous):
            _, self._start = tokenizer.segment_bytes(previous[-1], False)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that is certain after ``token``: empty while a character is incomplete."""
        data, self._start = self._tokenizer.segment_bytes(token, self._start, self._skip_special)
        return self._decoder.decode(data)

    def flush(self) -> str:
        """The rest: U+FFFD where the last character stayed incomplete. Afterwards more tokens may be pushed."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class StopMatcher:
    """Finds the first of several stop strings in a stream of text, however the text is cut into pieces.

    The stop string that is complete first wins; of several that are complete at the same character, the longest. Text
    that may still become part of a stop string is held back. Each stop string is followed by a Knuth-Morris-Pratt
    automaton, so the cost is constant per character and stop string, amortised.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        if isinstance(stops, str):
            raise RequestError("stop strings must be given as a list of str")
        self._stops = list(dict.fromkeys(stops))
        for stop in self._stops:
            if not isinstance(stop, str) or not stop:
                raise RequestError(f"a stop string must be a str that is not empty, not {stop!r}")
        self._failures = [_failure_table(stop) for stop in self._stops]
        self._states = [0] * len(self._stops)
        self._held = ""
        self.matched: str | None = None
        """The stop string that was found, or None."""

    def push(self, text: str) -> tuple[str, bool]:
        """What is certain to be before any stop string, and whether one was found; what follows it is dropped."""
        if self.matched is not None:
            return "", True
        for index, character in enumerate(text):
            self.matched = self._step(character)
            if self.matched is not None:
                end = len(self._held) + index + 1
                emitted = (self._held + text)[: end - len(self.matched)]
                self._held = ""
                return emitted, True
        joined = self._held + text
        certain = len(joined) - max(self._states, default=0)
        self._held = joined[certain:]
        return joined[:certain], False

    def flush(self) -> str:
        """The text held back, at the end of the stream: it did not become a stop string."""
        held, self._held = self._held, ""
        self._states = [0] * len(self._stops)
        return held

    def _step(self, character: str) -> str | None:
        """Advance every automaton by ``character``; the stop string that it completes, if any."""
        complete: list[str] = []
        for index, stop in enumerate(self._stops):
            state, failure = self._states[index], self._failures[index]
            while state and stop[state] != character:
                state = failure[state - 1]
            if stop[state] == character:
                state += 1
            if state == len(stop):
                complete.append(stop)
                state = failure[state - 1]
            self._states[index] = state
        return max(complete, key=len, default=None)


def _failure_table(stop: str) -> list[int]:
    """For each prefix of ``stop``, the length of its longest proper border (Knuth, Morris, Pratt 1977)."""
    table = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = table[length - 1]
        if stop[index] == stop[length]:
            length += 1
        table[index] = length
    return table
