"""The cached tokens of one sequence."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .. import _native
from ..errors import Error, RequestError

__all__ = ["CachedTokens"]

_LAST, _ALL = 1, 2
_NO_LOGITS = np.empty((0, 0), np.float32)


class CachedTokens:
    """A sequence whose keys and values stay in pages between calls, and which tokens they are of.

    One generation at a time has it; a later one takes it over, and the earlier one then ends with a RequestError. Where
    the model has RoPE tables for contexts longer than it was trained for (``original_context``), a sequence uses them
    from the start if it is planned to grow past that.
    """

    def __init__(self, native: _native.Model, context_length: int, original_context: int) -> None:
        self._native: _native.Model | None = native
        self._sequence = native.create_sequence()
        self._context_length = context_length
        self._original_context = original_context if native.has_extended_rope else 0
        self._extended = False
        self.tokens: list[int] = []
        self._holder = 0
        # Held while tokens and pages change together. A signal handler may come back to a cache that its thread runs.
        self._lock = threading.RLock()

    def take(self) -> int:
        """Become the holder, whose number :meth:`extend` takes; earlier holders are refused from now on."""
        with self._lock:
            self._holder += 1
            return self._holder

    def enter(self, tokens: int) -> None:
        """Wait until there is memory for this sequence to grow to ``tokens``, and claim it.

        Raises OutOfMemory, saying what would fit, where there never will be.
        """
        self._open()
        self._sequence.enter(tokens)

    def leave(self, holder: int) -> None:
        """Give the claim back, unless another holder has taken the cache over."""
        if holder == self._holder and self._native is not None:
            self._sequence.leave()

    def reserve(self, tokens: int) -> None:
        """Take the pages of ``tokens`` tokens now instead of as they come. Idle caches make room for that, running
        generations do not. Raises OutOfMemory, and RequestError for more than the context holds.
        """
        self._open()
        if type(tokens) is not int or not 0 <= tokens <= self._context_length:
            raise RequestError(f"a reservation is of 0 to {self._context_length} tokens, not {tokens!r}")
        self._sequence.reserve(tokens)

    def belongs_to(self, native: _native.Model) -> bool:
        """Whether this is a cache of the model ``native``."""
        return self._native is native

    def keep_prefix(self, ids: Sequence[int], planned: int, holder: int | None = None) -> int:
        """Forget all cached tokens but those that ``ids`` begins with, the last of ``ids`` excepted, and say how many
        stay.

        ``planned`` is the length that the sequence is expected to reach.
        """
        with self._lock:
            self._check(holder)
            extended = self._needs_extended(planned)
            keep = 0
            if extended == self._extended:
                for cached, wanted in zip(self.tokens, ids[:-1], strict=False):
                    if cached != wanted:
                        break
                    keep += 1
            if not self._sequence.truncate(keep):
                keep = 0
                self._sequence.truncate(0)
            del self.tokens[keep:]
            self._extended = extended
            return keep

    def shift(self, keep: int, room: int, holder: int | None = None) -> int:
        """Where the context has no room for ``room`` more tokens, forget the older half of those behind the first
        ``keep``, and say how many. Those that follow them are computed again, at their new places, by the next call
        that appends tokens.
        """
        with self._lock:
            self._open()
            self._check(holder)
            length = len(self.tokens)
            if length + room <= self._context_length:
                return 0
            count = max((length - keep) // 2, 1)
            self._sequence.forget(keep, count)
            del self.tokens[keep : keep + count]
            return count

    def extend(
        self, ids: Sequence[int], planned: int, all_positions: bool = False, holder: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Append tokens; the logits after the last of them, float32 [1, vocabulary], or after each, [n, vocabulary]."""
        logits = np.empty((len(ids) if all_positions else 1, self._open().vocabulary), np.float32)
        self._append(ids, planned, holder, _ALL if all_positions else _LAST, logits)
        return logits

    def choose(
        self, ids: Sequence[int], planned: int, selection: _native.Selection, holder: int | None = None
    ) -> _native.Selection:
        """Append tokens; the selection, with the candidates for the token after the last of them."""
        self._append(ids, planned, holder, _LAST, _NO_LOGITS, selection)
        return selection

    def _append(
        self,
        ids: Sequence[int],
        planned: int,
        holder: int | None,
        mode: int,
        logits: npt.NDArray[np.float32],
        selection: _native.Selection | None = None,
    ) -> None:
        with self._lock:
            native = self._open()
            self._check(holder)
            if not self.tokens:
                self._extended = self._needs_extended(planned)
            before = self._sequence.length
            try:
                native.forward(
                    [self._sequence],
                    [np.asarray(ids, np.int32)],
                    [mode],
                    [self._extended],
                    logits,
                    [selection],
                )
            finally:
                # After an interruption the sequence has the tokens of the submissions that completed.
                self.tokens.extend(ids[: self._sequence.length - before])

    def _check(self, holder: int | None) -> None:
        if holder is not None and holder != self._holder:
            raise RequestError("another generation has taken over the cache of this one")

    def _needs_extended(self, planned: int) -> bool:
        return self._original_context > 0 and planned > self._original_context

    def _open(self) -> _native.Model:
        if self._native is None:
            raise Error("the model or the sequence is closed")
        return self._native

    def close(self) -> None:
        """Give the pages back."""
        self._native = None
        self._sequence.close()
