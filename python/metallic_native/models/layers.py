"""The pieces that decoder architectures share, so that each model function shows only what is its own.

Tensor names are llama.cpp's (``gguf-py/gguf/constants.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ModelFormatError
from ..loading import rope as rotary

if TYPE_CHECKING:
    from ..loading.config import ModelConfig
    from .builder import Activation, Builder, RopePairing, RopeTable, TensorValues, Value, Weight


@dataclass(frozen=True)
class Block:
    """One block of a decoder: its tensors are those whose names start with ``blk.{index}.``."""

    config: ModelConfig
    b: Builder
    index: int

    def scope(self) -> AbstractContextManager[Any]:
        """The scope of everything in this block."""
        return self.b.scope(f"block.{self.index}", block=self.index)

    def norm(self, x: Value, name: str) -> Value:
        """Root-mean-square norm of whole rows."""
        weight = self.b.weight(self._name(name, "weight"), rows=1, cols=self.config.embedding_length)
        return self.b.rms_norm(x, weight, self.config.norm_epsilon)

    def head_norm(self, x: Value, name: str) -> Value:
        """Root-mean-square norm of each head by itself (QK norm)."""
        size = self.config.head_size
        weight = self.b.weight(self._name(name, "weight"), rows=1, cols=size)
        return self.b.rms_norm(x, weight, self.config.norm_epsilon, group=size)

    def linear(self, x: Value, name: str, rows: int, cols: int) -> Value:
        """A projection from ``cols`` to ``rows`` elements, with the bias if the file has one."""
        return self.b.linear(x, self.b.weight(self._name(name, "weight"), rows=rows, cols=cols), self._bias(name, rows))

    def queries_keys_values(self, x: Value) -> tuple[Value, Value, Value]:
        """The three projections of attention, from one fused tensor (queries, keys, values) or from three."""
        width, size = self.config.embedding_length, self.config.head_size
        queries, keys = self.config.head_count[self.index] * size, self.config.head_count_kv[self.index] * size
        with self.b.scope("qkv"):
            fused = self.b.find(self._name("attn_qkv", "weight"), rows=queries + 2 * keys, cols=width)
            if fused is None:
                return (
                    self.linear(x, "attn_q", queries, width),
                    self.linear(x, "attn_k", keys, width),
                    self.linear(x, "attn_v", keys, width),
                )
            bias = self._bias("attn_qkv", queries + 2 * keys)
            return (
                self.b.linear(x, fused.slice(0, queries), bias),
                self.b.linear(x, fused.slice(queries, keys), bias),
                self.b.linear(x, fused.slice(queries + keys, keys), bias),
            )

    def rotate(self, q: Value, k: Value, table: RopeTable) -> tuple[Value, Value]:
        """Queries and keys turned by their positions."""
        size = self.config.head_size
        with self.b.scope("rope"):
            return self.b.rope(q, table, size), self.b.rope(k, table, size)

    def attend(self, q: Value, k: Value, v: Value, window: int = 0, scale: float | None = None) -> Value:
        """Causal attention and output projection; the scale is the file's, else ``scale``, else 1 / sqrt(head size)."""
        config, i = self.config, self.index
        size, heads = config.head_size, config.head_count[i]
        group = self.b.cache_group(kv_heads=config.head_count_kv[i], head_size=size, window=window)
        scale = config.attention_scale or scale or size**-0.5
        y = self.b.attention(q, k, v, group, heads=heads, scale=scale, softcap=config.attention_softcap)
        with self.b.scope("output"):
            return self.linear(y, "attn_output", config.embedding_length, heads * size)

    def feed_forward(self, x: Value, activation: Activation = "silu") -> Value:
        """Gated feed-forward network (Shazeer, arXiv 2002.05202): ``down(activation(gate x) * up x)``."""
        width, inner = self.config.embedding_length, self.config.feed_forward_length[self.index]
        gate = self.linear(x, "ffn_gate", inner, width)
        up = self.linear(x, "ffn_up", inner, width)
        return self.linear(self.b.gated_activation(activation, gate, up), "ffn_down", width, inner)

    def fused_feed_forward(self, x: Value, activation: Activation = "silu") -> Value:
        """As :meth:`feed_forward`, from one tensor ``ffn_up`` that holds the rows of the gate, then those of up."""
        width, inner = self.config.embedding_length, self.config.feed_forward_length[self.index]
        both = self.b.weight(self._name("ffn_up", "weight"), rows=2 * inner, cols=width)
        bias = self._bias("ffn_up", 2 * inner)
        gate = self.b.linear(x, both.slice(0, inner), bias)
        up = self.b.linear(x, both.slice(inner, inner), bias)
        return self.linear(self.b.gated_activation(activation, gate, up), "ffn_down", width, inner)

    def experts(self, x: Value) -> Value:
        """A mixture of gated feed-forward networks (Shazeer et al., arXiv 1701.06538)."""
        b, width, mixture = self.b, self.config.embedding_length, self.config.experts
        if mixture is None:
            raise ModelFormatError("missing", where=f"{self.config.architecture}.expert_count")
        inner, count = mixture.feed_forward_length, mixture.count

        def weights(name: str, rows: int, cols: int) -> Weight:
            return b.weight(self._name(name, "weight"), rows=rows, cols=cols, experts=count)

        with b.scope("router"):
            logits = self.linear(x, "ffn_gate_inp", count, width)
            routing = b.route(logits, mixture.used, mixture.gate, mixture.normalise, mixture.scale)
        with b.scope("experts"):
            gate = b.expert_linear(x, weights("ffn_gate_exps", inner, width), routing)
            up = b.expert_linear(x, weights("ffn_up_exps", inner, width), routing)
            hidden = b.gated_activation("silu", gate, up)
            return b.combine(b.expert_linear(hidden, weights("ffn_down_exps", width, inner), routing), routing)

    def _name(self, name: str, kind: str) -> str:
        return f"blk.{self.index}.{name}.{kind}"

    def _bias(self, name: str, length: int) -> Weight | None:
        return self.b.find(self._name(name, "bias"), rows=1, cols=length)


def blocks(config: ModelConfig, b: Builder) -> Iterator[Block]:
    """Every block from first to last."""
    return (Block(config, b, index) for index in range(config.block_count))


def embedding(config: ModelConfig, b: Builder, scale: float = 1.0) -> Value:
    """The rows of the tokens, times ``scale``."""
    with b.scope("embedding"):
        rows, cols = config.vocabulary_size, config.embedding_length
        return b.embedding(b.weight("token_embd.weight", rows=rows, cols=cols), scale)


def output(config: ModelConfig, b: Builder, x: Value) -> None:
    """Final norm and logits; without a tensor of its own the output is tied to the token embeddings."""
    rows, cols = config.vocabulary_size, config.embedding_length
    with b.scope("output"):
        x = b.rms_norm(x, b.weight("output_norm.weight", rows=1, cols=cols), config.norm_epsilon)
        w = b.find("output.weight", rows=rows, cols=cols) or b.weight("token_embd.weight", rows=rows, cols=cols)
        x = b.linear(x, w, b.find("output.bias", rows=1, cols=rows))
        b.output(b.softcap(x, config.output_softcap) if config.output_softcap else x)


def rope_table(config: ModelConfig, b: Builder, tensor: TensorValues, pairing: RopePairing) -> RopeTable:
    """The table of the configured RoPE: LongRoPE where the file has its factors, else plain, linear or YaRN."""
    short, long = tensor("rope_factors_short.weight"), tensor("rope_factors_long.weight")
    if short is not None and long is not None:
        base, extended = rotary.longrope_rotations(config.rope, short, long)
        return b.rope_table(
            base.inverse_frequencies,
            base.magnitude,
            pairing,
            extended=(extended.inverse_frequencies, extended.magnitude),
        )
    if config.rope.scaling == "longrope" or short is not None or long is not None:
        absent = "short" if short is None else "long"
        raise ModelFormatError("tensor is missing", where=f"rope_factors_{absent}.weight")
    base = rotary.rotation(config.rope, tensor("rope_freqs.weight"))
    return b.rope_table(base.inverse_frequencies, base.magnitude, pairing)
