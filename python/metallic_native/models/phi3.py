"""Phi 3, 3.5 and 4 (arXiv 2404.14219, 2412.08905)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import layers

if TYPE_CHECKING:
    from ..loading.config import ModelConfig
    from .builder import Builder, TensorValues


def phi3(config: ModelConfig, b: Builder, tensor: TensorValues) -> None:
    """Llama's blocks with fused projections, LongRoPE in the long-context models, and a sliding window in every block.

    The window is that of transformers' Phi3Model, which is what the models were made with; llama.cpp leaves it out.
    """
    rope = layers.rope_table(config, b, tensor, pairing="neox")
    x = layers.embedding(config, b)
    for block in layers.blocks(config, b):
        with block.scope():
            with b.scope("attention"):
                q, k, v = block.queries_keys_values(block.norm(x, "attn_norm"))
                q, k = block.rotate(q, k, rope)
                x = b.add(x, block.attend(q, k, v, window=config.window(block.index)))
            with b.scope("feed_forward"):
                x = b.add(x, block.fused_feed_forward(block.norm(x, "ffn_norm")))
    layers.output(config, b, x)
