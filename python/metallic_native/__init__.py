"""metallic_native: GGUF language models, with a native core and memory as a bounded, observable resource.

>>> import metallic_native as mn
>>> with mn.load("demo") as model:
...     print(model.generate("Once upon a time", max_tokens=100).text)

Names are imported when they are first used, so that a command line that needs few of them starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import DeviceError, Error, ModelFormatError, OutOfMemory, RequestError, UnsupportedModelError

if TYPE_CHECKING:
    from .engine import (
        Chunk,
        Generation,
        GenerationStats,
        MemoryReport,
        Model,
        Placement,
        Session,
        load,
        load_tokenizer,
    )
    from .loading import ModelConfig
    from .sampling import SamplerChain, Sampling
    from .text import ChatTemplate, Tokenizer

    __version__: str

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
    "Placement",
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

_HOMES = {
    ".engine": (
        "Chunk",
        "Generation",
        "GenerationStats",
        "MemoryReport",
        "Model",
        "Placement",
        "Session",
        "load",
        "load_tokenizer",
    ),
    ".loading": ("ModelConfig",),
    ".sampling": ("SamplerChain", "Sampling"),
    ".text": ("ChatTemplate", "Tokenizer"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("metallic-native")
    except PackageNotFoundError:  # run from a source tree
        return "0+unknown"


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOME:
        value = getattr(import_module(_HOME[name], __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next use finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
