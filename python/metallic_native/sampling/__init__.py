"""Sampling parameters, and the chain that turns logits into tokens."""

from __future__ import annotations

from .chain import SampledToken, SamplerChain
from .params import DEFAULT_ORDER, LogitsProcessor, Sampling

__all__ = ["DEFAULT_ORDER", "LogitsProcessor", "SampledToken", "SamplerChain", "Sampling"]
