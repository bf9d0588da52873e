"""SmolLM3 (https://huggingface.co/blog/smollm3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import layers

if TYPE_CHECKING:
    from ..loading.config import ModelConfig
    from .builder import Builder, TensorValues

NOPE_PERIOD = 4


def smollm3(config: ModelConfig, b: Builder, tensor: TensorValues) -> None:
    """Llama's blocks, but every fourth does not rotate (NoPE, arXiv 2501.18795)."""
    rope = layers.rope_table(config, b, tensor, pairing="normal")
    x = layers.embedding(config, b)
    for block in layers.blocks(config, b):
        with block.scope():
            with b.scope("attention"):
                q, k, v = block.queries_keys_values(block.norm(x, "attn_norm"))
                if (block.index + 1) % NOPE_PERIOD:
                    q, k = block.rotate(q, k, rope)
                x = b.add(x, block.attend(q, k, v))
            with b.scope("feed_forward"):
                x = b.add(x, block.feed_forward(block.norm(x, "ffn_norm")))
    layers.output(config, b, x)
