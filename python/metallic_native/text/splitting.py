"""Cutting text at the special tokens written in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

__all__ = ["SpecialTokenSplitter"]


class SpecialTokenSplitter:
    """Finds added tokens in text: leftmost first, and the longest of those that start at one place.

    ``texts`` maps a token's text to its id; ids in ``strip_right`` swallow the white space that follows them. The cost
    is linear in the text: a regular expression finds the places where the first two characters of some token stand,
    and only there are the tokens with those two characters tried, longest first.
    """

    def __init__(self, texts: Mapping[str, int], strip_right: Iterable[int] = ()) -> None:
        self._ids = {text: token for text, token in texts.items() if text}
        self._strip_right = frozenset(strip_right)
        self._lengths: dict[str, list[int]] = {}
        heads: dict[str, set[str]] = {}
        for text in self._ids:
            lengths = self._lengths.setdefault(text[:2], [])
            if len(text) not in lengths:
                lengths.append(len(text))
            heads.setdefault(text[0], set()).add(text[1:2])
        for lengths in self._lengths.values():
            lengths.sort(reverse=True)
        self._start = re.compile("|".join(_branch(head, seconds) for head, seconds in heads.items())) if heads else None

    def split(self, text: str) -> Iterator[str | int]:
        """The parts of ``text`` in order: an int for a token, a str for the (never empty) text between tokens."""
        if self._start is None:
            if text:
                yield text
            return
        done = position = 0
        while (match := self._start.search(text, position)) is not None:
            start = match.start()
            token, end = self._longest(text, start)
            if token is None:
                position = start + 1
                continue
            if start > done:
                yield text[done:start]
            yield token
            if token in self._strip_right:
                end = _skip_space(text, end)
            done = position = end
        if done < len(text):
            yield text[done:]

    def _longest(self, text: str, start: int) -> tuple[int | None, int]:
        for head in (text[start : start + 2], text[start]):
            for length in self._lengths.get(head, ()):
                token = self._ids.get(text[start : start + length])
                if token is not None:
                    return token, start + length
            if len(head) == 1:
                break
        return None, start


def _branch(head: str, seconds: set[str]) -> str:
    if "" in seconds:
        return re.escape(head)
    return f"{re.escape(head)}[{''.join(re.escape(second) for second in sorted(seconds))}]"


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\n\v\f\r":
        position += 1
    return position
