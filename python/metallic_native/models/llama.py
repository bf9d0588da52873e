"""Llama 2 and 3 (arXiv 2307.09288, 2407.21783), and what shares their shape: Mistral, Mixtral, SmolLM, TinyLlama."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import layers

if TYPE_CHECKING:
    from ..loading.config import ModelConfig
    from .builder import Builder, TensorValues


def llama(config: ModelConfig, b: Builder, tensor: TensorValues) -> None:
    """Pre-norm blocks of rotary attention and a gated feed-forward network, or a mixture of them.

    llama.cpp's converter reorders the rows of queries and keys so that neighbouring elements form the rotated pairs. A
    sliding window (Mistral 7B v0.1, arXiv 2310.06825) holds for every block where the file states one; converters often
    do not.
    """
    rope = layers.rope_table(config, b, tensor, pairing="normal")
    x = layers.embedding(config, b)
    for block in layers.blocks(config, b):
        with block.scope():
            with b.scope("attention"):
                q, k, v = block.queries_keys_values(block.norm(x, "attn_norm"))
                q, k = block.rotate(q, k, rope)
                x = b.add(x, block.attend(q, k, v, window=config.window(block.index)))
            with b.scope("feed_forward"):
                h = block.norm(x, "ffn_norm")
                x = b.add(x, block.experts(h) if config.experts else block.feed_forward(h))
    layers.output(config, b, x)
