"""From a path to a model: the file is mapped, its metadata read, the model function traced, the program compiled."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _native
from ..errors import ModelFormatError, RequestError
from ..loading import ModelConfig, resolve_model
from ..models import model_function
from ..text import ChatTemplate, Tokenizer
from .model import Model

__all__ = ["load", "load_tokenizer", "trace_program"]

log = logging.getLogger(__name__)

KV_TYPES = ("f32", "f16", "bf16", "q8_0")
WEIGHT_PLACEMENTS = ("mapped", "private")
PRECISIONS = ("auto", "float32", "float16", "bfloat16", "int8")
_FLOATS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a GGUF file, which may hold a vocabulary and no tensors.

    Raises ModelFormatError or UnsupportedModelError, as :func:`load` does.
    """
    file = _native.GgufModelFile(os.fspath(path))
    return Tokenizer.from_metadata(file.metadata)


def load(
    path_or_repo: str | os.PathLike[str] = "demo",
    device: str = "auto",
    threads: int | None = None,
    kv_type: str = "f16",
    *,
    context_length: int | None = None,
    batch_tokens: int = 512,
    memory_budget: int | None = None,
    weights: str = "mapped",
    precision: str = "auto",
) -> Model:
    """Load a model.

    ``path_or_repo`` is a GGUF file (any part of a split one), a Hugging Face repository as
    ``owner/name[:quantisation]``, or ``"demo"``, the small model that comes with the package. ``device`` is
    ``"auto"`` (the variable ``METALLIC_DEVICE`` or else the best there is), ``"cpu"`` or ``"metal"``; ``threads`` those
    of the CPU backend (default: one per core). Keys and values are kept as ``kv_type``: ``"f16"``, ``"bf16"``,
    ``"f32"`` or ``"q8_0"``. ``context_length`` in tokens lowers the model's own limit, and nothing is reserved for it.
    At most ``batch_tokens`` tokens are computed at a time, which bounds the activations. ``memory_budget`` in bytes
    bounds what the pool takes from the system.
    ``weights`` are read where the file is ``"mapped"``, or copied on first use to memory of the device alone
    (``"private"``), which the pool counts. ``precision`` is what matrix products may round their operands to; sums are
    float32 always. ``"float32"`` rounds nothing, on any device. ``"int8"`` (CPU) rounds activations to 8 bits in blocks
    where the weights are quantised, ``"float16"`` and ``"bfloat16"`` (Metal, where the GPU has the arithmetic) round
    both operands when many tokens are computed. ``"auto"`` is float32 on Metal; on the CPU it is float32 for models
    whose matrices take at most 32 MiB, else int8.

    Raises ModelFormatError for a corrupt file, UnsupportedModelError for one that needs what is not implemented,
    RequestError for arguments that make no sense, OutOfMemory when the budget is too small.
    """
    if not isinstance(device, str):
        raise RequestError(f"device must be a str, not {device!r}")
    if not isinstance(kv_type, str) or kv_type.lower() not in KV_TYPES:
        raise RequestError(f"kv_type must be one of {', '.join(KV_TYPES)}, not {kv_type!r}")
    if not isinstance(weights, str) or weights not in WEIGHT_PLACEMENTS:
        raise RequestError(f"weights must be one of {', '.join(WEIGHT_PLACEMENTS)}, not {weights!r}")
    if not isinstance(precision, str) or precision.lower() not in PRECISIONS:
        raise RequestError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    _check_integer("threads", threads, 1024)
    _check_integer("batch_tokens", batch_tokens, 65536)
    _check_integer("memory_budget", memory_budget, 2**63)
    _check_integer("context_length", context_length, 2**31)
    if device == "auto":
        device = os.environ.get("METALLIC_DEVICE") or "auto"
    path = resolve_model(path_or_repo)
    file = _native.GgufModelFile(str(path))
    metadata = file.metadata
    config = ModelConfig.from_metadata(metadata)
    context = _context_length(config, context_length)
    tokenizer = Tokenizer.from_metadata(metadata)
    tokenizer.prepare_in_background()
    program = trace_program(file, config)
    native = _native.Model(
        file,
        program,
        device=device,
        threads=threads or 0,
        kv_type=kv_type.upper(),
        context_length=context,
        batch_tokens=min(batch_tokens, context),
        memory_budget=memory_budget or 0,
        weights=weights,
        precision=precision.lower(),
    )
    log.info(
        "loaded %s (%s, %d blocks) on %s, computing in %s",
        path,
        config.architecture,
        config.block_count,
        native.device["name"],
        native.precision,
    )
    return Model(
        native=native,
        path=Path(path),
        config=config,
        tokenizer=tokenizer,
        template=ChatTemplate.from_metadata(metadata, tokenizer),
        context_length=context,
        kv_type=kv_type.lower(),
    )


def _check_integer(name: str, value: int | None, most: int) -> None:
    if value is None and name != "batch_tokens":
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise RequestError(f"{name} must be an integer between 1 and {most}, not {value!r}")


def _context_length(config: ModelConfig, wanted: int | None) -> int:
    if wanted is None:
        return config.context_length
    if not 1 <= wanted <= config.context_length:
        raise RequestError(f"context_length must lie between 1 and the model's {config.context_length}, not {wanted}")
    return wanted


def trace_program(file: _native.GgufModelFile, config: ModelConfig) -> _native.Program:
    """The traced program of a file's model function."""
    dtypes = {tensor.name: tensor.dtype for tensor in file.tensors}

    def tensor(name: str) -> npt.NDArray[np.float32] | None:
        if name not in dtypes:
            return None
        if dtypes[name] not in _FLOATS:
            raise ModelFormatError(f"a tensor of floats is needed, not {dtypes[name]}", file=file.paths[0], where=name)
        return file.tensor_data(name).view(_FLOATS[dtypes[name]]).astype(np.float32)

    builder = _native.Builder(file)
    with builder.scope("forward"):
        model_function(config.architecture)(config, builder, tensor)
    return builder.finish()
