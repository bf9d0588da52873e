"""A chat that keeps its history in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from ..sampling import Sampling
from .generation import Chunk, GenerationStats
from .model import Model

__all__ = ["Session"]


class Session:
    """A conversation. Each turn computes only what the cache does not hold yet.

    A context manager that gives its pages back.
    """

    def __init__(self, model: Model, system: str | None = None, **template_variables: Any) -> None:
        self.model = model
        self.messages: list[Mapping[str, Any]] = []
        if system:
            self.messages.append({"role": "system", "content": system})
        self._variables = template_variables
        self._cache = model.new_cache()

    def send(
        self,
        content: str,
        max_tokens: int | None = 512,
        sampling: Sampling | None = None,
        *,
        stats: GenerationStats | None = None,
    ) -> Iterator[Chunk]:
        """The answer to a user's message, as a stream; both are part of ``messages`` once it ends, or is closed."""
        messages = [*self.messages, {"role": "user", "content": content}]
        ids = self.model.template.encode(self.model.tokenizer, messages, **self._variables)
        chunks = self.model.stream(ids, max_tokens, sampling, stats=stats, cache=self._cache)
        return self._record(messages, chunks)

    def _record(self, messages: list[Mapping[str, Any]], chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        answer: list[str] = []
        before = self.messages
        try:
            for chunk in chunks:
                answer.append(chunk.text)
                yield chunk
        finally:
            # A turn that failed before it said anything, or that another overtook, leaves the conversation as it was.
            if answer and self.messages is before:
                self.messages = [*messages, {"role": "assistant", "content": "".join(answer)}]

    def close(self) -> None:
        """Give the pages back."""
        self._cache.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
