"""One generation: tokens drawn one after the other, as text that streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from .. import _native
from ..errors import RequestError
from ..sampling import SampledToken, SamplerChain
from ..text import StopMatcher, StreamingDetokenizer, Tokenizer

__all__ = ["Chunk", "FinishReason", "Generation", "GenerationStats", "StopRule", "generate_chunks"]

FinishReason = Literal["stop", "length", "context"]
"""Why a generation ended: an end-of-generation token or a stop condition; ``max_tokens``; the context is full."""

Output = npt.NDArray[np.float32] | _native.Selection
"""What a pass gives for the next token: logits [vocabulary], or the candidates that a selection asked for."""

Forward = Callable[[Sequence[int]], Output]


@dataclass
class GenerationStats:
    """Counts and times of one generation. Seconds are of wall-clock time."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that a session already had in its cache."""
    completion_tokens: int = 0
    prompt_seconds: float = 0.0
    """From the call to the logits of the prompt's last token."""
    decode_seconds: float = 0.0
    """From then to the last token."""
    first_token_seconds: float = 0.0
    context_shifts: int = 0
    """How often the oldest tokens were dropped because the context was full."""

    @property
    def prompt_tokens_per_second(self) -> float:
        """Of the prompt tokens that were computed."""
        computed = self.prompt_tokens - self.cached_tokens
        return computed / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of decoding: the first token belongs to the prompt's pass."""
        return max(self.completion_tokens - 1, 0) / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True)
class Chunk:
    """What one token added.

    ``text`` may be empty: half a character, or the possible beginning of a stop string, is held back.
    """

    text: str
    token_id: int | None = None
    """None in a last chunk that only ends the stream."""
    logprob: float | None = None
    """Natural logarithm of the token's probability under the model, if log-probabilities were asked for."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    """Set in the last chunk."""


@dataclass
class Generation:
    """A finished generation."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    """The tokens drawn, without the end-of-generation token that ended them."""
    logprobs: list[float] | None = None
    """One per token id, if asked for."""
    top_logprobs: list[tuple[tuple[int, float], ...]] | None = None
    finish_reason: FinishReason = "stop"
    stats: GenerationStats = field(default_factory=GenerationStats)


@dataclass(frozen=True)
class StopRule:
    """When a generation ends before its length."""

    token_ids: frozenset[int]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, stop: str | int | Sequence[str | int], tokenizer: Tokenizer, ignore_eos: bool) -> StopRule:
        """From what a caller gave: stop strings and token ids, alone or mixed."""
        items: Sequence[str | int] = [stop] if isinstance(stop, (str, int)) else list(stop)
        ids = set() if ignore_eos else set(tokenizer.end_of_generation_ids)
        texts = []
        for item in items:
            if isinstance(item, str) and item:
                texts.append(item)
            elif isinstance(item, int) and not isinstance(item, bool) and 0 <= item < tokenizer.vocab_size:
                ids.add(item)
            else:
                raise RequestError(
                    f"stop must be strings that are not empty or token ids of the vocabulary, not {item!r}"
                )
        return cls(frozenset(ids), tuple(texts))


@dataclass
class _Text:
    """The text side of a generation."""

    detokenizer: StreamingDetokenizer
    matcher: StopMatcher

    def push(self, token: int) -> tuple[str, bool]:
        return self.matcher.push(self.detokenizer.push(token))

    def finish(self) -> tuple[str, bool]:
        text, stopped = self.matcher.push(self.detokenizer.flush())
        return (text, True) if stopped else (text + self.matcher.flush(), False)


def _draw(chain: SamplerChain, output: Output) -> SampledToken:
    return chain.sample_selected(output) if isinstance(output, _native.Selection) else chain.sample(output)


def generate_chunks(
    *,
    prompt: Sequence[int],
    first: Output,
    forward: Forward,
    tokenizer: Tokenizer,
    chain: SamplerChain,
    rule: StopRule,
    max_tokens: int,
    room: int | None,
    stats: GenerationStats,
    started: float,
) -> Iterator[Chunk]:
    """Draw tokens from the output ``first`` on. ``forward`` appends tokens to the sequence and gives the next output.

    ``room`` is how many tokens the context has left behind the prompt, None where ``forward`` makes room itself;
    ``started`` the time that ``stats`` count from.
    """
    written = _Text(StreamingDetokenizer(tokenizer, previous=prompt), StopMatcher(rule.texts))
    output = first
    decoding_since = time.perf_counter()
    # The last token need not be computed, so it needs no room.
    limit = max_tokens if room is None else min(max_tokens, room + 1)
    reason: FinishReason = "length" if limit == max_tokens else "context"
    for count in range(limit):
        drawn = _draw(chain, output)
        now = time.perf_counter()
        if count == 0:
            stats.first_token_seconds = now - started
        if drawn.id in rule.token_ids:
            reason = "stop"
            break
        chain.accept(drawn.id)
        stats.completion_tokens += 1
        stats.decode_seconds = now - decoding_since
        text, stopped = written.push(drawn.id)
        if stopped:
            yield Chunk(text, drawn.id, drawn.logprob, drawn.top, "stop")
            return
        yield Chunk(text, drawn.id, drawn.logprob, drawn.top)
        if count + 1 < limit:
            output = forward([drawn.id])
    rest, stopped = written.finish()
    yield Chunk(rest, finish_reason="stop" if stopped else reason)
