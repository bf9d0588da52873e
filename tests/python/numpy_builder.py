"""A builder that computes each step in NumPy as it is recorded: runs model functions without a native engine."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from metallic_native.errors import ModelFormatError
from reference import read_gguf

Array = Any


@dataclass(frozen=True)
class Weight:
    """A tensor ``[experts, rows, cols]``, or consecutive rows of one."""

    name: str
    values: Array
    first: int = 0
    count: int = 0

    @property
    def rows(self) -> int:
        return self.count

    @property
    def cols(self) -> int:
        return int(self.values.shape[2])

    @property
    def experts(self) -> int:
        return int(self.values.shape[0])

    @property
    def dtype(self) -> str:
        return "F32"

    def slice(self, first: int, count: int) -> Weight:
        assert 0 <= first < first + count <= self.count
        return replace(self, first=self.first + first, count=count)

    def matrix(self, expert: int = 0) -> Array:
        return self.values[expert, self.first : self.first + self.count]

    def vector(self) -> Array:
        assert self.values.shape[:2] == (1, 1), self.name
        return self.values[0, 0]


@dataclass(frozen=True)
class Routing:
    ids: Array
    weights: Array
    experts: int


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


class NumpyBuilder:
    """One forward pass over ``tokens``; ``long`` picks the RoPE of sequences that outgrow the original context."""

    def __init__(self, file: Path | str, tokens: Array, long: bool = False) -> None:
        self.metadata, tensors = read_gguf(file)
        self.weights = {
            name: Weight(name, values.reshape((1,) * (3 - values.ndim) + values.shape))
            for name, values in tensors.items()
        }
        self.tokens, self.long = np.asarray(tokens), long
        self.scopes: list[str] = []
        self.seen: list[tuple[str, str]] = []  # (scope path, operation)
        self.used: set[str] = set()
        self.groups: list[tuple[int, int, int]] = []
        self.logits: Array = None

    @contextlib.contextmanager
    def scope(self, name: str, block: int | None = None) -> Iterator[None]:
        self.scopes.append(name)
        yield
        self.scopes.pop()

    def _record(self, operation: str) -> None:
        self.seen.append(("/".join(self.scopes), operation))

    def tensor(self, name: str) -> Array | None:
        weight = self.weights.get(name)
        if weight is None:
            return None
        self.used.add(name)
        return weight.vector().astype(np.float32)

    def find(
        self, name: str, rows: int | None = None, cols: int | None = None, experts: int | None = None
    ) -> Weight | None:
        weight = self.weights.get(name)
        if weight is None:
            return None
        shape = weight.values.shape
        for wanted, found in zip((experts, rows, cols), shape, strict=True):
            if wanted is not None and wanted != found:
                raise ModelFormatError(f"has shape {shape}, needs {(experts, rows, cols)}", where=name)
        self.used.add(name)
        return replace(weight, count=shape[1])

    def weight(self, name: str, rows: int | None = None, cols: int | None = None, experts: int | None = None) -> Weight:
        found = self.find(name, rows, cols, experts)
        if found is None:
            raise ModelFormatError("tensor is missing", where=name)
        return found

    def embedding(self, w: Weight, scale: float = 1.0) -> Array:
        self._record("embedding")
        return w.matrix()[self.tokens] * scale

    def rms_norm(self, x: Array, w: Weight | None, epsilon: float, group: int = 0) -> Array:
        self._record("rms_norm")
        y = x.reshape(len(x), -1, group or x.shape[1])
        y = y / np.sqrt((y * y).mean(axis=-1, keepdims=True) + epsilon)
        return (y * w.vector() if w is not None else y).reshape(x.shape)

    def linear(self, x: Array, w: Weight, bias: Weight | None = None) -> Array:
        self._record("linear")
        y = x @ w.matrix().T
        return y if bias is None else y + bias.vector()[w.first : w.first + w.count]

    def add(self, x: Array, y: Array) -> Array:
        assert x.shape == y.shape
        return x + y

    def scale(self, x: Array, factor: float) -> Array:
        return x * factor

    def softcap(self, x: Array, cap: float) -> Array:
        self._record("softcap")
        return cap * np.tanh(x / cap)

    def gated_activation(self, activation: str, gate: Array, up: Array) -> Array:
        return ACTIVATIONS[activation](gate) * up

    def rope_table(
        self,
        inverse_frequencies: Array,
        magnitude: float = 1.0,
        pairing: str = "normal",
        extended: tuple[Array, float] | None = None,
    ) -> tuple[Array, float, str]:
        for frequencies in (inverse_frequencies, *(extended or ())[:1]):
            assert (frequencies.dtype, frequencies.ndim) == (np.float32, 1)
        if extended and self.long:
            inverse_frequencies, magnitude = extended
        return inverse_frequencies.astype(np.float64), magnitude, pairing

    def rope(self, x: Array, table: tuple[Array, float, str], head_size: int) -> Array:
        self._record("rope")
        frequencies, magnitude, pairing = table
        heads = x.reshape(len(x), -1, head_size)
        turns = np.exp(1j * np.arange(len(x))[:, None, None] * frequencies) * magnitude
        pairs = np.arange(2 * len(frequencies)).reshape(*((-1, 2) if pairing == "normal" else (2, -1)))
        first, second = pairs.T if pairing == "normal" else pairs
        turned = (heads[..., first] + 1j * heads[..., second]) * turns
        y = heads.copy()
        y[..., first], y[..., second] = turned.real, turned.imag
        return y.reshape(x.shape)

    def cache_group(self, kv_heads: int, head_size: int, window: int = 0) -> tuple[int, int, int]:
        group = (kv_heads, head_size, window)
        if group not in self.groups:
            self.groups.append(group)
        return group

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        group: tuple[int, int, int],
        heads: int,
        scale: float,
        softcap: float = 0.0,
        sinks: Weight | None = None,
    ) -> Array:
        self._record("attention")
        assert sinks is None
        kv_heads, size, window = group
        n = len(q)
        q = q.reshape(n, kv_heads, heads // kv_heads, size)
        k, v = k.reshape(n, kv_heads, size), v.reshape(n, kv_heads, size)
        scores = np.einsum("ighd,jgd->ghij", q, k) * scale
        scores = softcap * np.tanh(scores / softcap) if softcap else scores
        age = np.arange(n)[:, None] - np.arange(n)
        scores = np.where((age >= 0) & (age < (window or n)), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.einsum("ghij,jgd->ighd", weights, v).reshape(n, heads * size)

    def route(
        self, logits: Array, top_k: int, gate: str = "softmax", normalise: bool = True, scale: float = 1.0
    ) -> Routing:
        self._record("route")
        assert gate == "softmax"
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        ids = np.argsort(-weights, axis=-1, kind="stable")[:, :top_k]
        chosen = np.take_along_axis(weights, ids, axis=-1)
        chosen = chosen / chosen.sum(axis=-1, keepdims=True) if normalise else chosen
        return Routing(ids, chosen * scale, logits.shape[1])

    def expert_linear(self, x: Array, w: Weight, r: Routing) -> Array:
        assert w.experts == r.experts
        n, top_k = r.ids.shape
        inputs = x.reshape(n, -1, w.cols)  # one input per token, or one per slot
        return np.stack(
            [
                np.concatenate([w.matrix(r.ids[i, s]) @ inputs[i, min(s, inputs.shape[1] - 1)] for s in range(top_k)])
                for i in range(n)
            ]
        )

    def combine(self, x: Array, r: Routing) -> Array:
        return (x.reshape(*r.ids.shape, -1) * r.weights[..., None]).sum(axis=1)

    def output(self, x: Array) -> None:
        self._record("output")
        self.logits = x
