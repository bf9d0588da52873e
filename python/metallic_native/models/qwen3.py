"""Qwen 3, dense (arXiv 2505.09388)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import layers

if TYPE_CHECKING:
    from ..loading.config import ModelConfig
    from .builder import Builder, RopeTable, TensorValues, Value


def attention(block: layers.Block, x: Value, rope: RopeTable) -> Value:
    """Qwen 3's attention: each head of queries and keys is normalised before it is rotated."""
    q, k, v = block.queries_keys_values(x)
    with block.b.scope("qk_norm"):
        q, k = block.head_norm(q, "attn_q_norm"), block.head_norm(k, "attn_k_norm")
    q, k = block.rotate(q, k, rope)
    return block.attend(q, k, v)


def qwen3(config: ModelConfig, b: Builder, tensor: TensorValues) -> None:
    """Qwen 2's blocks with QK norm in place of biases; the head size is free of the embedding length."""
    rope = layers.rope_table(config, b, tensor, pairing="neox")
    x = layers.embedding(config, b)
    for block in layers.blocks(config, b):
        with block.scope():
            with b.scope("attention"):
                x = b.add(x, attention(block, block.norm(x, "attn_norm"), rope))
            with b.scope("feed_forward"):
                x = b.add(x, block.feed_forward(block.norm(x, "ffn_norm")))
    layers.output(config, b, x)
