"""What a model function sees: the operations of the native builder, as a typed protocol.

Activations, tables, cache groups and routings are opaque handles that only the builder that made them understands.
Weights are named and shaped as in the GGUF file: ``cols`` is the input size, ``rows`` the output size; a vector is one
row.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from ..loading.config import ModelConfig

    Float32Vector = npt.NDArray[np.float32]

Value = Any  # an activation: one row per token, or per requested output
Weight = Any  # a tensor of the file or rows of one: .rows, .cols, .experts, .dtype, .name, .slice(first, count)
RopeTable = Any  # inverse frequencies and magnitudes
CacheGroup = Any  # layers that keep history alike
Routing = Any  # the experts chosen for each token, and their weights

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
RouterGate = Literal["softmax", "softmax_of_chosen", "sigmoid"]
RopePairing = Literal["normal", "neox"]  # pairs (2i, 2i + 1), or (i, i + dims / 2)


class Builder(Protocol):
    """Records a model function's calls as the steps of a program. Shapes are checked at every call."""

    def scope(self, name: str, block: int | None = None) -> AbstractContextManager[Any]:
        """Names what is recorded within, for events and errors; scopes nest.

        ``block`` says that it is that block of the model, so that its weights and steps can be placed together.
        """

    def weight(self, name: str, rows: int | None = None, cols: int | None = None, experts: int | None = None) -> Weight:
        """The tensor ``name``; ModelFormatError if it is absent or has another shape than stated."""

    def find(
        self, name: str, rows: int | None = None, cols: int | None = None, experts: int | None = None
    ) -> Weight | None:
        """As :meth:`weight`, but None where it is absent."""

    def embedding(self, w: Weight, scale: float = 1.0) -> Value:
        """``scale * w[token]``."""

    def rms_norm(self, x: Value, w: Weight | None, epsilon: float, group: int = 0) -> Value:
        """``x / sqrt(mean(x^2) + epsilon) * w`` over each ``group`` of elements; 0 is the whole row."""

    def linear(self, x: Value, w: Weight, bias: Weight | None = None) -> Value:
        """``x w^T + bias``; for rows of a weight, the bias of the whole weight is given."""

    def add(self, x: Value, y: Value) -> Value:
        """``x + y``."""

    def scale(self, x: Value, factor: float) -> Value:
        """``x * factor``."""

    def softcap(self, x: Value, cap: float) -> Value:
        """``cap * tanh(x / cap)``."""

    def gated_activation(self, activation: Activation, gate: Value, up: Value) -> Value:
        """``activation(gate) * up``."""

    def rope_table(
        self,
        inverse_frequencies: Float32Vector,
        magnitude: float = 1.0,
        pairing: RopePairing = "normal",
        extended: tuple[Float32Vector, float] | None = None,
    ) -> RopeTable:
        """Angles of each pair; ``extended`` is for sequences that will outgrow the original context."""

    def rope(self, x: Value, table: RopeTable, head_size: int) -> Value:
        """Each head of ``x`` rotated by its token's position."""

    def cache_group(self, kv_heads: int, head_size: int, window: int = 0) -> CacheGroup:
        """A group of layers that keep history alike; equal arguments give the same group."""

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        group: CacheGroup,
        heads: int,
        scale: float,
        softcap: float = 0.0,
        sinks: Weight | None = None,
    ) -> Value:
        """Appends keys and values to the history and attends causally."""

    def route(
        self, logits: Value, top_k: int, gate: RouterGate = "softmax", normalise: bool = True, scale: float = 1.0
    ) -> Routing:
        """The ``top_k`` experts of each token."""

    def expert_linear(self, x: Value, w: Weight, r: Routing) -> Value:
        """``x w[e]^T`` for each chosen expert ``e``, side by side."""

    def combine(self, x: Value, r: Routing) -> Value:
        """The weighted sum of the chosen experts' results."""

    def output(self, x: Value) -> None:
        """Names the logits."""


TensorValues = Callable[[str], "Float32Vector | None"]
"""Gives a small F32 tensor's values, or None where the file has no such tensor."""

ModelFunction = Callable[["ModelConfig", Builder, TensorValues], None]
"""Records a whole model, from token embeddings to logits, within a scope that its caller opened."""
