"""Qwen 2 and 2.5 (arXiv 2407.10671, 2412.15115)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import layers

if TYPE_CHECKING:
    from ..loading.config import ModelConfig
    from .builder import Builder, TensorValues


def qwen2(config: ModelConfig, b: Builder, tensor: TensorValues) -> None:
    """Llama's blocks with biases on queries, keys and values; rotated pairs lie half a head apart."""
    rope = layers.rope_table(config, b, tensor, pairing="neox")
    x = layers.embedding(config, b)
    for block in layers.blocks(config, b):
        with block.scope():
            with b.scope("attention"):
                q, k, v = block.queries_keys_values(block.norm(x, "attn_norm"))
                q, k = block.rotate(q, k, rope)
                x = b.add(x, block.attend(q, k, v))
            with b.scope("feed_forward"):
                x = b.add(x, block.feed_forward(block.norm(x, "ffn_norm")))
    layers.output(config, b, x)
