"""The sampler of one sequence: Python processors, then the native chain."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metallic_native import _native

from ..errors import Error, RequestError
from .breakers import BreakerTokenizer, dry_breakers
from .params import LogitsProcessor, Sampling

__all__ = ["SampledToken", "SamplerChain"]

_NATIVE_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "repetition_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
)


class SampledToken(NamedTuple):
    """A chosen token. ``logprob`` and ``top``, pairs of id and log-probability, most probable first, are as
    :attr:`Sampling.logprobs` asks; else None and empty.
    """

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


class SamplerChain:
    """Chooses the tokens of one sequence, and holds what that needs: its history and its random numbers.

    ``n_vocab`` is the number of logits. ``tokenizer`` is only needed for DRY with sequence breakers. ``prompt`` is
    given to :meth:`accept_prompt`. Equal seeds, logits and calls give equal tokens, on every platform. Methods may be
    called from any thread; calls on one chain run one after the other, and the native part does not hold the GIL.

    Raises RequestError when the parameters do not fit the vocabulary.
    """

    _sampling: Sampling
    _n_vocab: int
    _sampler: _native.NativeSampler

    def __init__(
        self,
        sampling: Sampling,
        n_vocab: int,
        tokenizer: BreakerTokenizer | None = None,
        *,
        prompt: Iterable[int] = (),
    ) -> None:
        if isinstance(n_vocab, bool) or not isinstance(n_vocab, Integral) or not 0 < int(n_vocab) < 2**31:
            raise RequestError(f"n_vocab = {n_vocab!r} must be an integer from 1 to 2**31 - 1")
        self._sampling = sampling
        self._n_vocab = int(n_vocab)
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        breakers = _breakers(sampling, self._n_vocab, tokenizer)
        self._sampler = _native.NativeSampler(_native_params(sampling), self._n_vocab, seed, breakers)
        self.accept_prompt(prompt)

    @property
    def sampling(self) -> Sampling:
        """The parameters."""
        return self._sampling

    @property
    def n_vocab(self) -> int:
        """The number of logits per token."""
        return self._n_vocab

    @property
    def seed(self) -> int:
        """The seed in use, also when none was given."""
        return self._sampler.seed

    @property
    def history(self) -> NDArray[np.int32]:
        """A copy of all tokens so far, prompt included."""
        return self._sampler.history()

    def sample(self, logits: NDArray[np.floating[Any]], mask: NDArray[Any] | None = None) -> SampledToken:
        """Choose the next token; :meth:`accept` it to go on.

        ``logits``: floating point [n_vocab]. ``mask``: uint32 or int32, at least ceil(n_vocab / 32) words; bit i % 32
        of word i / 32 allows token i, as grammar libraries write it.

        Raises RequestError for arrays of another form, a processor that fails, or when every token is banned;
        DeviceError when a logit is NaN or +inf, or none is finite. After an error the chain is as it was.
        """
        raw = self._checked(logits, "logits")
        processed = self._processed(raw)
        token, logprob, top = self._sampler.sample(
            processed, self._checked_mask(mask), None if processed is raw else raw
        )
        return SampledToken(token, logprob, top)

    def select(self, mask: NDArray[Any] | None = None) -> _native.Selection | None:
        """What a forward pass must choose from the next logits for :meth:`sample_selected`, with bias and penalties of
        the history as it is now; None when :meth:`sample` and all logits are needed.

        That is so unless the sampling is greedy, or ``top_k`` of 1 to 256 comes before every other stage that removes
        tokens; and with processors or log-probabilities always.
        """
        if self._sampling.processors:
            return None
        return self._sampler.select(self._checked_mask(mask))

    def sample_selected(self, selection: _native.Selection) -> SampledToken:
        """The token that :meth:`sample` would choose from the logits that the candidates were chosen from.

        Raises as :meth:`sample` does.
        """
        return SampledToken(self._sampler.sample_selected(selection), None, ())

    def distribution(
        self, logits: NDArray[np.floating[Any]], mask: NDArray[Any] | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The ids, ascending, that :meth:`sample` would draw from, and their probabilities. Changes nothing."""
        return self._sampler.distribution(self._processed(self._checked(logits, "logits")), self._checked_mask(mask))

    def accept(self, token: int) -> None:
        """Append a generated token to the history. Raises RequestError for an id outside the vocabulary."""
        self._sampler.accept(self._checked_id(token))

    def accept_prompt(self, tokens: Iterable[int]) -> None:
        """Append prompt tokens: repetition penalty and DRY see them, presence and frequency penalties do not."""
        if isinstance(tokens, np.ndarray) and tokens.ndim == 1 and np.issubdtype(tokens.dtype, np.integer):
            outside = tokens[(tokens < 0) | (tokens >= self._n_vocab)]
            if outside.size:
                self._checked_id(outside[0])
            ids = np.ascontiguousarray(tokens, dtype=np.int32)
        else:
            ids = np.array([self._checked_id(token) for token in tokens], dtype=np.int32)
        self._sampler.accept_prompt(ids)

    def clone(self, seed: int | None = None) -> SamplerChain:
        """A chain that goes on from the same state: for a fork of the sequence. ``seed`` gives it other random numbers.

        Processors are shared, not copied.
        """
        if seed is not None:
            seed = self._sampling.replace(seed=seed).seed
        fork = object.__new__(type(self))
        fork._sampling = self._sampling
        fork._n_vocab = self._n_vocab
        fork._sampler = self._sampler.clone()
        if seed is not None:
            fork._sampler.reseed(seed)
        return fork

    def reset(self) -> None:
        """Forget the history, prompt included, and start the random numbers again from the seed."""
        self._sampler.reset()

    def _processed(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self._sampling.processors:
            return raw
        history = self._sampler.history()
        history.flags.writeable = False
        logits: NDArray[np.float32] = raw.copy()
        for processor in self._sampling.processors:
            logits = self._run(processor, history, logits)
        # Faults of the model are the native chain's to report; what is new here, a processor did.
        wrong = np.flatnonzero(~(logits < np.inf) & (raw < np.inf))
        if wrong.size:
            raise RequestError(f"the processors left the logit of token {wrong[0]} at {logits[wrong[0]]}")
        if logits.max() == -np.inf < raw.max():
            raise RequestError("no token is left to sample: the processors ban every token that has a finite logit")
        return logits

    def _run(
        self, processor: LogitsProcessor, history: NDArray[np.int32], logits: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        name = getattr(processor, "__qualname__", type(processor).__qualname__)
        try:
            result = processor(history, logits)
        except Error:
            raise
        except Exception as error:
            raise RequestError(f"the logits processor {name} failed: {type(error).__name__}: {error}") from error
        return logits if result is None else self._checked(result, f"the result of the logits processor {name}")

    def _checked(self, values: object, what: str) -> NDArray[np.float32]:
        if not isinstance(values, np.ndarray) or not np.issubdtype(values.dtype, np.floating):
            kind = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
            raise RequestError(f"{what}: expected an array of float32, got {kind}")
        if values.shape != (self._n_vocab,):
            raise RequestError(f"{what}: expected the shape ({self._n_vocab},), got {values.shape}")
        array: NDArray[np.float32] = np.ascontiguousarray(values, dtype=np.float32)
        return array

    def _checked_mask(self, mask: object) -> NDArray[np.uint32] | None:
        if mask is None:
            return None
        if not isinstance(mask, np.ndarray) or mask.ndim != 1 or mask.dtype not in (np.uint32, np.int32):
            raise RequestError("mask: expected a one-dimensional array of uint32 words, 32 tokens to a word")
        words = -(-self._n_vocab // 32)
        if mask.size < words:
            raise RequestError(f"mask: {self._n_vocab} tokens need {words} words of 32 bits, got {mask.size}")
        return np.ascontiguousarray(mask).view(np.uint32)

    def _checked_id(self, token: object) -> int:
        if isinstance(token, (bool, np.bool_)) or not isinstance(token, Integral):
            raise RequestError(f"a token id must be an integer, not {token!r}")
        if not 0 <= int(token) < self._n_vocab:
            raise RequestError(f"token {int(token)} is out of range: ids run from 0 to {self._n_vocab - 1}")
        return int(token)


def _breakers(sampling: Sampling, n_vocab: int, tokenizer: BreakerTokenizer | None) -> _native.DryBreakers | None:
    runs = sampling.dry_multiplier > 0 and sampling.dry_penalty_last_n != 0 and "dry" in sampling.order
    if not runs or not sampling.dry_sequence_breakers:
        return None
    if tokenizer is None:
        raise RequestError("dry_sequence_breakers need a tokenizer; give one, or set dry_sequence_breakers=()")
    return dry_breakers(tokenizer, sampling.dry_sequence_breakers, n_vocab)


def _native_params(sampling: Sampling) -> _native.NativeSamplingParams:
    params = _native.NativeSamplingParams()
    for name in _NATIVE_FIELDS:
        setattr(params, name, getattr(sampling, name))
    params.logprobs = -1 if sampling.logprobs is None else sampling.logprobs
    params.logit_bias = list(sampling.logit_bias.items())
    params.set_order(list(sampling.order))
    return params
