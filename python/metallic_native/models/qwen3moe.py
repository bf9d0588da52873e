"""Qwen 3, mixture of experts (arXiv 2505.09388)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import layers
from .qwen3 import attention

if TYPE_CHECKING:
    from ..loading.config import ModelConfig
    from .builder import Builder, TensorValues


def qwen3moe(config: ModelConfig, b: Builder, tensor: TensorValues) -> None:
    """Qwen 3's attention; the feed-forward network is a mixture of experts without a shared one."""
    rope = layers.rope_table(config, b, tensor, pairing="neox")
    x = layers.embedding(config, b)
    for block in layers.blocks(config, b):
        with block.scope():
            with b.scope("attention"):
                x = b.add(x, attention(block, block.norm(x, "attn_norm"), rope))
            with b.scope("feed_forward"):
                x = b.add(x, block.experts(block.norm(x, "ffn_norm")))
    layers.output(config, b, x)
