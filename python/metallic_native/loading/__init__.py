"""From a model file to a traced program: GGUF metadata, model configuration, RoPE tables, hub downloads."""

from .config import ModelConfig
from .resolve import resolve_model

__all__ = ["ModelConfig", "resolve_model"]
