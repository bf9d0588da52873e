"""Running models: loading them, forward passes, generation and chats."""

from .generation import Chunk, Generation, GenerationStats
from .loader import load, load_tokenizer
from .memory import MemoryEvent, MemoryReport, TagUse
from .model import Model
from .placement import Placement
from .session import Session

__all__ = [
    "Chunk",
    "Generation",
    "GenerationStats",
    "MemoryEvent",
    "MemoryReport",
    "Model",
    "Placement",
    "Session",
    "TagUse",
    "load",
    "load_tokenizer",
]
