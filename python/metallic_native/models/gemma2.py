"""Gemma 2 (arXiv 2408.00118)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import layers

if TYPE_CHECKING:
    from ..loading.config import ModelConfig
    from .builder import Builder, TensorValues

WINDOW_PERIOD = 2  # every second block sees the whole context
BLOCKS_27B = 46


def gemma2(config: ModelConfig, b: Builder, tensor: TensorValues) -> None:
    """Norms before and after each part, soft-capped scores and logits, and a sliding window in every other block.

    The norm weights of the file already hold Gemma's ``1 + w``. The 27B model scales scores by its embedding length per
    head instead of its head size (``query_pre_attn_scalar`` of gemma_pytorch); nothing but the block count tells it
    apart.
    """
    is_27b = config.block_count == BLOCKS_27B
    scale = (config.embedding_length // config.head_count[0] if is_27b else config.head_size) ** -0.5
    rope = layers.rope_table(config, b, tensor, pairing="neox")
    x = layers.embedding(config, b, scale=config.embedding_length**0.5)
    for block in layers.blocks(config, b):
        with block.scope():
            with b.scope("attention"):
                q, k, v = block.queries_keys_values(block.norm(x, "attn_norm"))
                q, k = block.rotate(q, k, rope)
                y = block.attend(q, k, v, window=config.window(block.index, WINDOW_PERIOD), scale=scale)
                x = b.add(x, block.norm(y, "post_attention_norm"))
            with b.scope("feed_forward"):
                y = block.feed_forward(block.norm(x, "ffn_norm"), "gelu_tanh")
                x = b.add(x, block.norm(y, "post_ffw_norm"))
    layers.output(config, b, x)
