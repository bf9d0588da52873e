"""A loaded model."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from operator import index
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _native
from ..errors import Error, RequestError
from ..loading import ModelConfig
from ..sampling import SamplerChain, Sampling
from ..text import ChatTemplate, Tokenizer
from .cache import CachedTokens
from .generation import Chunk, Generation, GenerationStats, Output, StopRule, generate_chunks
from .memory import MemoryEvent, MemoryReport
from .placement import Placement

__all__ = ["Model"]

log = logging.getLogger(__name__)

_OPEN_END = 256

Prompt = str | Sequence[int]
Stop = str | int | Sequence[str | int]


class Model:
    """A model, ready to run; made by :func:`metallic_native.load`. A context manager that closes it.

    May be used from several threads: their forward passes take turns, a step at a time. The attributes ``path``,
    ``config``, ``tokenizer``, ``template``, ``context_length`` and ``kv_type`` say what was loaded.
    """

    def __init__(
        self,
        *,
        native: _native.Model,
        path: Path,
        config: ModelConfig,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        context_length: int,
        kv_type: str,
    ) -> None:
        self._native: _native.Model | None = native
        self._selects = bool(native.device["selects_candidates"])
        self._lock = threading.RLock()  # a signal handler may come back to it
        self._caches: weakref.WeakSet[CachedTokens] = weakref.WeakSet()
        self.path = path
        self.config = config
        self.tokenizer = tokenizer
        self.template = template
        self.context_length = context_length
        self.kv_type = kv_type

    @property
    def native(self) -> _native.Model:
        """The compiled model. Raises Error when the model is closed."""
        native = self._native
        if native is None:
            raise Error(f"the model {self.path.name} is closed")
        return native

    @property
    def device(self) -> dict[str, Any]:
        """Facts about the device that the model runs on."""
        return self.native.device

    @property
    def precision(self) -> str:
        """What matrix products round their operands to: what was asked for, or what ``"auto"`` came to."""
        return self.native.precision

    @property
    def vocabulary_size(self) -> int:
        """The number of logits of a token."""
        return self.native.vocabulary

    @property
    def placement(self) -> Placement:
        """Where the weights are, which device computes what, and the numbers that decided it."""
        return Placement.of(self.native.placement)

    def evict_weights(self, at_least: int | None = None) -> int:
        """Free the copies of weights that are not mapped, once no forward pass runs; their bytes are returned.

        All of them, or only so many that ``at_least`` bytes of heaps go back to the system: those first that a pass
        needs last, a matrix of more than 4 MiB alone, smaller ones with all that share their heap. What is in a heap
        with something else stays then, so that less may come back.

        The model stays usable: its next forward pass makes room for what is missing, compiles the program and uploads
        it, which takes as long as the first one did if that is all, and raises OutOfMemory when there is no room.
        """
        if at_least is not None and at_least < 0:
            raise RequestError("at_least must not be negative")
        return self.native.evict_weights(at_least)

    def memory(self) -> MemoryReport:
        """Bytes by tag, peaks and pages; may be called while a generation runs."""
        return MemoryReport.of(self.native)

    def memory_events(self) -> list[MemoryEvent]:
        """What was lately done about memory pressure, oldest first. Without pressure nothing is."""
        return MemoryEvent.all_of(self.native)

    def compact(self) -> int:
        """Move cached pages together, so that heaps that become empty go back to the system; the bytes moved.

        The background thread does so by itself where many held pages are free.
        """
        return self.native.compact()

    def close(self) -> None:
        """Give everything back. Running generations of other threads end with an Error at their next token."""
        with self._lock:
            self._native = None
            for cache in list(self._caches):
                cache.close()
        for report in _native.take_leak_reports():
            for owner, allocations, size in report:
                log.warning("a pool was closed with %d bytes of %s in %d allocations", size, owner, allocations)

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._native is None else ""
        return f"<Model {self.path.name}: {self.config.architecture}, {self.config.block_count} blocks{state}>"

    def new_cache(self) -> CachedTokens:
        """An empty cache for one sequence."""
        with self._lock:
            cache = CachedTokens(self.native, self.context_length, self.config.rope.original_context)
            self._caches.add(cache)
            if self._native is None:  # a signal handler closed it meanwhile
                cache.close()
            return cache

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, checked. Text is encoded with the special tokens, ids are taken as they are."""
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt, add_special=True)
            if not ids:
                ids = [self._start_token()]
        else:
            try:
                ids = [index(token) for token in prompt]
            except TypeError:
                raise RequestError("a prompt is text or a sequence of token ids") from None
        if not ids:
            raise RequestError("the prompt is empty")
        vocabulary = self.vocabulary_size
        for token in ids:
            if not 0 <= token < vocabulary:
                raise RequestError(f"token id {token} is outside the vocabulary of {vocabulary}")
        if len(ids) > self.context_length:
            raise RequestError(f"the prompt has {len(ids)} tokens, the context holds {self.context_length}")
        return ids

    def _start_token(self) -> int:
        for token in (self.tokenizer.bos_id, self.tokenizer.eos_id):
            if token is not None:
                return token
        raise RequestError("the prompt is empty and the model has no token to begin with")

    def logits(self, token_ids: Sequence[int], all_positions: bool = False) -> npt.NDArray[np.float32]:
        """Logits of the token after ``token_ids``, float32 [1, vocabulary].

        With ``all_positions``, those after each token: [n, vocabulary].
        """
        ids = self.prompt_ids(token_ids)
        cache = self.new_cache()
        try:
            return cache.extend(ids, planned=len(ids), all_positions=all_positions)
        finally:
            cache.close()

    def stream(
        self,
        prompt: Prompt,
        max_tokens: int | None = 256,
        sampling: Sampling | None = None,
        stop: Stop = (),
        ignore_eos: bool = False,
        *,
        stats: GenerationStats | None = None,
        cache: CachedTokens | None = None,
        context_shift: int | None = None,
    ) -> Iterator[Chunk]:
        """Generate, a chunk per token; the last one has a ``finish_reason``. Closing the iterator ends the generation.

        Arguments are those of :meth:`generate`. ``stats`` is filled in as the generation runs. A ``cache`` keeps the
        sequence for a later call, whose prompt begins with the same tokens; without one it ends with the generation.
        """
        ids = self.prompt_ids(prompt)
        unlimited = self.context_length + 1 if context_shift is None else 2**63  # more than there is room for
        limit = unlimited if max_tokens is None else max_tokens
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise RequestError(f"max_tokens must be at least 1, not {max_tokens!r}")
        if cache is not None and not cache.belongs_to(self.native):
            raise RequestError("the cache belongs to another model, or is closed")
        if context_shift is not None and (
            type(context_shift) is not int or not 0 <= context_shift <= self.context_length - 2
        ):
            most = self.context_length - 2
            raise RequestError(f"context_shift is how many tokens to keep, 0 to {most}, not {context_shift!r}")
        rule = StopRule.of(stop, self.tokenizer, ignore_eos)
        chain = SamplerChain(sampling or Sampling(), self.vocabulary_size, self.tokenizer)
        return self._run(ids, limit, chain, rule, stats or GenerationStats(), cache, context_shift)

    def _run(
        self,
        ids: list[int],
        limit: int,
        chain: SamplerChain,
        rule: StopRule,
        stats: GenerationStats,
        kept: CachedTokens | None,
        shift: int | None,
    ) -> Iterator[Chunk]:
        started = time.perf_counter()
        cache = kept or self.new_cache()
        planned = min(len(ids) + limit, self.context_length)
        holder = cache.take()
        try:
            stats.prompt_tokens = len(ids)
            stats.cached_tokens = cache.keep_prefix(ids, planned, holder)
            cache.enter(self._claim(len(ids), limit))
            chain.accept_prompt(ids)

            def forward(tokens: Sequence[int]) -> Output:
                if shift is not None and cache.shift(shift, len(tokens), holder):
                    stats.context_shifts += 1
                selection = chain.select() if self._selects else None
                if selection is not None:
                    return cache.choose(tokens, planned, selection, holder)
                logits: npt.NDArray[np.float32] = cache.extend(tokens, planned, holder=holder)[0]
                return logits

            first = forward(ids[stats.cached_tokens :])
            stats.prompt_seconds = time.perf_counter() - started
            yield from generate_chunks(
                prompt=ids,
                first=first,
                forward=forward,
                tokenizer=self.tokenizer,
                chain=chain,
                rule=rule,
                max_tokens=limit,
                room=None if shift is not None else self.context_length - len(ids),
                stats=stats,
                started=started,
            )
        finally:
            cache.leave(holder)
            if kept is None:
                cache.close()

    def _claim(self, prompt: int, limit: int) -> int:
        """Tokens whose memory a generation waits for: all that it may draw, but where that is the whole context, a
        beginning; it then grows as far as others let it.
        """
        if prompt + limit > self.context_length:
            limit = min(limit, _OPEN_END)
        return min(prompt + limit + _native.page_tokens, self.context_length)

    def generate(
        self,
        prompt: Prompt,
        max_tokens: int | None = 256,
        sampling: Sampling | None = None,
        stop: Stop = (),
        ignore_eos: bool = False,
        *,
        cache: CachedTokens | None = None,
        context_shift: int | None = None,
    ) -> Generation:
        """Generate text.

        ``prompt`` is text or token ids. At most ``max_tokens`` tokens are drawn (None: as many as the context holds),
        as ``sampling`` says. ``stop`` are strings, which end the text before them, or token ids; the model's own
        end-of-generation tokens count too unless ``ignore_eos``.

        A generation ends when the context is full, unless ``context_shift`` says how many of the first tokens to keep:
        then the older half of the others is dropped, those that remain are computed again at their new places, and it
        goes on, as if the prompt had been what is left.

        Raises RequestError for arguments that cannot be served and OutOfMemory when the pool has no page left; the
        model is as usable afterwards as before. Ctrl-C ends it with KeyboardInterrupt.
        """
        stats = GenerationStats()
        chunks = self.stream(
            prompt, max_tokens, sampling, stop, ignore_eos, stats=stats, cache=cache, context_shift=context_shift
        )
        return collect(chunks, stats, with_logprobs=sampling is not None and sampling.logprobs is not None)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int | None = 512,
        sampling: Sampling | None = None,
        stop: Stop = (),
        *,
        tools: Sequence[Any] | None = None,
        cache: CachedTokens | None = None,
        context_shift: int | None = None,
        **template_variables: Any,
    ) -> Generation:
        """Answer ``messages`` (dicts with ``role`` and ``content``), rendered with the model's chat template.

        Other arguments are those of :meth:`generate`.
        """
        ids = self.template.encode(self.tokenizer, messages, tools=tools, **template_variables)
        return self.generate(ids, max_tokens, sampling, stop, cache=cache, context_shift=context_shift)


def collect(chunks: Iterator[Chunk], stats: GenerationStats, *, with_logprobs: bool) -> Generation:
    """The generation that a stream of chunks makes."""
    result = Generation(stats=stats)
    texts: list[str] = []
    logprobs: list[float] = []
    tops: list[tuple[tuple[int, float], ...]] = []
    for chunk in chunks:
        texts.append(chunk.text)
        if chunk.token_id is not None:
            result.token_ids.append(chunk.token_id)
            if chunk.logprob is not None:
                logprobs.append(chunk.logprob)
                tops.append(chunk.top_logprobs)
        if chunk.finish_reason is not None:
            result.finish_reason = chunk.finish_reason
    result.text = "".join(texts)
    if with_logprobs:
        result.logprobs = logprobs
        result.top_logprobs = tops
    return result
