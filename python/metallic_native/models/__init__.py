"""Model functions: one short file per architecture family, chosen by the file's ``general.architecture``.

A model function takes a configuration and a builder and reads like the architecture's paper. It knows nothing of
backends, pages, batches or kernels. To add an architecture, write its file and name it here and in
``loading/config.py``.
"""

from __future__ import annotations

from ..errors import UnsupportedModelError
from .builder import Builder, ModelFunction, TensorValues
from .gemma2 import gemma2
from .gemma3 import gemma3
from .llama import llama
from .phi3 import phi3
from .qwen2 import qwen2
from .qwen3 import qwen3
from .qwen3moe import qwen3moe
from .smollm3 import smollm3

__all__ = ["ARCHITECTURES", "Builder", "ModelFunction", "TensorValues", "model_function"]

ARCHITECTURES: dict[str, ModelFunction] = {
    "gemma2": gemma2,
    "gemma3": gemma3,
    "llama": llama,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen3moe": qwen3moe,
    "smollm3": smollm3,
}


def model_function(architecture: str) -> ModelFunction:
    """The model function of ``architecture``; UnsupportedModelError, listing those known, for any other."""
    function = ARCHITECTURES.get(architecture)
    if function is None:
        raise UnsupportedModelError(
            f"architecture {architecture!r} is not supported", what=architecture, supported=sorted(ARCHITECTURES)
        )
    return function
