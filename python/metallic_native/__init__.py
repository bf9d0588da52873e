"""metallic_native: GGUF language models, with a native core and memory as a bounded, observable resource.

>>> import metallic_native as mn
>>> with mn.load("demo") as model:
...     print(model.generate("Once upon a time", max_tokens=100).text)
"""

from importlib.metadata import PackageNotFoundError, version

from .engine import (
    Chunk,
    Generation,
    GenerationStats,
    MemoryReport,
    Model,
    Session,
    load,
    load_tokenizer,
)
from .errors import DeviceError, Error, ModelFormatError, OutOfMemory, RequestError, UnsupportedModelError
from .loading import ModelConfig
from .sampling import SamplerChain, Sampling
from .text import ChatTemplate, Tokenizer

try:
    __version__ = version("metallic-native")
except PackageNotFoundError:  # run from a source tree
    __version__ = "0+unknown"

__all__ = [
    "ChatTemplate",
    "Chunk",
    "DeviceError",
    "Error",
    "Generation",
    "GenerationStats",
    "MemoryReport",
    "Model",
    "ModelConfig",
    "ModelFormatError",
    "OutOfMemory",
    "RequestError",
    "SamplerChain",
    "Sampling",
    "Session",
    "Tokenizer",
    "UnsupportedModelError",
    "__version__",
    "load",
    "load_tokenizer",
]
