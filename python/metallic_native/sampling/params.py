"""What a request may ask of the sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError

__all__ = ["DEFAULT_ORDER", "LogitsProcessor", "Sampling"]

LogitsProcessor = Callable[[NDArray[np.int32], NDArray[np.float32]], NDArray[np.float32] | None]
"""``processor(token_ids, logits)``: the sequence so far, prompt included, and a private copy of the logits, float32
[n_vocab].

It may change the copy and return None, or return new logits of the same shape; ``-inf`` bans a token.
"""

DEFAULT_ORDER = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typical_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)
"""The order of llama.cpp's default sampler chain."""

_INT32_MAX = 2**31 - 1
_MOST_BREAKERS = 64
_LONGEST_BREAKER = 40  # characters, as in llama.cpp
_GREATEST_BIAS = float(np.finfo(np.float32).max)

# field: (least, greatest, the range in words)
_INTEGERS = {
    "top_k": (0, _INT32_MAX, "at least 0 (0 keeps all tokens)"),
    "repeat_last_n": (-1, _INT32_MAX, "at least -1 (-1 means the whole sequence, 0 switches it off)"),
    "dry_allowed_length": (1, _INT32_MAX, "at least 1"),
    "dry_penalty_last_n": (-1, _INT32_MAX, "at least -1 (-1 means the whole sequence, 0 switches DRY off)"),
}
_OPTIONAL_INTEGERS = {
    "seed": (0, 2**64 - 1, "from 0 to 2**64 - 1, or None"),
    "logprobs": (0, _INT32_MAX, "at least 0, or None"),
}
_REALS = {
    "temperature": (0.0, math.inf, "finite and at least 0 (0 is greedy)"),
    "top_p": (0.0, 1.0, "from 0 to 1 (1 keeps all tokens)"),
    "min_p": (0.0, 1.0, "from 0 to 1 (0 keeps all tokens)"),
    "typical_p": (0.0, 1.0, "from 0 to 1 (1 keeps all tokens)"),
    "top_n_sigma": (0.0, math.inf, "finite and at least 0 (0 keeps all tokens)"),
    "xtc_probability": (0.0, 1.0, "from 0 to 1 (0 switches XTC off)"),
    "xtc_threshold": (0.0, 1.0, "from 0 to 1 (above 0.5 switches XTC off)"),
    "repetition_penalty": (1e-3, 1e3, "from 0.001 to 1000 (1 switches it off)"),
    "presence_penalty": (-2.0, 2.0, "from -2 to 2"),
    "frequency_penalty": (-2.0, 2.0, "from -2 to 2"),
    "dry_multiplier": (0.0, math.inf, "finite and at least 0 (0 switches DRY off)"),
    "dry_base": (1.0, math.inf, "finite and at least 1"),
}


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Immutable; the defaults are llama.cpp's.

    A bad value raises :class:`~metallic_native.RequestError`, which names the field, the value and the allowed range.

    The stages, in the order in which they run: ``processors``; the mask of allowed tokens, if the caller gives one;
    ``logit_bias``; the stages of ``order``; the draw. A stage works on the tokens that earlier stages have left,
    always leaves at least one, and prefers lower ids among equal logits. With p the softmax over the tokens left:

    ``penalties``
        Repetition: the logit of each distinct token among the last ``repeat_last_n`` (prompt included; -1: all) is
        divided by ``repetition_penalty`` when positive and multiplied by it otherwise (Keskar et al. 2019; Hugging
        Face, llama.cpp). Then ``frequency_penalty`` times the count, and ``presence_penalty`` once, of each token
        generated so far is subtracted (OpenAI; the prompt does not count, and there is no window).
    ``dry``
        A token that would lengthen a repeat of n >= ``dry_allowed_length`` tokens loses
        ``dry_multiplier * dry_base ** (n - dry_allowed_length)`` (P. E. Weidmann 2024). Looked for in the last
        ``dry_penalty_last_n`` tokens (-1: all), never across ``dry_sequence_breakers``, which need a tokenizer.
    ``top_n_sigma``
        Keep logits of at least max - ``top_n_sigma`` standard deviations (Tang et al. 2024).
    ``top_k``
        Keep the ``top_k`` greatest logits.
    ``typical_p``
        Keep the fewest tokens, nearest first to the entropy by ``|-log p - H|``, that reach this mass (Meister et al.
        2022).
    ``top_p``
        Keep the fewest most probable tokens that together reach this mass (Holtzman et al. 2019).
    ``min_p``
        Keep tokens at least this many times as probable as the most probable (Nguyen et al. 2024).
    ``xtc``
        With probability ``xtc_probability``, remove all tokens with p >= ``xtc_threshold`` but the least probable of
        these (P. E. Weidmann 2024).
    ``temperature``
        Divide logits by ``temperature``. At 0 the choice is greedy: the greatest logit after the mask, the bias,
        penalties and DRY; every other stage is skipped.

    ``order`` may rearrange the stages; those it leaves out do not run. ``logit_bias`` maps token ids to what is added
    to the logit; ``-inf`` bans. ``seed`` None draws a seed, readable from the chain. ``logprobs`` asks for the
    log-probability of the chosen token and of so many most probable alternatives (0: only the chosen one): the natural
    log-softmax of the model's raw logits, before every stage and processor. ``processors`` run in the given order,
    before the native chain.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None
    logprobs: int | None = None
    processors: tuple[LogitsProcessor, ...] = ()
    order: tuple[str, ...] = DEFAULT_ORDER

    def __post_init__(self) -> None:
        for name, (least, greatest, words) in _INTEGERS.items():
            self._set(name, _integer(name, getattr(self, name), least, greatest, words))
        for name, (least, greatest, words) in _OPTIONAL_INTEGERS.items():
            value = getattr(self, name)
            self._set(name, None if value is None else _integer(name, value, least, greatest, words))
        for name, (low, high, words) in _REALS.items():
            self._set(name, _real(name, getattr(self, name), low, high, words))
        self._set("dry_sequence_breakers", _breakers(self.dry_sequence_breakers))
        self._set("logit_bias", MappingProxyType(_biases(self.logit_bias)))
        self._set("processors", _callables(self.processors))
        self._set("order", _stages(self.order))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def greedy(cls, **changes: Any) -> Sampling:
        """Always the most probable token; ``changes`` are other fields, such as ``logit_bias`` or ``logprobs``."""
        return _make(cls, {"temperature": 0.0, **changes})

    @property
    def is_greedy(self) -> bool:
        """Whether no chance is involved."""
        return self.temperature == 0.0

    def replace(self, **changes: Any) -> Sampling:
        """A copy with some fields changed."""
        _check_names(changes)
        return replace(self, **changes)

    def __reduce__(self) -> tuple[Callable[..., Sampling], tuple[Any, ...]]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["logit_bias"] = dict(self.logit_bias)  # a mapping proxy cannot be pickled
        return _make, (type(self), values)


def _make(cls: type[Sampling], values: dict[str, Any]) -> Sampling:
    _check_names(values)
    return cls(**values)


def _check_names(changes: Iterable[str]) -> None:
    known = {f.name for f in fields(Sampling)}
    for name in changes:
        if name not in known:
            raise RequestError(f"sampling has no field {name!r}; there are {', '.join(sorted(known))}")


def _integer(name: str, value: object, least: int, greatest: int, words: str) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral):
        raise RequestError(f"{name} = {value!r} must be an integer, {words}")
    number = int(value)
    if not least <= number <= greatest:
        raise RequestError(f"{name} = {number} is out of range: must be {words}")
    return number


def _real(name: str, value: object, low: float, high: float, words: str) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise RequestError(f"{name} = {value!r} must be a number, {words}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and low <= number <= high):
        raise RequestError(f"{name} = {value!r} is out of range: must be {words}")
    return number


def _items(name: str, value: object, what: str) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise RequestError(f"{name} = {value!r} must be a sequence of {what}")
    return tuple(value)


def _strings(name: str, value: object) -> tuple[str, ...]:
    items = _items(name, value, "strings")
    for item in items:
        if not isinstance(item, str) or not item:
            raise RequestError(f"{name} holds {item!r}: each must be a string that is not empty")
    return items


def _breakers(value: object) -> tuple[str, ...]:
    breakers = _strings("dry_sequence_breakers", value)
    if len(breakers) > _MOST_BREAKERS:
        raise RequestError(f"dry_sequence_breakers holds {len(breakers)} strings: at most {_MOST_BREAKERS} are allowed")
    for breaker in breakers:
        if len(breaker) > _LONGEST_BREAKER:
            raise RequestError(
                f"dry_sequence_breakers holds a string of {len(breaker)} characters: at most {_LONGEST_BREAKER} allowed"
            )
    return breakers


def _stages(value: object) -> tuple[str, ...]:
    stages = _strings("order", value)
    for stage in stages:
        if stage not in DEFAULT_ORDER:
            raise RequestError(f"order names {stage!r}, which is no stage; there are {', '.join(DEFAULT_ORDER)}")
        if stages.count(stage) > 1:
            raise RequestError(f"order names {stage!r} twice")
    return stages


def _callables(value: object) -> tuple[LogitsProcessor, ...]:
    items = _items("processors", value, "callables")
    for item in items:
        if not callable(item):
            raise RequestError(f"processors holds {item!r}, which cannot be called")
    return items


def _biases(value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise RequestError(f"logit_bias = {value!r} must be a mapping of token ids to numbers")
    biases: dict[int, float] = {}
    for token, bias in value.items():
        number = _integer("a token id of logit_bias", token, 0, _INT32_MAX, "at least 0")
        if isinstance(bias, (bool, np.bool_)) or not isinstance(bias, Real):
            raise RequestError(f"logit_bias of token {number} is {bias!r}: must be a number")
        if float(bias) != -math.inf and not abs(float(bias)) <= _GREATEST_BIAS:
            raise RequestError(
                f"logit_bias of token {number} is {bias!r}: must be a finite float32, or -inf to ban the token"
            )
        biases[number] = float(bias)
    return biases
