"""Gemma 3, text (arXiv 2503.19786)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..loading.rope import local_rotation
from . import layers

if TYPE_CHECKING:
    from ..loading.config import ModelConfig
    from .builder import Builder, TensorValues

WINDOW_PERIOD = 6  # five blocks with a sliding window to one that sees the whole context
LOCAL_ROPE_BASE = 10_000.0
BLOCKS_27B = 62


def gemma3(config: ModelConfig, b: Builder, tensor: TensorValues) -> None:
    """Gemma 2 with QK norm in place of the scores' soft-cap, and two RoPEs.

    Blocks with a sliding window rotate by the local base and are never stretched; the others by the configured RoPE. As
    in Gemma 2, the 27B model scales scores by its embedding length per head.
    """
    is_27b = config.block_count == BLOCKS_27B
    scale = (config.embedding_length // config.head_count[0] if is_27b else config.head_size) ** -0.5
    full_rope = layers.rope_table(config, b, tensor, pairing="neox")
    local = local_rotation(config.rope, config.rope.local_base or LOCAL_ROPE_BASE)
    local_rope = b.rope_table(local.inverse_frequencies, local.magnitude, "neox")
    x = layers.embedding(config, b, scale=config.embedding_length**0.5)
    for block in layers.blocks(config, b):
        window = config.window(block.index, WINDOW_PERIOD)
        with block.scope():
            with b.scope("attention"):
                q, k, v = block.queries_keys_values(block.norm(x, "attn_norm"))
                with b.scope("qk_norm"):
                    q, k = block.head_norm(q, "attn_q_norm"), block.head_norm(k, "attn_k_norm")
                q, k = block.rotate(q, k, local_rope if window else full_rope)
                y = block.attend(q, k, v, window=window, scale=scale)
                x = b.add(x, block.norm(y, "post_attention_norm"))
            with b.scope("feed_forward"):
                y = block.feed_forward(block.norm(x, "ffn_norm"), "gelu_tanh")
                x = b.add(x, block.norm(y, "post_ffw_norm"))
    layers.output(config, b, x)
